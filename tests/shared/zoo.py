"""Small models of every kind the kernel must be exact for, with inputs, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from wideangle.seeds import generator


def fresh(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter and running statistic from a generator of its own; float64, eval mode."""
    draws = generator(seed, "zoo")
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.5 + 0.1)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            shift = 1.5 if name.endswith("running_var") else 0.0
            buffer.copy_(torch.rand(buffer.shape, generator=draws) + shift)
    return model.double().eval()


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "x"), dtype=torch.float64)


def tokens(*shape: int, high: int = 7, seed: int = 1) -> Tensor:
    return torch.randint(0, high, shape, generator=generator(seed, "tokens"))


class CalledTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class ConvTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(x))
        x = torch.tanh(self.conv(F.avg_pool2d(x, 2)))
        return self.head(x.mean((2, 3)))


class TiedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(7, 4), nn.LayerNorm(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(x)).mean(1))


class FunctionalTie(nn.Module):
    """The embedding's weight is used once through the module and once by a bare function."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.embed(x)).mean(1), self.embed.weight)


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4, padding_idx=0)
        self.mix, self.norm, self.rms = nn.Linear(4, 5), nn.LayerNorm(4), nn.RMSNorm(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rms(torch.tanh(self.mix(self.norm(self.embed(x))))).mean(1))


class Attention(nn.Module):
    def __init__(self, batch_first: bool = True):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=batch_first)
        self.head, self.offset = nn.Linear(4, 3), nn.Parameter(torch.zeros(4))
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.offset
        h = self.block(h) if self.batch_first else self.block(h.transpose(0, 1)).transpose(0, 1)
        return self.head(h[:, 0])


class FlattenedTokens(nn.Module):
    """Merges samples and tokens into one dimension before its Linear layer."""

    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        h = torch.tanh(self.mix(x.reshape(n * t, d))).reshape(n, t, 4)
        return self.head(h.sum(1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head = nn.GroupNorm(2, 4), nn.Linear(4, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.stem(x))
        out = self.norm(self.conv(h))
        out += h
        return self.head(self.relu(out).mean((2, 3)))


class OddLinear(nn.Linear):
    """A subclass with a forward of its own: its base's rule would be wrong for it."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.square(), self.bias)


class Routed(nn.Module):
    """Sends each sample through one of two experts: the experts see part of the batch."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        left = x[:, 0] > 0
        h = torch.zeros_like(x)
        h[left] = self.first(x[left])
        h[~left] = self.second(x[~left])
        return self.head(torch.tanh(h))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class DictInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.embed(ids)) * mask.unsqueeze(2)
        return {"logits": self.head(h.sum(1)), "hidden": h}


def _weight_norm() -> nn.Module:
    return nn.Sequential(
        torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(4, 3), lambda: normal(5, 4)),
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), lambda: normal(6, 4)),
    "in-place relu": (
        lambda: nn.Sequential(
            nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)
        ),
        lambda: normal(6, 4),
    ),
    "no bias": (
        lambda: nn.Sequential(nn.Linear(4, 6, bias=False), nn.GELU(), nn.Linear(6, 1, bias=False)),
        lambda: normal(6, 4),
    ),
    "conv strided": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(27, 2)
        ),
        lambda: normal(5, 2, 6, 6),
    ),
    "conv grouped dilated": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=2, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 6, 3, groups=6),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(54, 2),
        ),
        lambda: normal(4, 4, 5, 5),
    ),
    "conv wide": (
        lambda: nn.Sequential(nn.Conv2d(8, 24, 3), nn.Tanh(), nn.Flatten(), nn.Linear(96, 3)),
        lambda: normal(9, 8, 4, 4),
    ),
    "conv reflect": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding="same", padding_mode="reflect"),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(48, 2),
        ),
        lambda: normal(4, 1, 4, 4),
    ),
    "conv one position grouped": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 2)),
        lambda: normal(5, 4, 3, 3),
    ),
    "conv1d norms": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, stride=2, dilation=2, padding=1),
            nn.BatchNorm1d(4),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16, 2),
        ),
        lambda: normal(5, 2, 9),
    ),
    "batchnorm2d": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(3, 2),
        ),
        lambda: normal(5, 1, 5, 5),
    ),
    "transposed conv": (
        lambda: nn.Sequential(nn.ConvTranspose2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 2)),
        lambda: normal(4, 1, 3, 3),
    ),
    "called twice": (CalledTwice, lambda: normal(5, 4)),
    "conv called twice": (ConvTwice, lambda: normal(4, 2, 4, 4)),
    "tied embedding": (TiedEmbedding, lambda: tokens(5, 6)),
    "functional tie": (FunctionalTie, lambda: tokens(5, 6)),
    "sequence with norms": (Sequence, lambda: tokens(5, 6)),
    "tokens as many as samples": (Sequence, lambda: tokens(6, 6)),
    "attention": (Attention, lambda: tokens(5, 6)),
    "attention, sequence first": (lambda: Attention(batch_first=False), lambda: tokens(4, 4)),
    "flattened tokens": (FlattenedTokens, lambda: normal(4, 4, 3)),
    "residual": (Residual, lambda: normal(5, 1, 5, 5)),
    "own forward": (lambda: nn.Sequential(OddLinear(4, 5), nn.Tanh(), nn.Linear(5, 2)), lambda: normal(5, 4)),
    "weight norm": (_weight_norm, lambda: normal(5, 4)),
    "routed": (Routed, lambda: normal(9, 3)),
    "recurrent": (Recurrent, lambda: normal(4, 5, 3)),
}
