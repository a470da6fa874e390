"""A net put together from sub-models: their weighted sum, scaled so that no size grows with their number."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wideangle import seeds
from wideangle.errors import InputError

__all__ = ["Assembly"]

Coefficients = Literal["signs", "normal"] | Tensor | None
Scale = Literal["sqrt", "mean"] | float


class Assembly(nn.Module):
    """A weighted sum of m sub-models of the same input.

        f(x) = (1 / s) sum_i v_i g_i(x),   s = sqrt(m) ("sqrt"), m ("mean") or a number

    With independent sub-models and s = sqrt(m) the gradient of f keeps its size while the Hessian shrinks
    like 1/sqrt(m), unless one v_i g_i dominates (`curvature.assembly_hessian_norm`, `curvature.dominance`).
    With s = m both shrink. Sub-models may be any modules: assemblies too, or one module several times,
    whose weights are then shared. Cost: one forward pass of every sub-model.

    Args:
        sub_models: modules that take the same input and return tensors of one shape.
        coefficients: the v_i: None for ones, "signs" for +1 or -1 with equal chance, "normal" for N(0, 1),
            or a tensor (m,).
        scale: "sqrt", "mean" or a positive number s.
        trainable_coefficients: make v a parameter; by default it is a buffer.
        generator: where random coefficients are drawn from; by default a fresh one with a fixed seed.

    Raises:
        InputError: no sub-model, something that is no module, coefficients of another length or not
            finite, an unknown name, a scale that is not positive; in the forward pass, outputs that are no
            tensors of one shape and type.

    Example:
        >>> parts = [nn.Linear(2, 1, bias=False) for _ in range(4)]
        >>> for part in parts:
        ...     _ = nn.init.ones_(part.weight)
        >>> Assembly(parts)(torch.ones(1, 2)).item()  # 4 times 2 over sqrt(4)
        4.0

    Reference: Liu, Zhu and Belkin 2022 (arXiv 2203.05104), which reads networks as such assemblies, built
    up layer by layer from neurons.
    """

    def __init__(
        self,
        sub_models: Iterable[nn.Module],
        coefficients: Coefficients = None,
        scale: Scale = "sqrt",
        trainable_coefficients: bool = False,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        parts = list(sub_models)
        if not parts:
            raise InputError("an assembly needs at least one sub-model, got none")
        strange = [type(part).__name__ for part in parts if not isinstance(part, nn.Module)]
        if strange:
            raise InputError(f"sub-models must be modules, got a {strange[0]}")
        self.sub_models = nn.ModuleList(parts)
        values = _coefficients(coefficients, parts, generator)
        self.coefficients: Tensor
        if trainable_coefficients:
            self.coefficients = nn.Parameter(values)
        else:
            self.register_buffer("coefficients", values)
        self.scale = _scale(scale, len(parts))

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted sum, of the shape of one sub-model's output."""
        outputs = self._outputs(x)
        first = outputs[0]
        for number, output in enumerate(outputs):
            if _shape(output) is None or _shape(output) != _shape(first):
                kinds = [_shape(o) or type(o).__name__ for o in (first, output)]
                raise InputError(
                    f"sub-models must return tensors of one shape; the first returned {kinds[0]}, number {number} "
                    f"{kinds[1]}"
                )
        _check_types([*outputs, self.coefficients])
        stacked, v = torch.stack(outputs), self.coefficients
        v = v if v.dtype == stacked.dtype else v.to(stacked.dtype)  # they differ under autocast only
        return torch.tensordot(v, stacked, dims=1) / self.scale

    def _outputs(self, x: Tensor) -> list[Tensor]:
        try:
            return [part(x) for part in self.sub_models]
        except RuntimeError as error:
            types = dict.fromkeys(str(p.dtype) for p in self.sub_models.parameters() if p.is_floating_point())
            if len(types) < 2:
                raise
            raise InputError(
                f"the sub-models hold parameters of {' and '.join(types)} and do not all take this input; "
                "cast the assembly to one type, such as assembly.double()"
            ) from error

    def extra_repr(self) -> str:
        """Return what `print` shows beside the sub-models."""
        return f"scale={self.scale:g}, trainable_coefficients={isinstance(self.coefficients, nn.Parameter)}"


def _shape(output: Any) -> tuple[int, ...] | None:
    """Return the shape of a tensor, or of what stands for one while the module is traced."""
    return tuple(output.shape) if hasattr(output, "shape") and hasattr(output, "dtype") else None


def _check_types(tensors: list[Tensor]) -> None:
    """Raise where outputs and coefficients are not of one type; under autocast they need not be."""
    types = dict.fromkeys(str(tensor.dtype) for tensor in tensors)
    if len(types) > 1 and not torch.is_autocast_enabled(tensors[0].device.type):
        raise InputError(
            f"the outputs of the sub-models and the coefficients are of {' and '.join(types)}; cast the assembly "
            "to one type, such as assembly.double()"
        )


def _coefficients(wanted: Coefficients, parts: list[nn.Module], generator: torch.Generator | None) -> Tensor:
    count = len(parts)
    like = next((p for part in parts for p in part.parameters() if p.is_floating_point()), None)
    terms = {} if like is None else {"dtype": like.dtype, "device": like.device}
    if isinstance(wanted, Tensor):
        values = wanted.detach().clone().to(**terms)
        if values.shape != (count,) or not values.is_floating_point():
            raise InputError(
                f"coefficients are {wanted.dtype} {tuple(wanted.shape)}; expected ({count},) floats"
            )
        if not bool(torch.isfinite(values).all()):
            raise InputError("coefficients must be finite")
        return values
    if wanted is None:
        return torch.ones(count, **terms)
    draws = generator or seeds.generator(0, "nets", "assembly")
    if wanted == "signs":
        values = torch.randint(0, 2, (count,), generator=draws, device=draws.device).double() * 2 - 1
    elif wanted == "normal":
        values = torch.randn(count, generator=draws, device=draws.device, dtype=torch.float64)
    else:
        raise InputError(
            f"unknown coefficients {wanted!r}; choose signs or normal, or give a tensor ({count},)"
        )
    return values.to(**terms) if terms else values.to(torch.get_default_dtype())


def _scale(wanted: Scale, count: int) -> float:
    if isinstance(wanted, str):
        if wanted not in ("sqrt", "mean"):
            raise InputError(f"unknown scale {wanted!r}; choose sqrt or mean, or give a positive number")
        return math.sqrt(count) if wanted == "sqrt" else float(count)
    number = float(wanted)
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"scale must be positive and finite, got {wanted}")
    return number
