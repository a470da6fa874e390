"""A model of one's own, written as one would write it without wideangle.

wideangle checkup examples/own_model.py:build --data examples/own_data.npz --out report.html
"""

from __future__ import annotations

from torch import nn


def build() -> nn.Module:
    """Return a small perceptron for 13 numbers and 3 classes, with PyTorch's usual start weights."""
    return nn.Sequential(nn.Linear(13, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3))
