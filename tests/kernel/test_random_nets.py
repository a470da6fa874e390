"""Property tests: random nets of random layers against the Jacobian, in float64."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import fresh, normal

from wideangle.kernel import factors, jacobian_kernel, tangent_kernel

ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, lambda: nn.ReLU(inplace=True)]


@st.composite
def image_nets(draw) -> tuple[nn.Module, torch.Tensor]:
    """A stack of convolutions, norms and activations with a linear head, and inputs that fit it."""
    channels, size, samples = (
        draw(st.sampled_from([1, 2, 4])),
        draw(st.integers(4, 6)),
        draw(st.integers(1, 7)),
    )
    layers: list[nn.Module] = []
    width = channels
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.sampled_from([g for g in (1, 2) if width % g == 0]))
        out = groups * draw(st.integers(1, 3))
        stride, dilation = draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
        bias = draw(st.booleans())
        layers.append(
            nn.Conv2d(width, out, 3, stride, padding=2, dilation=dilation, groups=groups, bias=bias)
        )
        width = out
        norm = draw(st.sampled_from(["none", "batch", "group"]))
        if norm != "none":
            layers.append(nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(1, width))
        layers.append(draw(st.sampled_from(ACTIVATIONS))())
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, draw(st.integers(1, 4)))]
    return fresh(nn.Sequential(*layers), draw(st.integers(0, 99))), normal(samples, channels, size, size)


@st.composite
def vector_nets(draw) -> tuple[nn.Module, torch.Tensor]:
    """A stack of linear layers and norms, on vectors or on sequences of vectors."""
    width, samples = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    shape = (samples, width) if draw(st.booleans()) else (samples, draw(st.integers(1, 7)), width)
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        out = draw(st.integers(1, 6))
        layers.append(nn.Linear(width, out, bias=draw(st.booleans())))
        width = out
        norm = draw(st.sampled_from(["none", "layer", "rms"]))
        if norm != "none":
            layers.append(nn.LayerNorm(width) if norm == "layer" else nn.RMSNorm(width))
        layers.append(draw(st.sampled_from(ACTIVATIONS))())
    layers.append(nn.Flatten())
    layers.append(nn.Linear(width * (shape[1] if len(shape) == 3 else 1), draw(st.integers(1, 4))))
    return fresh(nn.Sequential(*layers), draw(st.integers(0, 99))), normal(*shape)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.one_of(image_nets(), vector_nets()))
def test_random_net_equals_the_jacobian(case: tuple[nn.Module, torch.Tensor]):
    model, x = case
    expected = jacobian_kernel(model, x)
    scale = expected.norm() + 1e-12
    assert (tangent_kernel(model, x) - expected).norm() / scale < 1e-10
    trace = torch.einsum("icjc->ij", expected)
    assert (tangent_kernel(model, x, outputs="trace") - trace).norm() / scale < 1e-10
    v = normal(*expected.shape[:2])
    cache = factors(model, x)
    product = torch.einsum("icjd,jd->ic", expected, v)
    assert (cache @ v - product).norm() / (scale * v.norm()) < 1e-10
    assert cache.fallback == ()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(image_nets(), st.integers(1, 6))
def test_chunks_do_not_matter(case: tuple[nn.Module, torch.Tensor], size: int):
    model, x = case
    whole = tangent_kernel(model, x)
    pieces = [x[i : i + size] for i in range(0, len(x), size)]
    assert (tangent_kernel(model, pieces, x) - whole).norm() <= 1e-10 * (whole.norm() + 1e-12)
