"""The command line: wideangle VERB TARGET --data D --plan P --out R --json J --seed S --device DEV."""

from __future__ import annotations

from wideangle.cli._main import app

__all__ = ["app"]
