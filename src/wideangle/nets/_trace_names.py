"""Which calls and modules keep, mix, join or bend the signals of a traced module, by name."""

from __future__ import annotations

from torch import nn

__all__ = [
    "ACTIVATIONS",
    "ACTIVATION_HOMES",
    "AVERAGES",
    "DIVISIONS",
    "JOINS",
    "NORMS",
    "NORM_CALLS",
    "POOLS",
    "PRODUCTS",
    "SCALES",
    "SHAPES",
    "SHAPE_MODULES",
]

# fmt: off
JOINS = {
    "add", "iadd", "sub", "isub", "rsub", "add_", "sub_", "cat", "concat", "concatenate", "stack", "hstack",
}
DIVISIONS = {"div", "truediv", "itruediv", "div_", "divide", "divide_", "true_divide", "true_divide_"}
SCALES = {"mul", "imul", "mul_", "multiply", "multiply_", "neg", "negative", *DIVISIONS}
PRODUCTS = {"linear", "matmul", "mm", "bmm", "conv1d", "conv2d", "conv3d", "einsum", "tensordot"}
AVERAGES = {"mean", "sum", *(f"{kind}avg_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3))}
SHAPES = {
    "flatten", "reshape", "view", "permute", "transpose", "contiguous", "squeeze", "unsqueeze", "movedim",
    "swapaxes", "t", "expand", "expand_as", "view_as", "clone", "detach", "to", "float", "double", "type_as",
    "getitem", "getattr", "chunk", "split", "narrow", "pad", "dropout", "unflatten", "index_select", "roll",
    "flip", "repeat", "unbind", "select", "ravel", "swapdims", "_assert", "eq", "size", "dim", "tile",
}
NORM_CALLS = {"layer_norm", "group_norm", "rms_norm"}
ACTIVATIONS = {
    "relu", "relu_", "tanh", "sigmoid", "gelu", "silu", "erf", "elu", "leaky_relu", "softplus", "mish", "selu",
    "celu", "hardtanh", "hardswish", "hardsigmoid", "relu6", "logsigmoid", "softsign", "tanhshrink", "square",
    "pow", "abs", "exp", "sin", "cos", "sqrt", "rsqrt", "reciprocal", "clamp", "clip", "softmax",
    "log_softmax", "logsumexp", "max", "normalize", "amax", "log", "maximum", "minimum",
    *(f"{kind}max_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3)),
}
# fmt: on
SHAPE_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POOLS = tuple(getattr(nn, f"{kind}AvgPool{d}d") for kind in ("", "Adaptive") for d in (1, 2, 3))
ACTIVATION_HOMES = {f"torch.nn.modules.{name}" for name in ("activation", "normalization", "pooling")}
