"""Conformance cases that a user's own parts can be run through; no test framework is needed."""

from __future__ import annotations

from wideangle.testing._optimizer_cases import OptimizerCase, optimizer_cases

__all__ = ["OptimizerCase", "optimizer_cases"]
