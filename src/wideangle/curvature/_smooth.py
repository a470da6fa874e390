"""Chains of linear layers and smooth activations: what they are made of, and bounds of their Hessians.

For f = W_{L+1} s(... s(W_1 x)) and a unit direction u = (U_1, ..., U_{L+1}) of the weights, with
b_l = df/dh_l and s_l = b_l * act'(z_l),

    f'' = sum_l b_l . (act''(z_l) * (z_l')^2) + 2 sum_{l>=2} s_l . U_l h_{l-1}'

The first sum is bounded by the largest entry of b_l, of order 1/sqrt(width): that is what makes the
Hessian of a wide net small. Every factor is followed over the whole ball from its value at the centre.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from wideangle.nets.activations import ACTIVATIONS
from wideangle.nets.mlp import MLP

__all__ = ["DERIVATIVES", "HessianSup", "Layer", "chain", "hessian_sup", "off"]

_ROUNDING = 1 + 1e-9
_THRESHOLD = 20.0  # torch's softplus is z above it: a jump of log(1 + exp(-20)) = 2.1e-9, in the slope too
_UNSEEN = 37.0  # from here on that jump is below the rounding of float64

# largest |act'|, |act''|, |act'''| over the real line, rounded up
DERIVATIVES: dict[str, tuple[float, float, float]] = {
    "identity": (1.0, 0.0, 0.0),
    "tanh": (1.0, 4 / (3 * math.sqrt(3)), 2.0),
    "erf": (2 / math.sqrt(math.pi), 4 / math.sqrt(2 * math.pi * math.e), 4 / math.sqrt(math.pi)),
    "sigmoid": (0.25, 1 / (6 * math.sqrt(3)), 0.125),
    "softplus": (1.0, 0.25, 1 / (6 * math.sqrt(3))),
    "swish": (1.09984, 0.5, 0.3082),
    "gelu": (1.12905, 2 / math.sqrt(2 * math.pi), 0.7788),
}
FUNCTIONS = {
    **{name: ACTIVATIONS[name] for name in ("identity", "tanh", "erf", "swish", "gelu")},
    "sigmoid": torch.sigmoid,
    "softplus": nn.functional.softplus,
}
_MODULES = {
    nn.Identity: "identity",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "swish",
    nn.GELU: "gelu",
    nn.Softplus: "softplus",
}


@dataclass(frozen=True)
class Layer:
    """z = W (scale h) + bias, then the activation called `activation`; all numbers float64.

    `limit` is the z above which torch computes another function: the threshold of a softplus.
    """

    weight: Tensor
    bias: bool
    shift: Tensor
    scale: float
    activation: str
    limit: float = math.inf


def _layer(linear: nn.Linear, scale: float, activation: str) -> Layer:
    weight = linear.weight.detach().double()
    shift = torch.zeros_like(weight[:, 0]) if linear.bias is None else linear.bias.detach().double()
    limit = _THRESHOLD if activation == "softplus" else math.inf
    return Layer(weight, linear.bias is not None, shift, scale, activation, limit)


def chain(model: nn.Module) -> list[Layer] | str:
    """Return the layers of a `nets.MLP` or a Sequential of Linear and smooth activations, or why it is none."""
    hooked = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    if hooked:
        return f"a {type(hooked[0]).__name__} has forward hooks"
    seen = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    if len(set(seen)) < len(seen):
        return "layers share weights"
    if type(model) is MLP:
        return _of_mlp(model)
    if isinstance(model, (nn.Sequential, nn.Linear)):
        return _of_sequential(model)
    return f"no analytic bound is known for a {type(model).__name__}"


def _of_mlp(model: MLP) -> list[Layer] | str:
    name = next((n for n, f in FUNCTIONS.items() if f is model.activation), None)
    if name is None:
        return "the activation has no known bounds of its derivatives"
    if model.output_activation is not None:
        return "the output passes through a non-linear function"
    linears = [*model.hidden, model.head]
    if not all(type(linear) is nn.Linear for linear in linears):
        return "a layer of the net is no plain nn.Linear"
    names = [name] * len(model.hidden) + ["identity"]
    return [
        _layer(linear, float(scale), n)  # type: ignore[arg-type]
        for linear, scale, n in zip(linears, model.scales, names, strict=True)
    ]


def _flat(model: nn.Module) -> list[nn.Module]:
    return [part for child in model for part in _flat(child)] if type(model) is nn.Sequential else [model]


def _of_sequential(model: nn.Module) -> list[Layer] | str:
    layers: list[Layer] = []
    for part in _flat(model):
        kind = type(part)
        if isinstance(part, nn.modules.dropout._DropoutNd) or (kind is nn.Flatten and not layers):
            continue  # dropout in train mode was refused before
        if kind is nn.Linear:
            layers.append(_layer(part, 1.0, "identity"))  # type: ignore[arg-type]
            continue
        name = _MODULES.get(kind)
        if (kind is nn.GELU and part.approximate != "none") or (kind is nn.Softplus and part.beta != 1):
            name = None
        if kind is nn.Softplus and not part.threshold >= _THRESHOLD:  # type: ignore[operator]
            jump = math.log1p(math.exp(-part.threshold))  # type: ignore[operator]
            return f"Softplus(threshold={part.threshold}) jumps by {jump:.2g}; a threshold of 20 or more is needed"
        if name is None or not layers:
            return f"no bound of the derivatives is known for {kind.__name__} in this place"
        if name != "identity":
            if layers[-1].activation != "identity":
                return "two activations follow each other"
            last = layers[-1]
            limit = float(part.threshold) if kind is nn.Softplus else math.inf  # type: ignore[arg-type]
            layers[-1] = replace(last, activation=name, limit=limit)
    if not layers:
        return "the model has no linear layer"
    if layers[-1].activation != "identity":
        return "the output passes through a non-linear function"
    return layers


def off(layers: list[Layer], x: Tensor, outputs: Tensor) -> bool:
    """Tell whether a model's `outputs` (n, C) differ from the chain's by more than rounding in their dtype.

    Rounding by its worst case: (d + 3) eps |W| |h| a layer of d inputs, passed on by |W| and the largest slope.
    """
    eps, h = torch.finfo(outputs.dtype).eps, x.double()
    error = torch.zeros_like(h)
    for k, layer in enumerate(layers):
        size, h = layer.weight.abs(), layer.scale * h
        error = layer.scale * error @ size.T + (h.shape[1] + 3) * eps * (h.abs() @ size.T + layer.shift.abs())
        h = h @ layer.weight.T + layer.shift
        if k < len(layers) - 1:
            z, h = h, FUNCTIONS[layer.activation](h)
            error = DERIVATIVES[layer.activation][0] * error + 16 * eps * (h.abs() + z.abs())
            error = error + (2.1e-9 if layer.activation == "softplus" else 0.0)
    return outputs.shape != h.shape or not bool(((outputs.double() - h).abs() <= error).all())


@dataclass
class _Centre:
    """What a forward pass at the centre of the ball leaves: norms, z, and derivatives of the activations."""

    sizes: list[Tensor]  # |h_l|, l = 0..L, (n,)
    z: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]


def _forward(layers: list[Layer], x: Tensor) -> _Centre:
    h, found = x, _Centre([x.norm(dim=1)], [], [], [])
    for layer in layers[:-1]:
        z = (layer.scale * h) @ layer.weight.T + layer.shift
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            value = FUNCTIONS[layer.activation](leaf)
            (first,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
            second = (
                torch.autograd.grad(first.sum(), leaf)[0] if first.requires_grad else torch.zeros_like(first)
            )
        h = value.detach()
        found.sizes.append(h.norm(dim=1))
        found.z.append(z)
        found.first.append(first.detach())
        found.second.append(second.detach())
    return found


class HessianSup:
    """Upper bounds of sup |grad^2 f_c(x_i; w)|_2 over |w - w_0| <= R, for the layers of a chain.

    Cost: one forward pass and the spectral norm of every weight matrix once; for each radius one backward
    pass an output, elementwise.
    """

    def __init__(self, layers: list[Layer], x: Tensor):
        self.layers, self.centre = layers, _forward(layers, x)
        self.norms = [float(torch.linalg.matrix_norm(layer.weight, 2)) for layer in layers]
        self.reach = [  # |W_l|_2-Lipschitz part: sqrt(scale^2 |h|^2 + 1 if biased)
            (layer.scale**2 * size**2 + layer.bias).sqrt()
            for layer, size in zip(layers, self.centre.sizes, strict=True)
        ]

    def values(self, radius: float) -> Tensor:
        """Return the bounds, (n, C)."""
        shifts, pushes = self._moved(radius)
        head = self.layers[-1]
        one = self._two_layers if len(self.layers) == 2 else self._deep
        columns = [one(row, radius, shifts, pushes) for row in head.weight]
        return torch.stack(columns, dim=1) * _ROUNDING

    def jumps(self, radius: float) -> str:
        """Return why the model is not the smooth function on the ball: a softplus past its threshold."""
        shifts, _ = self._moved(radius)
        for layer, z, shift in zip(self.layers, self.centre.z, shifts, strict=False):
            if layer.limit < _UNSEEN and not bool((z.amax(1) + shift <= layer.limit).all()):
                return (
                    f"a softplus may pass its threshold {layer.limit:g} on the ball, where torch's function and its "
                    f"slope jump by {math.exp(-layer.limit):.2g}: no proof; a smaller radius or threshold=37 gives one"
                )
        return ""

    def _moved(self, radius: float) -> tuple[list[Tensor], list[Tensor]]:
        """Return bounds of |z_l - z_l0| and of sqrt(scale^2 |h_{l-1}|^2 + 1 if biased), l = 1..L+1."""
        shift = torch.zeros_like(self.centre.sizes[0])
        shifts, pushes = [], []
        for layer, norm, size, reach in zip(
            self.layers, self.norms, self.centre.sizes, self.reach, strict=True
        ):
            pushes.append((layer.scale**2 * (size + shift) ** 2 + layer.bias).sqrt())
            shifts.append(radius * reach + layer.scale * (norm + radius) * shift)
            shift = DERIVATIVES[layer.activation][0] * shifts[-1]
        return shifts, pushes

    def _slopes(self, k: int, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounds of |act'| and |act''| of every unit of layer k + 1, (n, width)."""
        first, second, third = DERIVATIVES[self.layers[k].activation]
        slope = (self.centre.first[k].abs() + second * shift[:, None]).clamp(max=first)
        return slope, (self.centre.second[k].abs() + third * shift[:, None]).clamp(max=second)

    def _two_layers(self, row: Tensor, radius: float, shifts: list[Tensor], pushes: list[Tensor]) -> Tensor:
        """max_i (A_i + sqrt(A_i^2 + 4 B_i^2)) / 2: the Hessian is block diagonal over hidden units."""
        scale = self.layers[1].scale
        slope, bend = self._slopes(0, shifts[0])
        a = scale * (row.abs() + radius) * bend * pushes[0][:, None] ** 2
        b = scale * slope * pushes[0][:, None]
        return ((a + (a**2 + 4 * b**2).sqrt()) / 2).amax(1)

    def _deep(self, row: Tensor, radius: float, shifts: list[Tensor], pushes: list[Tensor]) -> Tensor:
        count = len(self.layers)
        scales = [layer.scale for layer in self.layers]
        samples = len(self.centre.sizes[0])
        # forward: |z_l'| <= lines[l] . (|U_1|, ..., |U_{L+1}|)
        lines, steepest = [], []
        for k in range(count - 1):
            line = row.new_zeros(samples, count)
            line[:, k] = pushes[k]
            if k:
                line += (scales[k] * (self.norms[k] + radius) * steepest[-1])[:, None] * lines[-1]
            lines.append(line)
            steepest.append(self._slopes(k, shifts[k])[0].amax(1))
        form = row.new_zeros(samples, count, count)
        back = (scales[-1] * row).expand(samples, -1)  # df/dh_L at the centre
        drift = torch.full((samples,), scales[-1] * radius, dtype=row.dtype, device=row.device)
        outer = torch.ones(samples, dtype=row.dtype, device=row.device)  # |s_{L+1}|
        for k in range(count - 2, -1, -1):
            corner = (scales[k + 1] * outer * steepest[k])[:, None] * lines[k]
            form[:, k + 1, :] += corner
            form[:, :, k + 1] += corner
            bend = ((back.abs() + drift[:, None]) * self._slopes(k, shifts[k])[1]).amax(1)
            form += bend[:, None, None] * lines[k][:, :, None] * lines[k][:, None, :]
            if k:
                back, drift, outer = self._back(k, back, drift, shifts[k], radius)
        if not bool(torch.isfinite(form).all()):
            return torch.full_like(outer, math.inf)
        return torch.linalg.eigvalsh(form)[:, -1].clamp(min=0.0)

    def _back(
        self, k: int, back: Tensor, drift: Tensor, shift: Tensor, radius: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return df/dh of the layer below at the centre, how far it can be off, and the bound of |s_l|."""
        layer = self.layers[k]
        first, second, _ = DERIVATIVES[layer.activation]
        inner = self.centre.first[k] * back
        size = inner.norm(dim=1)
        off = first * drift + second * back.abs().amax(1) * shift
        below = layer.scale * (inner @ layer.weight)
        return below, layer.scale * (radius * size + (self.norms[k] + radius) * off), size + off


def hessian_sup(layers: list[Layer], x: Tensor) -> HessianSup:
    """Return the bounds of a chain on inputs (n, d)."""
    return HessianSup(layers, x.double())
