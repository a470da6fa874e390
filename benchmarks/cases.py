"""The models and data of the benchmark, in plain torch, from fixed seeds; every tool gets them as one file.

    python cases.py mlp FILE.npz --n 1024

writes weights, inputs, a vector for products, and the exact kernel of the first 32 inputs in float64.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

CHECKED = 32  # points on which every result is compared with the exact kernel
OUTPUTS = 10
SHAPES = {"mlp": (784,), "cnn": (3, 32, 32)}


class Residual(nn.Module):
    """relu(conv(relu(conv(x))) + shortcut(x)), the shortcut a strided 1x1 convolution."""

    def __init__(self, inner: int, outer: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1)
        self.shortcut = nn.Conv2d(inner, outer, 1, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (n, outer, height / stride, width / stride)."""
        return self.relu2(self.conv2(self.relu1(self.conv1(x))) + self.shortcut(x))


def architecture(name: str) -> nn.Module:
    """Return "mlp", 784-512-512-10 with 669,706 parameters, or "cnn", a residual net with 73,066."""
    if name == "mlp":
        layers = (nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, OUTPUTS))
        return nn.Sequential(*layers)
    if name == "cnn":
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1),
            nn.ReLU(),
            Residual(16, 32, 2),
            Residual(32, 64, 2),
            nn.AvgPool2d(8),
            nn.Flatten(),
            nn.Linear(64, OUTPUTS),
        )
    raise ValueError(f"no model {name!r}; there are {', '.join(SHAPES)}")


def drawn(name: str, seed: int = 0) -> nn.Module:
    """Return a model with weights as PyTorch initialises them, drawn from a seed of its own."""
    draws = torch.Generator().manual_seed(seed)
    model = architecture(name)
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=draws)
            bound = 1 / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.bias, -bound, bound, generator=draws)
    return model


def exact_kernel(model: nn.Module, x: Tensor) -> Tensor:
    """Return J J^T in float64, (n, C, n, C), from one plain backward pass for each row of the Jacobian."""
    model = model.double()
    parameters = list(model.parameters())
    outputs = model(x.double())
    rows = []
    for value in outputs.flatten():
        gradients = torch.autograd.grad(value, parameters, retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    jacobian = torch.stack(rows)
    return (jacobian @ jacobian.T).reshape(*outputs.shape, *outputs.shape)


def write_case(path: str | Path, name: str, n: int) -> None:
    """Write weights ("weight/NAME"), inputs "x", a vector "v" (n C,) and the "exact" kernel of 32 inputs."""
    model = drawn(name)
    x = torch.rand(max(n, CHECKED), *SHAPES[name], generator=torch.Generator().manual_seed(1))
    v = torch.randn(len(x) * OUTPUTS, generator=torch.Generator().manual_seed(2))
    weights = {f"weight/{key}": value.numpy().copy() for key, value in model.state_dict().items()}
    exact = exact_kernel(model, x[:CHECKED])
    np.savez(path, name=np.array(name), x=x.numpy(), v=v.numpy(), exact=exact.numpy(), **weights)


def weights_of(case: np.lib.npyio.NpzFile) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and values of the weights in an open case file."""
    for key in case.files:
        if key.startswith("weight/"):
            yield key.removeprefix("weight/"), case[key]


def load_model(path: str | Path) -> nn.Module:
    """Return the model of a case file, in evaluation mode."""
    with np.load(path) as case:
        model = architecture(str(case["name"]))
        model.load_state_dict({name: torch.from_numpy(value) for name, value in weights_of(case)})
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=tuple(SHAPES))
    parser.add_argument("path")
    parser.add_argument("--n", type=int, default=1024)
    options = parser.parse_args()
    write_case(options.path, options.name, options.n)


if __name__ == "__main__":
    main()
