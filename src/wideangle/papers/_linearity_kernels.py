"""The claims of `linearity` about the kernel of other architectures, along gradient descent on images of digits."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from operator import attrgetter

from torch import Tensor

from wideangle.curvature.scaling import WidthScaling
from wideangle.document import Table
from wideangle.papers import _linearity_models as models
from wideangle.papers._descents import few_seeds
from wideangle.papers._frame import Finding, Setting, SkippedError
from wideangle.papers._linearity_hessian import Test, doubling, said, sweep, verdicts
from wideangle.papers._linearity_models import Factory
from wideangle.papers._linearity_training import GOAL, HEADS, Trained
from wideangle.papers._samples import signs

NETWORKS = ["FCN", "CNN", "ResNet", "DenseNet", "random DAG", "attention", "tanh output", "bottleneck of 8"]

# open, with all architectures together: in six digits the kernel of a few tens of channels moves by its own size,
# where O(1 / sqrt(m)) says nothing yet (size cpu: CNN -0.45, interval -0.70 to -0.17; ResNet -0.22, -0.57 to 0.05)
FEW_CHANNELS = ("CNN", "ResNet")


def problem(setting: Setting) -> tuple[Tensor, Tensor]:
    """Return images of digits, and one half up or down by parity."""
    found = setting.load("digits", setting.pick(3, 6, 16))
    return models.scaled(found.x), signs(found.y) / 2


def factory(name: str, shape: tuple[int, ...]) -> Factory:
    """Return what builds a network of that name for images of a shape."""
    inputs = math.prod(shape)
    more = {
        "random DAG": partial(models.random_graph, inputs=inputs),
        "bottleneck of 8": partial(models.narrowed, narrow=8, inputs=inputs),
    }
    return {**models.images(shape), **more}[name]


def drawn(setting: Setting, name: str) -> list[int]:
    """Return the seeds of a network: at size smoke as many as its cost allows, six and eight above."""
    few = {"CNN": 4, "ResNet": 4, "DenseNet": 4, "random DAG": 6, "attention": 8}
    return setting.at_least(setting.pick(few.get(name, 6), 6, 8))


def widths(setting: Setting, name: str) -> list[int]:
    """Return channels, numbers per token, in-degrees or units."""
    if name in ("CNN", "ResNet"):
        small = {"CNN": [16, 32, 64], "ResNet": [16, 32]}[name]
        return small if setting.size == "smoke" else doubling(16, 64 if name == "ResNet" else 128)
    if setting.size == "smoke":
        return {"attention": [16, 48, 128], "random DAG": [8, 32, 128]}.get(name, [32, 96, 256])
    first = {"attention": 16, "random DAG": 8}.get(name, 32)
    return doubling(first, setting.pick(0, 256, 1024 if name != "random DAG" else 256))


def trained(setting: Setting, name: str, width: int, seed: int) -> Trained:
    """Return a network after its run, kept for the other claims."""
    x, y = problem(setting)

    def make() -> Trained:
        return Trained(factory(name, tuple(x.shape[1:]))(width, seed), x, y, skip=2)

    return setting.once(("linearity images", name, width, seed), make)


def change_sweep(setting: Setting, name: str) -> WidthScaling:
    """Return how the largest change of a network's kernel scales with its width."""
    build = partial(trained, setting, name)
    key = ("kernel on images", name)
    return sweep(
        setting, key, build, widths(setting, name), attrgetter("change"), drawn(setting, name), jobs=1
    )


def missed(setting: Setting, name: str) -> int:
    """Return how many runs of a network do not reach the loss."""
    return sum(
        not trained(setting, name, m, s).reached for m in widths(setting, name) for s in drawn(setting, name)
    )


def networks(setting: Setting) -> list[str]:
    """Return the architectures measured at a size: the ResNet, the dearest, not at smoke."""
    return [name for name in NETWORKS if setting.size != "smoke" or name != "ResNet"]


def change(name: str) -> Test:
    """Return the test that the kernel's change vanishes with the width of an architecture."""

    def test(setting: Setting) -> Finding:
        if name not in networks(setting):
            raise SkippedError(f"two widths of a {name} cost what three others do: see size cpu")
        found, lost = change_sweep(setting, name), missed(setting, name)
        few_channels = "; open: too few channels for the limit, the kernel may move by its own size"
        few_channels = few_channels if name in FEW_CHANNELS else ""
        return Finding(
            found.verdict == "transitions" and not lost,
            said(found) + (f"; {lost} runs miss the loss {GOAL:g}" if lost else ""),
            f"{len(problem(setting)[0])} digits, |K_t - K_0| / |K_0|, Frobenius, full batches at 1 / lambda_max(K_0); "
            "holds with the verdict 'transitions' (slope under -0.25, interval under -0.2) and no run that misses the "
            f"loss; 95 % interval, {found.method}{few_channels}{few_seeds(setting)}",
            found.seeds,
        )

    test.__doc__ = f"{name} on images of digits: the kernel's change along gradient descent against width."
    return test


def all_changes(setting: Setting) -> Finding:
    """All architectures: the kernel's change vanishes but for a non-linear output and a narrow layer."""
    sweeps = {name: change_sweep(setting, name) for name in networks(setting)}
    lost = {name: count for name in networks(setting) if (count := missed(setting, name))}
    found = verdicts(setting, "Kernel change along gradient descent, images of digits", HEADS[4], sweeps)
    cells = []
    for name in networks(setting):
        for width in widths(setting, name):
            runs = [trained(setting, name, width, seed) for seed in drawn(setting, name)]
            columns = [[len(r.losses) - 1, r.losses[-1], r.change, r.distance] for r in runs]
            cells.append([name, width, *(sum(column) / len(runs) for column in zip(*columns, strict=True))])
    table = Table("Runs on images of digits", HEADS, cells, caption="means over seeds")
    misses = (
        "; runs that miss the loss: " + ", ".join(f"{n} {count}" for n, count in lost.items()) if lost else ""
    )
    return replace(
        found, holds=found.holds and not lost, measured=found.measured + misses, tables=[*found.tables, table]
    )
