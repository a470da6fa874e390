"""What the claims of `assembly` share: sub-models, whole Hessians of them, sweeps over their number."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from wideangle import nets, seeds
from wideangle.curvature import WidthScaling, width_scaling
from wideangle.document import Figure, Series, Table
from wideangle.papers._descents import few_seeds
from wideangle.papers._frame import Finding, Setting
from wideangle.papers._samples import gaussian

DIMENSION = 5
HALF = (-0.6, -0.4)  # -1/2 -+ 0.1, for independent sub-models
NETWORK = (-0.6, -0.35)  # the same for networks, where max |v| adds sqrt(log m)
FLAT = (-0.2, 0.2)
NARROW = (-0.6, -0.25)  # in the number of few sub-models: -1/2, flatter while they are few

Build = Callable[[int, int], nets.Assembly]
Cell = dict[str, float]


class Feature(nn.Module):
    """A sub-model with a weight vector only: g(x) = function(w . x / sqrt(d)), w ~ N(0, I)."""

    def __init__(self, function: Callable[[Tensor], Tensor], draws: torch.Generator):
        super().__init__()
        self.function = function
        self.w = nn.Parameter(torch.randn(DIMENSION, generator=draws, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, 1) values."""
        return self.function(x @ self.w[:, None] / math.sqrt(len(self.w)))


def half_square(z: Tensor) -> Tensor:
    """Return z^2 / 2, whose second derivative is 1."""
    return z * z / 2


def third_cube(z: Tensor) -> Tensor:
    """Return z^3 / 3, whose second derivative 2 z has no bound."""
    return z**3 / 3


def tiny_net(draws: torch.Generator, inputs: int = DIMENSION, width: int = 5, depth: int = 1) -> nets.MLP:
    """Return a freshly drawn tanh net with one output and weights N(0, 1)."""
    return nets.MLP(inputs, 1, width=width, depth=depth, activation="tanh", generator=draws).double()


def bounded_net(draws: torch.Generator, inputs: int = DIMENSION) -> nn.Module:
    """Return a two-layer net with last weights of +-1: its Hessian norm at an input has a bound for any draw."""
    net = tiny_net(draws, inputs)
    with torch.no_grad():
        net.head.weight.sign_()
    return net


KINDS: dict[str, Callable[[torch.Generator], nn.Module]] = {
    "tiny MLPs": bounded_net,
    "Gaussian MLPs": tiny_net,
    "sin": lambda draws: Feature(torch.sin, draws),
    "quadratic": lambda draws: Feature(half_square, draws),
    "cubic": lambda draws: Feature(third_cube, draws),
}


def sample(seed: int) -> Tensor:
    """Return one input of norm sqrt(d), (1, d)."""
    return gaussian(1, DIMENSION, seed) * math.sqrt(DIMENSION)


def independent(
    kind: str, m: int, seed: int, coefficients: Tensor | str = "signs", scale: str | float = "sqrt"
) -> nets.Assembly:
    """Return m freshly drawn sub-models of a kind, put together."""
    draws = seeds.generator(seed, "assembly", kind, m)
    parts = [KINDS[kind](draws) for _ in range(m)]
    return nets.Assembly(parts, coefficients, scale, generator=draws)  # type: ignore[arg-type]


def whole(model: nn.Module, x: Tensor) -> tuple[float, float]:
    """Return |grad^2 f| and |grad f| of a model with one output at one input, from the whole Hessian."""
    named = {name: weight.detach() for name, weight in model.named_parameters()}
    flat = torch.cat([weight.flatten() for weight in named.values()])

    def output(w: Tensor) -> Tensor:
        pieces = w.split([weight.numel() for weight in named.values()])
        given = {n: q.view_as(p) for (n, p), q in zip(named.items(), pieces, strict=True)}
        return torch.func.functional_call(model, given, (x,))[0, 0]

    hessian = torch.func.hessian(output)(flat)
    return float(torch.linalg.matrix_norm(hessian, ord=2)), float(torch.func.grad(output)(flat).norm())


def blocks(assembly: nets.Assembly, x: Tensor) -> Cell:
    """Return the norms of an assembly of one kind of sub-model, from all whole Hessians at once.

    `assembly_hessian_norm` takes the blocks by Lanczos; this takes every sub-model's Hessian as a matrix.
    """
    return combined(*part_norms(assembly, x), assembly.coefficients, assembly.scale)


def part_norms(assembly: nets.Assembly, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return |grad^2 g_i| and |grad g_i| of sub-models of one kind, (m,) each."""
    parts = list(assembly.sub_models)
    stacked, _ = torch.func.stack_module_state(parts)
    shapes = {name: weight.shape[1:] for name, weight in stacked.items()}
    flat = torch.cat([weight.detach().flatten(1) for weight in stacked.values()], 1)

    def output(w: Tensor) -> Tensor:
        pieces = w.split([shape.numel() for shape in shapes.values()])
        given = {name: q.view(shape) for (name, shape), q in zip(shapes.items(), pieces, strict=True)}
        return torch.func.functional_call(parts[0], given, (x,))[0, 0]

    hessians = torch.func.vmap(torch.func.hessian(output), chunk_size=64)(flat)
    slopes = torch.func.vmap(torch.func.grad(output))(flat).norm(dim=1)
    return torch.linalg.eigvalsh(hessians).abs().amax(1), slopes


def combined(norms: Tensor, slopes: Tensor, coefficients: Tensor, scale: float) -> Cell:
    """Return the norms of an assembly from those of its sub-models."""
    sizes = coefficients.abs() / scale
    squares = (sizes * slopes) ** 2
    return cell(
        float((sizes * norms).max()),
        float(squares.sum().sqrt()),
        float(squares.sum() ** 2 / (squares**2).sum()),
    )


def cell(norm: float, slope: float, effective: float = math.nan) -> Cell:
    """Return what is read off one assembly: norms, their ratios, the effective number of sub-models."""
    return {
        "|H|": norm,
        "|grad f|": slope,
        "|H| / |grad f|": norm / slope,
        "|H| / |grad f|^2": norm / slope**2,
        "effective number": effective,
    }


class _Cell(nn.Module):
    def __init__(self, m: int, seed: int):
        super().__init__()
        self.key = (m, seed)


def sweep(
    widths: list[int], over: list[int], measure: Callable[[int, int], Cell]
) -> Callable[[str], WidthScaling]:
    """Measure every (width, seed) once; return the function name -> scaling of that measurement."""
    cells = {(m, seed): measure(m, seed) for m in widths for seed in over}

    def scaling(name: str) -> WidthScaling:
        def metric(model: nn.Module) -> float:
            assert isinstance(model, _Cell)
            return cells[model.key][name]

        return width_scaling(_Cell, widths, metric, over, jobs=1, label=name)

    return scaling


def counts(setting: Setting) -> list[int]:
    """Return the numbers of sub-models of a sweep."""
    return [4, 16, 64, 256, 1024][: setting.pick(3, 4, 5)]


def inside(found: WidthScaling, bounds: tuple[float, float]) -> bool:
    """Return whether the slope lies in an interval."""
    return bounds[0] <= found.slope <= bounds[1]


def slope_text(found: WidthScaling) -> str:
    """Return the slope with its interval."""
    return f"{found.slope:.2f} ({found.interval[0]:.2f} to {found.interval[1]:.2f})"


def table(title: str, rows: dict[str, WidthScaling], variable: str = "m") -> Table:
    """Return geometric means over seeds by width, with the slopes; the rows share their widths."""
    widths = next(iter(rows.values())).widths
    heads = ["measured", *(f"{variable}={w}" for w in widths), "slope", "95 % interval", "verdict"]
    cells = [
        [
            name,
            *found.means,
            found.slope,
            f"{found.interval[0]:.2f} to {found.interval[1]:.2f}",
            found.verdict,
        ]
        for name, found in rows.items()
    ]
    return Table(title, heads, cells)


def figure(title: str, rows: dict[str, WidthScaling], variable: str = "number of sub-models m") -> Figure:
    """Return the curves of several measurements over width, beside slope -1/2."""
    first = next(iter(rows.values()))
    shown = [float(width) for width in first.widths]
    start = first.means[0]
    curves = [
        Series(name, [float(w) for w in found.widths], list(found.means)) for name, found in rows.items()
    ]
    guide = Series("slope -1/2", shown, [start * math.sqrt(shown[0] / w) for w in shown], "dashed")
    return Figure(
        title=title,
        x_label=variable,
        y_label="geometric mean over seeds",
        x_log=True,
        y_log=True,
        series=[*curves, guide],
        caption="; ".join(f"{name}: slope {found.slope:.2f}" for name, found in rows.items()) + ".",
    )


def slope_finding(
    setting: Setting, found: WidthScaling, bounds: tuple[float, float], title: str, detail: str = ""
) -> Finding:
    """Return the finding that a slope lies in an interval."""
    told = f"holds with a slope in [{bounds[0]:g}, {bounds[1]:g}]"
    return Finding(
        inside(found, bounds),
        f"|H| {found.means[0]:.3g} at m = {found.widths[0]}, {found.means[-1]:.3g} at m = {found.widths[-1]}; slope "
        f"{slope_text(found)}",
        (f"{told}; {detail}" if detail else told) + few_seeds(setting),
        found.seeds,
        tables=[table(title, {"|H|": found})],
    )


def expected_largest(m: int) -> float:
    """Return E max_i |z_i| for m independent N(0, 1): the integral of 1 - erf(t / sqrt(2))^m."""
    from scipy.special import erf

    grid = np.linspace(0, 12, 20001)
    return float(np.trapezoid(1 - erf(grid / math.sqrt(2)) ** m, grid))
