"""The nets of `dag`, by row of its table, and how the Hessian norm of each falls with the width."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wideangle import seeds
from wideangle.curvature import hessian_norm
from wideangle.curvature.scaling import WidthScaling, width_scaling
from wideangle.document import Figure, Series
from wideangle.nets import DAG
from wideangle.papers._frame import Setting

FEATURES, THIN = 10, 4
FALLS, STAYS = -0.25, 0.2  # a slope under the first is a transition, one within the second none
Factory = Callable[[int, int], DAG]


def draws(seed: int, *names: str | int) -> torch.Generator:
    """Return the generator of one net or sample."""
    return seeds.generator(seed, "papers", "dag", *names)


def inputs(seed: int, count: int = 1, features: int = FEATURES) -> Tensor:
    """Return inputs of norm sqrt(d), float64."""
    x = torch.randn(count, features, generator=draws(seed, "x"), dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True) * math.sqrt(features)


def fcn(m: int, seed: int, features: int = FEATURES) -> DAG:
    """Return [m, m]."""
    return DAG.fcn(features, 1, width=(m, m), generator=draws(seed)).double()


def dense(m: int, seed: int) -> DAG:
    """Return [m, m, m], every layer seeing all earlier hidden ones."""
    return DAG.densenet(FEATURES, 1, width=(m, m, m), generator=draws(seed)).double()


def narrow(m: int, seed: int, features: int = FEATURES) -> DAG:
    """Return [m, 4, m]."""
    return DAG.bottleneck(features, 1, width=m, narrow=THIN, generator=draws(seed)).double()


def narrow_skips(m: int, seed: int) -> DAG:
    """Return [m, 4, m] with dense skips."""
    return DAG.bottleneck(FEATURES, 1, width=m, narrow=THIN, skips=True, generator=draws(seed)).double()


def random(m: int, seed: int, features: int = FEATURES) -> DAG:
    """Return layers 512-512 whose every neuron picks m random predecessors."""
    return DAG.random(features, 1, layers=(512, 512), in_degree=m, generator=draws(seed)).double()


def uneven(m: int, seed: int) -> DAG:
    """Return layers 512-512 with in-degrees uniform in [m, m^1.5]."""
    return DAG.random(FEATURES, 1, layers=(512, 512), in_degree=(m, m**1.5), generator=draws(seed)).double()


def narrow_first(m: int, seed: int) -> DAG:
    """Return [4, m]."""
    return DAG.fcn(FEATURES, 1, width=(THIN, m), generator=draws(seed)).double()


def narrow_last(m: int, seed: int) -> DAG:
    """Return [m, 4]: the output has the in-degree 4."""
    return DAG.fcn(FEATURES, 1, width=(m, THIN), generator=draws(seed)).double()


def one_thin(m: int, seed: int) -> DAG:
    """Return [m, m] with one neuron of in-degree 2 in the second layer."""
    whole = DAG.fcn(FEATURES, 1, width=(m, m))
    thin = whole.layers()[2][0]
    second = whole.edges(2)
    kept = [edge for edge in second if edge[1] == thin][:2] + [edge for edge in second if edge[1] != thin]
    edges = whole.edges(1) + kept + whole.edges(3)
    return DAG(edges, inputs=range(FEATURES), generator=draws(seed)).double()


def thin_everywhere(m: int, seed: int) -> DAG:
    """Return layers m-m whose every neuron picks 4 random predecessors, and an output that sees all of them."""
    return DAG.random(
        FEATURES, 1, layers=(m, m), in_degree=THIN, output_in_degree=2 * m + FEATURES, generator=draws(seed)
    ).double()


ROWS: dict[str, tuple[Factory, bool]] = {  # and whether the in-degrees grow with m
    "[m, m]": (fcn, True),
    "[m, m, m], dense": (dense, True),
    "[m, 4, m]": (narrow, False),
    "[m, 4, m], dense skips": (narrow_skips, True),
    "random, in-degree m": (random, True),
    "random, in-degree m to m^1.5": (uneven, True),
    "[4, m]": (narrow_first, False),
    "[m, 4]": (narrow_last, False),
    "[m, m], one neuron of in-degree 2": (one_thin, False),
}
KEPT = {  # another implementation and other draws, three seeds: slope
    "[m, m]": -0.43,
    "[m, m, m], dense": -0.39,
    "[m, 4, m]": -0.02,
    "[m, 4, m], dense skips": -0.44,
    "random, in-degree m": -0.35,
    "random, in-degree m to m^1.5": -0.45,
    "[4, m]": -0.03,
    "[m, m], one neuron of in-degree 2": -0.51,
}


def widths(setting: Setting, row: str) -> list[int]:
    """Return the widths m of a row at this size."""
    if row == "random, in-degree m to m^1.5":
        return [8, 16, 32, 64]
    if row == "random, in-degree m":
        return [8, 32, 128] if setting.size == "smoke" else [8, 16, 32, 64, 128, 256]
    if setting.size == "smoke":
        return [16, 64, 256]
    return [16, 32, 64, 128, 256] if setting.size == "cpu" else [16, 32, 64, 128, 256, 512, 1024]


def few_widths(setting: Setting) -> list[int]:
    """Return the widths of the measurements that take long."""
    return [16, 64, 256] if setting.size == "smoke" else [16, 32, 64, 128, 256]


def draws_of(setting: Setting) -> list[int]:
    """Return the seeds of a slope: six at size smoke, eight at cpu, ten at paper."""
    return setting.at_least(setting.pick(6, 8, 10))


def norm(net: nn.Module, x: Tensor, radius: float = 0.0, points: int = 3) -> float:
    """Return the largest Hessian norm of the net's outputs at x, at its weights or on a ball."""
    return hessian_norm(net, x, radius, points=points).value


def scaling(
    setting: Setting,
    name: str,
    factory: Callable[[int, int], nn.Module],
    columns: list[int],
    metric: Callable[[nn.Module], float],
    drawn: list[int] | None = None,
) -> WidthScaling:
    """Return a width scaling, kept for the run under `name`; seeds as `draws_of` where `drawn` is left out."""
    chosen = drawn or draws_of(setting)
    return setting.once(
        ("scaling", name), lambda: width_scaling(factory, columns, metric, chosen, jobs=1, label=name)
    )


def row_scaling(setting: Setting, row: str) -> WidthScaling:
    """Return the width scaling of a row of the table."""
    x = inputs(setting.seed)
    return scaling(setting, row, ROWS[row][0], widths(setting, row), lambda net: norm(net, x))


@dataclass(frozen=True)
class Row:
    """One row of a table of slopes: what was measured, its values at the ends and the slope."""

    name: str
    found: WidthScaling

    @property
    def falls(self) -> bool:
        """Whether it is a transition to linearity by the slope alone."""
        return self.found.slope < FALLS

    @property
    def stays(self) -> bool:
        """Whether it is none by the slope alone."""
        return abs(self.found.slope) < STAYS

    def cells(self) -> list[object]:
        """Return the row: name, first and last width, their values, slope, its interval."""
        low, high = self.found.interval
        means = self.found.means
        return [
            self.name,
            *(self.found.widths[i] for i in (0, -1)),
            means[0],
            means[-1],
            self.found.slope,
            low,
            high,
        ]

    def text(self) -> str:
        """Return the row as a short phrase."""
        means = self.found.means
        return f"{self.name}: {means[0]:.3g} to {means[-1]:.3g}, slope {self.found.slope:.2f}"


HEADS = ["net", "smallest m", "largest m", "value there", "value there ", "slope", "95 % from", "to"]


def figure(rows: list[Row], title: str, y_label: str) -> Figure:
    """Return the values of some rows against m."""
    series = [Series(row.name, [float(m) for m in row.found.widths], list(row.found.means)) for row in rows]
    return Figure(title=title, x_label="m", y_label=y_label, x_log=True, y_log=True, series=series)
