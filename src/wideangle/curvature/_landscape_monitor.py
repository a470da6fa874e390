"""A monitor of PL* and aiming beside a training loop of the user's own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from wideangle.curvature._pl import kernel_extremes
from wideangle.curvature._problem import Problem, check_margin, entries, floor, inner, squared
from wideangle.errors import InputError, NumericsError
from wideangle.kernel._model import OutputPick
from wideangle.result import Provenance, Result

__all__ = ["LandscapeMonitor", "LandscapeRun"]


@dataclass(frozen=True)
class LandscapeRun(Result):
    """What `LandscapeMonitor` recorded, one entry a look, and where the conditions fail.

    `losses`, `pl_ratios` and `thetas` are of the loss called `convention`; `distances` from the first look,
    over the parameters `params` named at the start and no others: layers unfrozen later and running
    statistics change losses and ratios but are no part of gradients, distances, thetas or K. `lambda_min` is
    empty where it was not asked for. An entry of `thetas` (aiming to the final iterate, which is no
    projection) is None where the loss is 0 to rounding, the state was not kept, or at the end. `clear` counts
    the looks with a theta and a loss of at least `margin` times the last one's: only these count as
    violations of aiming and for `smallest_theta` (see `aiming_along`). `violations` are sentences;
    `constant` is the smallest PL* ratio, an upper bound of mu on the path.
    """

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    pl_ratios: list[float | None] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    lambda_min: list[float | None] = field(default_factory=list)
    thetas: list[float | None] = field(default_factory=list)
    constant: float | None = None
    smallest_theta: float | None = None
    violations: list[str] = field(default_factory=list)
    surrogate: str = "final iterate (no projection: raises theta where it is far)"
    threshold: float | None = None
    convention: str = "half_mean"
    kept: int = 0
    clear: int = 0
    margin: float = 100.0


class LandscapeMonitor:
    """Follows a training loop and reports where PL* and aiming fail; it assumes neither.

        monitor = LandscapeMonitor(model, x, y, every=10)
        ... in the loop, after each step: monitor.update()
        found = monitor.finish()

    At every look the loss L, the PL* ratio |grad L|^2 / (2 L), the distance |w - w_0| and, with `spectrum`,
    lambda_min of the tangent kernel are measured on all of x, in a copy of the model. `finish` adds the
    aiming ratio of the states kept, to the last one. With `with LandscapeMonitor(...) as monitor:` the
    finish is automatic and its result is `monitor.result`.

    Cost: for each look a forward and a backward pass on x, with `spectrum` `kernel_extremes`; `finish`
    repeats the passes for the states kept. Memory: a copy of the model in `dtype`, and at most `keep` states,
    with all parameters and buffers; when there are more, every second one is dropped and from then on every
    second look is kept. With `folder` the states lie there instead, as files of torch.save, and are deleted
    by `finish`.

    Args:
        model: the module being trained; read at every look, never changed.
        x: n inputs on which to measure: all the training data, or a fixed part of it.
        y: n targets, numbers (n, C) or class labels taken as one-hot rows.
        every: updates from one look to the next.
        spectrum: measure lambda_min too.
        threshold: a PL* ratio below this is a violation; None leaves it out.
        keep: states kept for the aiming ratio, 2 or more.
        folder: where to keep them; in memory where left out.
        margin: how many times the last loss one must be for its aiming ratio to count.
        loss: the convention of L, one of `wideangle.losses.SQUARED_LOSSES`.
        params: parameters that move, for gradients, distances and the kernel; all that require a gradient
            when the monitor is made where left out. The rest of the model is read at every look too.
        output: which part of a tuple, dict or ModelOutput is the output.
        dtype: compute in this type; None keeps the model's.
        dense_limit: as for `kernel_extremes`.

    Raises:
        InputError: as for `aiming`; every below 1, keep below 2, a margin below 0 or not finite.

    Example:
        >>> net, x = nn.Linear(2, 1), torch.eye(2)
        >>> y = net(x).detach() + 1.0
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        >>> with LandscapeMonitor(net, x, y, every=5) as monitor:
        ...     for _ in range(20):
        ...         optimizer.zero_grad()
        ...         (net(x) - y).square().mean().backward()
        ...         optimizer.step()
        ...         monitor.update()
        >>> monitor.result.steps, monitor.result.violations
        ([0, 5, 10, 15, 20], [])

    Reference: Liu et al. 2022 (arXiv 2003.00307, PL*) and Liu et al. 2023 (arXiv 2306.02601, aiming);
    Islamov et al. 2024 report negative aiming for LSTMs: hence a report of violations.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Any,
        y: Any,
        *,
        every: int = 10,
        spectrum: bool = False,
        threshold: float | None = None,
        keep: int = 64,
        folder: str | Path | None = None,
        margin: float = 100.0,
        loss: str = "half_mean",
        params: Any = None,
        output: OutputPick = None,
        dtype: torch.dtype | None = torch.float64,
        dense_limit: int = 4096,
    ):
        if every < 1 or keep < 2:
            raise InputError(f"every={every} must be at least 1 and keep={keep} at least 2")
        check_margin(margin)
        self._problem = Problem(model, x, y, params=params, output=output, dtype=dtype, loss=loss)
        self._model, self._every, self._spectrum, self._limit = model, every, spectrum, dense_limit
        self._threshold, self._keep, self._convention, self._margin = threshold, keep, loss, margin
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._calls, self._stride, self._stopped = 0, 1, False
        self._first: dict[str, Tensor] | None = None
        self._last: dict[str, Tensor] = {}
        self._states: dict[int, dict[str, Tensor] | Path] = {}
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._ratios: list[float | None] = []
        self._distances: list[float] = []
        self._smallest: list[float | None] = []
        self._violations: list[str] = []
        self.result: LandscapeRun | None = None
        self._look(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()

    def update(self, step: int | None = None) -> None:
        """Say that a step was taken; every `every` calls the model is measured.

        Args:
            step: the number to record for it; the number of calls where left out.
        """
        self._calls += 1
        if self._calls % self._every == 0:
            self._look(self._calls if step is None else step)

    def finish(self) -> LandscapeRun:
        """Return the record, with the aiming ratios to the final iterate; further calls return the same."""
        if self.result is None:
            if self._calls % self._every:
                self._look(self._calls)
            thetas = self._aiming()
            counted = [
                (step, theta)
                for step, theta, value in zip(self._steps, thetas, self._losses, strict=True)
                if theta is not None and value >= self._margin * self._losses[-1]
            ]
            self._report(counted)
            self.result = LandscapeRun(
                steps=self._steps,
                losses=self._losses,
                pl_ratios=self._ratios,
                distances=self._distances,
                lambda_min=self._smallest,
                thetas=thetas,
                constant=min((r for r in self._ratios if r is not None), default=None),
                smallest_theta=min((theta for _, theta in counted), default=None),
                clear=len(counted),
                margin=self._margin,
                violations=self._violations,
                threshold=self._threshold,
                convention=self._convention,
                kept=len(self._states),
                provenance=Provenance.here(device=str(self._problem.device)),
            )
            self._forget(list(self._states))
        return self.result

    def _look(self, step: int) -> None:
        if self._stopped:
            return
        problem = self._problem
        try:
            problem.load(self._model)
            residual, gradient = problem.slope()
        except (NumericsError, InputError) as error:
            if not self._steps:  # the start itself cannot be used
                raise
            self._stopped = True
            self._violations.append(f"step {step}: {error}; nothing was recorded from here on")
            return
        here = self._last = problem.now()
        if self._first is None:
            self._first = here
        value = problem.loss_of(residual)
        self._steps.append(step)
        self._losses.append(value)
        self._ratios.append(squared(gradient) / (2 * value) if value >= floor(problem.dtype) else None)
        first = self._first
        self._distances.append(math.sqrt(squared({name: here[name] - first[name] for name in first})))
        if self._spectrum:
            ends = kernel_extremes(problem.cache(), problem.parameters, dense_limit=self._limit)
            self._smallest.append(ends.smallest)
        self._hold(len(self._steps) - 1)

    def _hold(self, look: int) -> None:
        """Keep the model's parameters and buffers as they are, thinning out what is kept where there are too many."""
        if look % self._stride:
            return
        state = {n: t.detach().cpu().clone() for n, t in entries(self._model).items()}
        if self._folder is None:
            self._states[look] = state
        else:
            path = self._folder / f"state-{look}.pt"
            torch.save(state, path)
            self._states[look] = path
        if len(self._states) > self._keep:
            self._stride *= 2
            self._forget([k for k in self._states if k % self._stride])

    def _forget(self, looks: list[int]) -> None:
        for look in looks:
            state = self._states.pop(look)
            if isinstance(state, Path):
                state.unlink(missing_ok=True)

    def _aiming(self) -> list[float | None]:
        """Return theta to the last look's weights, for the looks whose states were kept."""
        problem = self._problem
        thetas: list[float | None] = [None] * len(self._steps)
        final = self._last  # the last weights that could be measured
        for look, kept in self._states.items():
            problem.load(torch.load(kept) if isinstance(kept, Path) else kept)
            way = {name: w.detach() - final[name] for name, w in problem.weights().items()}
            if self._losses[look] < floor(problem.dtype) or squared(way) == 0:
                continue
            thetas[look] = inner(problem.slope()[1], way) / self._losses[look]
        return thetas

    def _report(self, counted: list[tuple[int, float]]) -> None:
        """Turn what fails into sentences; `counted` are the steps and aiming ratios that decide."""
        for step, theta in counted:
            if theta <= 0:
                self._violations.append(
                    f"step {step}: aiming {theta:.3g} <= 0, a gradient step leads away from the final iterate"
                )
        low = self._threshold
        for step, ratio in zip(self._steps, self._ratios, strict=True):
            if low is not None and ratio is not None and ratio < low:
                self._violations.append(f"step {step}: PL* ratio {ratio:.3g} is below {low:g}")
        start = self._smallest[0] if self._smallest else None
        for step, value in zip(self._steps, self._smallest, strict=False):
            if start and value is not None and value < start / 2:
                self._violations.append(
                    f"step {step}: lambda_min fell from {start:.3g} to {value:.3g}, by over half: the kernel "
                    "at the start does not carry the rate"
                )
