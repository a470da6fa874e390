"""Small nets, data and plans shared by the training tests."""

from __future__ import annotations

import torch
from torch import nn

from wideangle.plan import Decision, Plan


def make_gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_data(n: int = 24, d: int = 5, classes: int = 3):
    gen = make_gen(1)
    x = torch.randn(n, d, generator=gen)
    return x, torch.randint(0, classes, (n,), generator=gen)


def make_net(seed: int = 0, dropout: float = 0.0, norm: bool = False) -> nn.Module:
    parts: list[nn.Module] = [nn.Linear(5, 8)]
    parts += [nn.BatchNorm1d(8)] if norm else []
    parts += [nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)]
    model = nn.Sequential(*parts)
    gen = make_gen(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=gen))
    return model


def make_plan(step_size: float = 0.5, steps: int = 20, **extra) -> Plan:
    return Plan(
        step_size=Decision(step_size, "per step", "a test"), stop=Decision(steps, "steps", "a test"), **extra
    )


def is_same(a: nn.Module, b: nn.Module) -> bool:
    there = b.state_dict()
    return all(torch.equal(value, there[key]) for key, value in a.state_dict().items())
