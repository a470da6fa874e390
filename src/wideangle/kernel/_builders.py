"""Builders: they take a layer's inputs once and its output gradients logit by logit, and give a structure.

The output gradients of all logits of one chunk lie side by side until the layer is finished: then one product
forms the per-sample gradients of all logits, and a layer below a linear head shows itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wideangle.kernel._cover import Call, Cover
from wideangle.kernel._lookup import Lookup
from wideangle.kernel._separable import SeparableOuter, SeparablePositions, separate
from wideangle.kernel._structures import Explicit, Outer, Positions, Structure, Turned

__all__ = ["Builder", "builder_for"]


class Builder:
    """Collects one layer's factors for one chunk of samples."""

    def __init__(
        self, cover: Cover, shapes: tuple[torch.Size, ...], uses: list[Call], samples: int, outputs: int
    ):
        self.cover = cover
        self.shapes = shapes
        self.uses = uses
        self.samples = samples
        self.outputs = outputs
        weight = cover.module._parameters.get("weight")
        reference = weight if weight is not None else cover.module._parameters["bias"]
        assert reference is not None
        self.device, self.dtype = reference.device, reference.dtype

    def add(self, c: int, deltas: Sequence[Tensor | None]) -> None:
        """Take the gradients of logit `c` with respect to the outputs of the layer's calls."""
        raise NotImplementedError

    def finish(self) -> Structure:
        """Return the structure; the builder is spent."""
        raise NotImplementedError


class _Shared(Builder):
    """Layers whose weight is shared over positions: keeps inputs and output gradients of all logits.

    `explicit` says that the layer's per-sample gradients are wanted: one product for all logits of a sample.
    """

    def __init__(
        self,
        cover: Cover,
        shapes: tuple[torch.Size, ...],
        uses: list[Call],
        samples: int,
        outputs: int,
        explicit: bool,
    ):
        super().__init__(cover, shapes, uses, samples, outputs)
        rule = cover.rule
        assert rule.positions is not None
        parts = [rule.positions(cover.module, one.a) for one in uses]
        self.a = torch.cat(parts, dim=2) if len(parts) != 1 else parts[0]
        self.g: Tensor | None = None
        self.explicit = explicit

    def add(self, c: int, deltas: Sequence[Tensor | None]) -> None:
        rule = self.cover.rule
        assert rule.cotangents is not None
        parts = [
            rule.cotangents(self.cover.module, torch.zeros_like(one.z) if delta is None else delta)
            for one, delta in zip(self.uses, deltas, strict=True)
        ]
        g = torch.cat(parts, dim=2) if len(parts) != 1 else parts[0]
        if self.g is None:
            groups, b, positions, fan_out = g.shape
            if g.stride(2) == 1:  # images with the channel first: kept in their order
                self.g = g.new_empty(groups, b, self.outputs, fan_out, positions).transpose(3, 4)
            else:
                self.g = g.new_empty(groups, b, self.outputs, positions, fan_out)
        self.g[:, :, c] = g

    def finish(self) -> Structure:
        cover, g = self.cover, self.g
        assert g is not None
        flags = (cover.weight is not None, cover.bias is not None)
        if cover.rule.lookup:
            return Lookup(cover.names, self.shapes, self.a, g, *flags)
        groups, _, positions, fan_in = self.a.shape
        single = groups == 1 and positions == 1
        outputs, fan_out = g.shape[2], g.shape[4]
        lean = fan_in * fan_out <= positions * (fan_in + outputs * fan_out)
        found = separate(g) if single or self.explicit or lean else None
        if single:
            a = self.a[0, :, 0].contiguous()
            if found is None:
                return Outer(cover.names, self.shapes, a, g[0, :, :, 0], *flags)
            return SeparableOuter(cover.names, self.shapes, found[0][0], a, found[1][0, :, 0], *flags)
        if found is not None:
            w = found[0].transpose(0, 1).flatten(1)  # units of all groups, in the order of the weight's rows
            return SeparablePositions(cover.names, self.shapes, w, self._units(found[1][:, :, None])[:, 0])
        if self.explicit:
            units = self._units(g)
            return Explicit(cover.names, self.shapes, units.flatten(2), units.shape[2])
        return Positions(cover.names, self.shapes, self.a.contiguous(), g, *flags)

    def _units(self, g: Tensor) -> Tensor:
        """Return per-sample gradients by unit, its weights and then its bias: (b, C, g O, K + 1)."""
        groups, b, outputs, positions, fan_out = g.shape
        parts = [self.a] if self.cover.weight is not None else []
        if self.cover.bias is not None:
            parts.append(self.a.new_ones(()).expand(groups, b, positions, 1))
        inputs = _cat_columns(parts).reshape(groups * b, positions, -1)
        rows = g.transpose(3, 4).reshape(groups * b, outputs * fan_out, positions)
        found = (rows @ inputs).view(groups, b, outputs, fan_out, -1)
        return found[0] if groups == 1 else found.permute(1, 2, 0, 3, 4).flatten(2, 3)


def _cat_columns(parts: list[Tensor]) -> Tensor:
    """Join (g, b, T, K) along K in the memory order of the first: patches come with T innermost."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].stride(2) == 1:
        return torch.cat([part.mT for part in parts], dim=2).mT
    return torch.cat(parts, dim=3)


class _PerSample(Builder):
    """Normalisation layers: per-sample gradients, formed as each logit arrives."""

    def __init__(
        self, cover: Cover, shapes: tuple[torch.Size, ...], uses: list[Call], samples: int, outputs: int
    ):
        super().__init__(cover, shapes, uses, samples, outputs)
        width = sum(shape.numel() for shape in shapes)
        self.j = torch.zeros(samples, outputs, width, dtype=self.dtype, device=self.device)

    def add(self, c: int, deltas: Sequence[Tensor | None]) -> None:
        cover, rule = self.cover, self.cover.rule
        assert rule.gradient is not None
        for one, delta in zip(self.uses, deltas, strict=True):
            if delta is None:
                continue
            scale, shift = rule.gradient(cover.module, one.a, delta)
            wanted = [scale] * (cover.weight is not None) + [shift] * (cover.bias is not None)
            self.j[:, c] += torch.cat([part.flatten(1) for part in wanted], dim=1)

    def finish(self) -> Structure:
        return Explicit(self.cover.names, self.shapes, self.j)


class _Turned(Builder):
    """Builds with the transposed weight, and gives a structure that turns it back."""

    def __init__(self, inner: Builder, shapes: tuple[torch.Size, ...]):
        self.inner = inner
        self.shapes = shapes

    def add(self, c: int, deltas: Sequence[Tensor | None]) -> None:
        self.inner.add(c, deltas)

    def finish(self) -> Structure:
        return Turned(self.inner.cover.names, self.shapes, self.inner.finish())


def builder_for(
    cover: Cover, shapes: tuple[torch.Size, ...], uses: list[Call], samples: int, outputs: int, explicit: bool
) -> Builder:
    """Return the builder of one layer: per-sample gradients where `explicit`, else factorised."""
    if cover.rule.gradient is not None:
        return _PerSample(cover, shapes, uses, samples, outputs)
    if not cover.rule.transposed or cover.weight is None:
        return _Shared(cover, shapes, uses, samples, outputs, explicit)
    turned = (torch.Size(reversed(shapes[0])), *shapes[1:])
    return _Turned(_Shared(cover, turned, uses, samples, outputs, explicit), shapes)
