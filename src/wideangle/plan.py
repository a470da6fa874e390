"""The plan: what a check-up recommends, each entry with the evidence it rests on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from wideangle.result import Result

__all__ = ["Decision", "Plan"]


@dataclass(frozen=True)
class Decision(Result):
    """One recommendation: its value, its unit and the measurement it rests on.

    A decision nobody has measured has ``value=None`` and the evidence "not measured".
    """

    value: Any = None
    unit: str = ""
    evidence: str = "not measured"

    @property
    def measured(self) -> bool:
        """True where a measurement stands behind the value."""
        return self.value is not None


@dataclass(frozen=True)
class Plan(Result):
    """What to do with a model, as measured by `wideangle.checkup` and executed by `wideangle.train`.

    Every entry is a `Decision`. Later parts of the library add entries; a reader ignores none and
    fills what an older file lacks with "not measured".

    Example:
        >>> plan = Plan(step_size=Decision(0.1, "per step", "1 / lambda_max"))
        >>> plan.step_size.measured, plan.momentum.measured
        (True, False)
    """

    model: str = ""
    data: str = ""
    samples: int | None = None
    loss: str = "mse"
    seed: int = 0
    step_size: Decision = field(default_factory=Decision)
    batch_size: Decision = field(default_factory=Decision)
    optimizer: Decision = field(default_factory=Decision)
    momentum: Decision = field(default_factory=Decision)
    kappa_tilde: Decision = field(default_factory=Decision)
    warmup_steps: Decision = field(default_factory=Decision)
    stop: Decision = field(default_factory=Decision)
    suspect_labels: Decision = field(default_factory=Decision)
    predicted_loss: list[list[float]] = field(default_factory=list)

    @property
    def decided(self) -> list[str]:
        """The names of the entries with a measured value."""
        entries = [(name, getattr(self, name)) for name in self.__dataclass_fields__]
        return [name for name, entry in entries if isinstance(entry, Decision) and entry.measured]

    def rows(self) -> list[tuple[str, str]]:
        """Return the printed lines: the value with its unit, then the evidence in brackets."""
        pairs: list[tuple[str, str]] = []
        for name, text in super().rows():
            entry = getattr(self, name.replace(" ", "_"))
            if isinstance(entry, Decision):
                value = f"{entry.value:.4g}" if isinstance(entry.value, float) else str(entry.value)
                unit = f" {entry.unit}" if entry.unit else ""
                text = f"{value}{unit}  ({entry.evidence})" if entry.measured else "not measured"
            elif name == "predicted loss":
                text = f"{len(entry)} points"
            pairs.append((name, text))
        return pairs
