"""Training: act on a plan with a plain loop, and set predicted beside measured."""

from __future__ import annotations

from wideangle.training._train import Training, train

__all__ = ["Training", "train"]
