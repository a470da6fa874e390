"""The sections of a check-up in their order. Adding one is a module with a function and a line here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from wideangle.checks._study import Study
from wideangle.document import Section
from wideangle.errors import InputError
from wideangle.names import unknown_name

__all__ = ["CHECKS", "Check", "chosen"]


@dataclass(frozen=True)
class Check:
    """One section: its name, its title, the seconds it promises to stay under, and the module that runs it.

    The module has a function `run(study: Study) -> Section`; it leaves its sentence for the verdict in
    `study.sentences` and its decisions in `study.decisions`.
    """

    name: str
    title: str
    budget: float
    module: str

    def load(self) -> Callable[[Study], Section]:
        """Return the section's `run` function."""
        return importlib.import_module(f"wideangle.checks.{self.module}").run


CHECKS: tuple[Check, ...] = (
    Check("regime", "How linear is it: the regime", 25.0, "regime"),
    Check("kernel", "Kernel: how well conditioned", 15.0, "conditioning"),
    Check("step-size", "Step size: where descent turns unstable", 10.0, "step_size"),
    Check("labels", "Labels: what will be learned, and how fast", 10.0, "labels"),
    Check("trial", "Trial run: predicted against measured", 40.0, "trial"),
    Check("landscape", "Will it get there: the landscape along the run", 20.0, "landscape"),
    Check("optimiser", "Optimiser: which momentum, and a race", 15.0, "optimiser"),
)


def chosen(only: list[str] | None) -> tuple[Check, ...]:
    """Return the checks to run, in order.

    Raises:
        InputError: a name is none of the sections'.
    """
    if only is None:
        return CHECKS
    names = [check.name for check in CHECKS]
    for name in only:
        if name not in names:
            raise unknown_name("section", name, names)
    if not only:
        raise InputError(f"only= is empty; name at least one of {', '.join(names)}")
    return tuple(check for check in CHECKS if check.name in only)
