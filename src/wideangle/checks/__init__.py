"""The main job: a check-up of how a network will train, and the plan that follows from it."""

from __future__ import annotations

from wideangle.checks._checkup import Checkup, checkup
from wideangle.checks._registry import CHECKS, Check

__all__ = ["CHECKS", "Check", "Checkup", "checkup"]
