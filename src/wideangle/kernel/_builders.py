"""Builders: they take a layer's inputs once and its output gradients logit by logit, and give a structure.

Per-sample gradients are formed as each logit arrives, so the gradients of all logits never lie in memory
side by side for a layer that does not keep them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wideangle.kernel._cover import Call, Cover
from wideangle.kernel._structures import Explicit, Lookup, Outer, Positions, Structure, Turned

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


class _Factorised(Builder):
    """Keeps inputs and output gradients: Outer for one position, Positions or Lookup for several."""

    def __init__(
        self, cover: Cover, shapes: tuple[torch.Size, ...], uses: list[Call], samples: int, outputs: int
    ):
        super().__init__(cover, shapes, uses, samples, outputs)
        rule = cover.rule
        assert rule.positions is not None
        parts = [rule.positions(cover.module, one.a) for one in uses]
        self.a = torch.cat(parts, dim=2) if len(parts) != 1 else parts[0]
        self.g: Tensor | None = None

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
            self.g = g.new_empty(groups, b, self.outputs, positions, fan_out)
        self.g[:, :, c] = g

    def finish(self) -> Structure:
        cover, g = self.cover, self.g
        assert g is not None
        flags = (cover.weight is not None, cover.bias is not None)
        if cover.rule.lookup:
            return Lookup(cover.names, self.shapes, self.a, g, *flags)
        if self.a.shape[0] == 1 and self.a.shape[2] == 1:
            return Outer(cover.names, self.shapes, self.a[0, :, 0].contiguous(), g[0, :, :, 0], *flags)
        return Positions(cover.names, self.shapes, self.a.contiguous(), g, *flags)


class _PerSample(Builder):
    """Forms per-sample gradients: always for normalisation layers, elsewhere where the cost model says so."""

    def __init__(
        self, cover: Cover, shapes: tuple[torch.Size, ...], uses: list[Call], samples: int, outputs: int
    ):
        super().__init__(cover, shapes, uses, samples, outputs)
        width = sum(shape.numel() for shape in shapes)
        self.j = torch.zeros(samples, outputs, width, dtype=self.dtype, device=self.device)
        rule = cover.rule
        self.patches = [rule.positions(cover.module, one.a) if rule.positions else None for one in uses]

    def add(self, c: int, deltas: Sequence[Tensor | None]) -> None:
        for one, patches, delta in zip(self.uses, self.patches, deltas, strict=True):
            if delta is None:
                continue
            weight, bias = self._gradient(one, patches, delta)
            parts = [part.flatten(1) for part in (weight, bias) if part is not None]
            self.j[:, c] += torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _gradient(
        self, one: Call, patches: Tensor | None, delta: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        cover, rule = self.cover, self.cover.rule
        if rule.gradient is not None:
            scale, shift = rule.gradient(cover.module, one.a, delta)
            return scale if cover.weight else None, shift if cover.bias else None
        assert rule.cotangents is not None
        assert patches is not None
        g = rule.cotangents(cover.module, delta)
        weight = torch.einsum("gbto,gbti->bgoi", g, patches) if cover.weight else None
        bias = g.sum(2).transpose(0, 1) if cover.bias else None
        return weight, bias

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
    kind: type[Builder] = _PerSample if explicit or cover.rule.gradient is not None else _Factorised
    if not cover.rule.transposed or cover.weight is None:
        return kind(cover, shapes, uses, samples, outputs)
    inner = kind(cover, (torch.Size(reversed(shapes[0])), *shapes[1:]), uses, samples, outputs)
    return _Turned(inner, shapes)
