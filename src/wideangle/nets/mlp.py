"""The fully connected net."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from wideangle import seeds
from wideangle.errors import InputError
from wideangle.nets._layers import Parameterization, Recipe, check_outputs, feature_count, layer_widths
from wideangle.nets.activations import Activation, activation_function

__all__ = ["MLP"]


class MLP(nn.Module):
    """A fully connected net on flattened inputs, in the NTK or the PyTorch parameterisation.

        h_0 = x,   h_l = gain * activation(W_l h_{l-1} / sqrt(fan-in_l)),   f = W_{L+1} h_L / sqrt(fan-in)

    with W ~ N(0, 1) and gain = sqrt(c_sigma) for "ntk"; without the factors, gain 1 and
    W ~ U(-1/sqrt(fan-in), 1/sqrt(fan-in)) for "standard" (what torch.nn.Linear draws). Each factor
    multiplies the input of a plain nn.Linear. depth=0 is the linear model. Forward cost: one
    multiply-add per weight and sample.

    Args:
        in_features: inputs per sample, d; a shape such as (1, 28, 28) counts as its product.
        outputs: C.
        width: units of every hidden layer, or one number per hidden layer.
        depth: number of hidden layers L, 2 where not given (leave out where `width` is a sequence).
        activation: a name of `ACTIVATIONS` or a function.
        parameterization: "ntk" or "standard".
        output_activation: a name or function applied to f; None leaves the output linear.
        bottleneck: width of the middle hidden layer, to make it the narrow one.
        bias: add a bias per unit, N(0, 1) for "ntk", uniform as the weights for "standard".
        gain: multiply each activation by sqrt(c_sigma); by default in the "ntk" parameterisation only.
        generator: where the weights are drawn from; by default a fresh one with a fixed seed.

    Raises:
        InputError: a size below one, an unknown name, or (in the forward pass) inputs of another size.

    Example:
        >>> net = MLP(64, outputs=10, width=128, depth=2)
        >>> net(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 10])

    Reference: Jacot, Gabriel & Hongler 2018, section 2 (NTK parameterisation); gain as in Liu,
    Bi, Hui & Liu 2023 (arXiv 2305.08813); differs from that paper in that the input is divided by
    sqrt(d), where the paper leaves it as it is and expects unit norm: the kernel here is theirs / d.
    """

    def __init__(
        self,
        in_features: int | Sequence[int],
        outputs: int,
        *,
        width: int | Sequence[int] = 512,
        depth: int | None = None,
        activation: Activation = "relu",
        parameterization: Parameterization = "ntk",
        output_activation: Activation | None = None,
        bottleneck: int | None = None,
        bias: bool = False,
        gain: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.in_features = feature_count(in_features)
        check_outputs(outputs)
        recipe = Recipe(
            activation, parameterization, bias, gain, generator or seeds.generator(0, "nets", "mlp")
        )
        sizes = [self.in_features, *layer_widths(width, depth, bottleneck, default=2)]
        self.activation = recipe.activation
        self.output_activation = None if output_activation is None else activation_function(output_activation)
        self.hidden = nn.ModuleList(
            recipe.linear(fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(sizes)
        )
        self.head = recipe.linear(sizes[-1], outputs)
        layers = [*self.hidden, self.head]
        self.scales = [recipe.scale(layer, activated=i > 0) for i, layer in enumerate(layers)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs, shape (n, C), of inputs (n, ...)."""
        h = x.flatten(1)
        if h.shape[1] != self.in_features:
            raise InputError(f"the net takes {self.in_features} inputs per sample, got {tuple(x.shape)}")
        for layer, scale in zip(self.hidden, self.scales, strict=False):
            h = self.activation(layer(h * scale))
        f = self.head(h * self.scales[-1])
        return f if self.output_activation is None else self.output_activation(f)
