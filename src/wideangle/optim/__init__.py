"""Step size, batch size and the constants they follow from, measured on the model itself."""

from __future__ import annotations

from wideangle.optim._recommend import StepChoice, choose_batch, recommend
from wideangle.optim.constants import Constants, critical_step, measure_constants

__all__ = ["Constants", "StepChoice", "choose_batch", "critical_step", "measure_constants", "recommend"]
