"""The papers behind the library, each a run whose claims can fail."""

from __future__ import annotations

from wideangle.papers._frame import Claim, PaperRun, available, run

__all__ = ["Claim", "PaperRun", "available", "run"]
