"""Peak memory of the kernel against the n x P Jacobian of one output, measured in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, sys
import torch
from torch import nn
torch.set_num_threads(1)
from wideangle import kernel
from wideangle.nets import MLP, ConvNet, ResNet

name, n = sys.argv[1], int(sys.argv[2])
model = {
    "mlp": lambda: MLP(784, 10, width=512, depth=2),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(1, 128, 3, 2, 1), nn.ReLU(), nn.Conv2d(128, 256, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)),
    "residual": lambda: ResNet((1, 8, 8), 10, width=128),
}[name]()
x = torch.rand(n, 784) if name == "mlp" else torch.rand(n, 1, 8, 8)
kernel.tangent_kernel(model, x[:8], outputs="trace")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
bound = n * sum(p.numel() for p in model.parameters()) * 4
kernel.tangent_kernel(model, x, outputs="trace", max_memory=None if name == "mlp" else int(0.6 * bound))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"peak": (after - before) * 1024, "bound": bound}))
"""


@pytest.mark.parametrize(("name", "samples"), [("mlp", 512), ("conv", 128), ("residual", 64)])
def test_peak_stays_below_one_jacobian(name: str, samples: int):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, str(samples)], capture_output=True, text=True, check=True
    )
    found = json.loads(run.stdout)
    assert found["peak"] < found["bound"], found
