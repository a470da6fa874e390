"""What the tests of the papers' claims share: one run's kept measurements, and no data folder."""

from __future__ import annotations

import pytest

from wideangle.papers._frame import Setting


@pytest.fixture(scope="module")
def setting() -> Setting:
    """One run's worth of kept data and measurements."""
    return Setting()


@pytest.fixture(autouse=True)
def digits_only(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """The same verdicts with and without a data folder; slow tests take what there is."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.delenv("WIDEANGLE_DATA", raising=False)
