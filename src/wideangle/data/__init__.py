"""Real data sets by name, the user's own data from files, and label noise."""

from __future__ import annotations

from wideangle.data.catalogue import NAMES, load
from wideangle.data.dataset import Dataset
from wideangle.data.noise import label_noise
from wideangle.data.own import import_function

__all__ = ["NAMES", "Dataset", "import_function", "label_noise", "load"]
