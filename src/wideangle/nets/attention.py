"""The small attention net: a transformer encoder on tokens or on the patches of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from wideangle import seeds
from wideangle.errors import InputError
from wideangle.nets._layers import Parameterization, Recipe, check_outputs, whole_numbers
from wideangle.nets.activations import Activation, activation_function

__all__ = ["Transformer"]


class _Attention(nn.Module):
    """Softmax attention of several heads over the tokens of a sample, by plain operations."""

    def __init__(self, recipe: Recipe, width: int, heads: int, score_power: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = recipe.linear(width, width), recipe.linear(width, width)
        self.value, self.mixed = recipe.linear(width, width), recipe.linear(width, width)
        self.scale = recipe.scale(self.query, activated=False)
        self.score_scale = (width // heads) ** -score_power

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        h = h * self.scale
        query, key, value = (
            layer(h).unflatten(2, (self.heads, -1)) for layer in (self.query, self.key, self.value)
        )
        scores = torch.einsum("nshd,nthd->nhst", query, key) * self.score_scale
        seen = torch.einsum("nhst,nthd->nshd", torch.softmax(scores, dim=-1), value)
        return self.mixed(seen.flatten(2) * self.scale)


class _Block(nn.Module):
    """h + attention(h), then h + second(act(first(h))); each sum over sqrt(2) in the NTK parameterisation."""

    def __init__(self, recipe: Recipe, width: int, hidden: int, heads: int, score_power: float) -> None:
        super().__init__()
        self.activation = recipe.activation
        self.attention = _Attention(recipe, width, heads, score_power)
        self.first, self.second = recipe.linear(width, hidden), recipe.linear(hidden, width)
        self.first_scale = recipe.scale(self.first, activated=False)
        self.second_scale = recipe.scale(self.second, activated=True)
        self.mix = 1 / math.sqrt(2) if recipe.ntk else 1.0

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        h = (h + self.attention(h)) * self.mix
        branch = self.activation(self.first(h * self.first_scale))
        return (h + self.second(branch * self.second_scale)) * self.mix


class Transformer(nn.Module):
    """A small transformer encoder without normalisation, in the NTK or the PyTorch parameterisation.

        h_0[t] = E [x_t ; sqrt(T) e_t] / sqrt(fan-in),   t = 1 ... T tokens of m = width numbers
        A_k = softmax_s(Q_k h[t] . K_k h[s] / (m d^score_power)),   d = m / heads,   k = 1 ... heads
        h <- mix * (h + W concat_k(A_k V_k h / sqrt(m)) / sqrt(m))
        h <- mix * (h + W_2 (gain * activation(W_1 h / sqrt(m))) / sqrt(hidden))
        f = V mean_t(h_B) / sqrt(m)

    with mix = 1/sqrt(2) for "ntk", and mix = gain = 1 and no factors but d^-score_power for "standard".
    e_t is the unit vector of the token's place (left out with positions=False: then the order of the
    tokens does not matter). Weights and gain as in `MLP`. An average over tokens makes the signal smaller
    than the factors alone would. The scores are heads * T^2 numbers a block: with score_power 1/2 a fixed
    number of heads is a narrow layer however wide the rest is, so scale heads with the width
    (heads = width / d) for a wide net. Forward cost per sample and block: T (4 m^2 + 2 m hidden + 2 T m)
    multiply-adds.

    Args:
        in_shape: (tokens, features) of one sample, or (channels, height, width) of an image.
        outputs: C.
        width: m, numbers per token.
        depth: number of blocks B.
        heads: attention heads a block; must divide the width.
        hidden: units of the hidden layer in each block; the width where not given.
        patch: side of the square patches an image is cut into; must divide its height and width.
        score_power: scores are divided by d to this power: 0.5 is usual, 1 keeps trained scores bounded.
        positions: tell the tokens' places apart.
        activation: a name of `ACTIVATIONS` or a function.
        parameterization: "ntk" or "standard".
        output_activation: a name or function applied to f; None leaves the output linear.
        bias: add a bias per unit, N(0, 1) for "ntk", uniform as the weights for "standard".
        gain: multiply each activation by sqrt(c_sigma); by default in the "ntk" parameterisation only.
        generator: where the weights are drawn from; by default a fresh one with a fixed seed.

    Raises:
        InputError: a size below one, heads or patches that do not divide, an unknown name, or (in the
            forward pass) inputs of another shape.

    Example:
        >>> net = Transformer((1, 8, 8), outputs=10, width=16, heads=4, patch=4)
        >>> net(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 10])

    Reference: Vaswani et al. 2017, Section 3.2; Hron et al. 2020 (arXiv 2006.10540), Section 3, for the
    NTK scaling and for the limit of many heads; differs in that there is no normalisation, both summands
    are divided by sqrt(2), and places are appended to the tokens.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        outputs: int,
        *,
        width: int = 64,
        depth: int = 1,
        heads: int = 4,
        hidden: int | None = None,
        patch: int = 2,
        score_power: float = 0.5,
        positions: bool = True,
        activation: Activation = "gelu",
        parameterization: Parameterization = "ntk",
        output_activation: Activation | None = None,
        bias: bool = False,
        gain: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_outputs(outputs)
        self.in_shape, self.patch = _shape(in_shape), patch
        tokens, features = _tokens(self.in_shape, patch)
        hidden = width if hidden is None else hidden
        _check_sizes(width, depth, heads, hidden)
        recipe = Recipe(
            activation, parameterization, bias, gain, generator or seeds.generator(0, "nets", "transformer")
        )
        self.output_activation = None if output_activation is None else activation_function(output_activation)
        places = torch.eye(tokens, device=recipe.generator.device)
        self.places: torch.Tensor
        self.register_buffer("places", places if positions else places[:, :0], persistent=False)
        self.stem = recipe.linear(features + self.places.shape[1], width)
        self.stem_scale = recipe.scale(self.stem, activated=False)
        self.blocks = nn.ModuleList(_Block(recipe, width, hidden, heads, score_power) for _ in range(depth))
        self.head = recipe.linear(width, outputs)
        self.head_scale = recipe.scale(self.head, activated=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs, shape (n, C), of tokens (n, T, features) or images (n, channels, height, width)."""
        if tuple(x.shape[1:]) != self.in_shape:
            raise InputError(
                f"the net was built for inputs (n, {', '.join(map(str, self.in_shape))}), got {tuple(x.shape)}"
            )
        tokens = x if x.ndim == 3 else _patches(x, self.patch)
        places = (math.sqrt(tokens.shape[1]) * self.places).expand(len(x), -1, -1)
        h = self.stem(torch.cat([tokens, places], dim=2) * self.stem_scale)
        for block in self.blocks:
            h = block(h)
        f = self.head(h.mean(1) * self.head_scale)
        return f if self.output_activation is None else self.output_activation(f)


def _patches(x: torch.Tensor, side: int) -> torch.Tensor:
    """Return the square patches of images, row by row, as tokens (n, T, channels side^2)."""
    n, channels, height, width = x.shape
    cut = x.reshape(n, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, channels * side * side)


def _shape(in_shape: Sequence[int]) -> tuple[int, ...]:
    shape = whole_numbers(in_shape)
    if shape is None or len(shape) not in (2, 3) or min(shape) < 1:
        raise InputError(
            f"an attention net needs in_shape=(tokens, features) or (channels, height, width), got {in_shape!r}"
        )
    return shape


def _tokens(shape: tuple[int, ...], patch: int) -> tuple[int, int]:
    """Return the number of tokens and the features of each."""
    if len(shape) == 2:
        return shape[0], shape[1]
    channels, height, width = shape
    if patch < 1 or height % patch or width % patch:
        raise InputError(
            f"patches of side {patch} do not tile images of {height} x {width}; choose a common divisor"
        )
    return (height // patch) * (width // patch), channels * patch * patch


def _check_sizes(width: int, depth: int, heads: int, hidden: int) -> None:
    if depth < 0:
        raise InputError(f"depth must be zero or more, got {depth}")
    if min(width, hidden) < 1:
        raise InputError(f"every layer needs at least one unit, got width {width} and hidden {hidden}")
    if heads < 1 or width % heads:
        raise InputError(f"heads={heads} does not divide width={width}; choose a divisor")
