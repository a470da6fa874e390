"""The claims of `conditioning` about training: deeper networks converge faster."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wideangle import nets, seeds
from wideangle.document import Figure, Series, Table
from wideangle.kernel import eigenpairs, infinite
from wideangle.kernel.convergence import steps_to
from wideangle.papers._frame import Finding, Setting, SkippedError, absent
from wideangle.papers._samples import signs, unit

DEPTHS = [1, 2, 3, 5, 10]
KEPT = {"parity": [3099, 1559, 1041, 641, 379], "random": [9604, 4642, 2976, 1760, 922]}
PRINTED = {1: 95.98, 3: 97.43, 6: 97.57, 8: 97.52, 10: 97.39, 12: 97.19}  # Table 1, MNIST test accuracy


def faster(setting: Setting) -> Finding:
    """Figure 4 in the kernel regime: deeper networks need fewer steps, at step 1 / lambda_max each."""
    cells, holds, apart = [], True, 0.0
    for seed in setting.seeds:
        found = setting.load("digits", 300, seed=seed)
        x = unit(found.x)
        draws = seeds.generator(seed, "random labels")
        random = torch.randint(0, 2, (len(x),), generator=draws)
        spectra = [eigenpairs(x @ x.T), *(eigenpairs(infinite.ntk(x, depth)) for depth in DEPTHS)]
        for name, y in (("parity", signs(found.y)), ("random", signs(random))):
            goal = 0.005 * float(y @ y)
            linear, *row = (steps_to(s, y, 1 / float(s.eigenvalues[0]), goal) for s in spectra)
            holds &= all(b < a for a, b in pairwise(row)) and row[0] < linear
            apart = max(apart, float(np.abs(np.log(np.array(row) / KEPT[name])).max()))
            cells.append([name, seed, linear, *row])
    kept = [[f"{name}, another draw", "", None, *row] for name, row in KEPT.items()]
    heads = ["labels", "seed", "linear network", *(f"L={d}" for d in DEPTHS)]
    return Finding(
        holds and apart < math.log(1.25),
        "; ".join(f"{c[0]}: {', '.join(f'{v:,.0f}' for v in c[3:])} steps" for c in cells[:2])
        + " at L = 1, 2, 3, 5, 10 (linear: never)",
        f"falls with L, under the linear network's; within {math.exp(apart) - 1:.0%} of another draw's (holds within "
        "25 %)",
        setting.seeds,
        tables=[Table("Steps to 1 % of the loss, digits n = 300, infinite width", heads, [*cells, *kept])],
    )


def _descend(net: nn.Module, x: Tensor, y: Tensor, step: float, epochs: int, batch: int, seed: int) -> float:
    """Return the mean cross-entropy on all samples after the last epoch of plain SGD; inf where it overflows."""
    draws = seeds.generator(seed, "conditioning", "batches")
    parameters = list(net.parameters())
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=draws).split(batch):
            gradients = torch.autograd.grad(functional.cross_entropy(net(x[rows]), y[rows]), parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(gradient, alpha=step)
    with torch.no_grad():
        loss = float(functional.cross_entropy(net(x), y))
    return loss if math.isfinite(loss) else math.inf


def _network(d: int, width: int, depth: int, seed: int) -> nn.Module:
    return nets.MLP(
        d, 10, width=width, depth=depth, generator=seeds.generator(seed, "conditioning", "sgd", depth)
    )


def sgd(setting: Setting) -> Finding:
    """Figure 4: cross-entropy by SGD, each depth at its best rate of a grid; last epoch's training loss."""
    width, epochs = setting.pick(256, 512, 512), setting.pick(20, 20, 500)
    batch, n = (500, None) if setting.size == "paper" else (100, setting.pick(500, 1000, 0))
    depths = [1, 3, 6] if setting.size != "paper" else [1, 3, 6, 8, 10]
    rates = [3.0, 10.0, 30.0, 100.0]
    names = ["digits"] if setting.size == "smoke" else ["digits", "mnist"]
    if setting.size == "paper":
        names = ["mnist", "fashion-mnist"]
    cells, holds, missing, lines = [], True, [], []
    for name in names:
        try:
            table = np.array(
                [_grid(setting, name, n, s, depths, rates, width, epochs, batch) for s in setting.seeds]
            )
        except SkippedError:
            missing.append(name)
            continue
        mean = table.mean(0)
        best, chosen = mean.min(1), mean.argmin(1)
        holds &= all(b < a for a, b in pairwise(best))
        for k, depth in enumerate(depths):
            cells.append([name, depth, rates[int(chosen[k])], float(best[k]), *(float(v) for v in mean[k])])
        lines.append(Series(name, [float(d) for d in depths], best.tolist()))
    if not cells:
        raise SkippedError(absent(missing))
    heads = ["data", "L", "best rate", "loss at it", *(f"rate {r:g}" for r in rates)]
    return Finding(
        holds,
        "; ".join(f"{c[0]} L = {c[1]}: {c[3]:.3g} (rate {c[2]:g})" for c in cells),
        f"loss after the last of {epochs} epochs, width {width}, batches of {batch}, mean over seeds. "
        + absent(missing),
        setting.seeds,
        figures=[Figure("Training loss after the last epoch", "depth", "cross-entropy", lines, y_log=True)],
        tables=[Table("Cross-entropy by SGD, each depth at its best rate", heads, cells)],
    )


def _grid(
    setting: Setting,
    name: str,
    n: int | None,
    seed: int,
    depths: list[int],
    rates: list[float],
    width: int,
    epochs: int,
    batch: int,
) -> list[list[float]]:
    """Return the last losses, one row a depth, one column a rate."""
    found = setting.load(name, n, seed=seed)
    x = unit(found.x).float() * math.sqrt(found.x[0].numel())
    return [
        [_descend(_network(x.shape[1], width, d, seed), x, found.y, r, epochs, batch, seed) for r in rates]
        for d in depths
    ]


def test_accuracy(setting: Setting) -> Finding:
    """Table 1: MNIST test accuracy rises to L = 6 and falls from L = 8 on."""
    if setting.size != "paper":
        raise SkippedError(
            "needs 500 epochs on the 60,000 images of MNIST for six depths: run it at size paper"
        )
    train, test = setting.load("mnist", None), setting.load("mnist", None, split="test")
    x, z = (unit(s.x).float() * 28.0 for s in (train, test))
    cells = []
    for depth, printed in PRINTED.items():
        scores = []
        for seed in setting.seeds:
            net = _network(784, 512, depth, seed)
            _descend(net, x, train.y, 1.0, 500, 500, seed)
            with torch.no_grad():
                scores.append(float((net(z).argmax(1) == test.y).double().mean()) * 100)
        cells.append([depth, printed, float(np.mean(scores)), float(np.std(scores, ddof=1))])
    score = {int(c[0]): float(c[2]) for c in cells}
    return Finding(
        score[6] > score[1] and score[6] > score[12],
        ", ".join(f"L = {c[0]}: {c[2]:.2f} ({c[1]:.2f} printed)" for c in cells),
        "holds where L = 6 is above L = 1 and L = 12; rate 1, the printed rates are not known",
        setting.seeds,
        tables=[Table("MNIST test accuracy [%]", ["L", "printed", "measured", "spread"], cells)],
    )
