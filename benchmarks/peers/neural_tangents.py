"""neural-tangents on JAX: structured derivatives of the same nets, with lax.dot, where its rules still fire.

With `x @ W` they do not: a type conversion stands between weight and product. Its experimental subpackage
wants TensorFlow and is left out. Compilation counts as set-up, neither its time nor its memory with the rest.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from peers.task import Method, Task

PACKAGES = ("neural-tangents", "jax", "jaxlib")


def _tangents() -> Any:
    name = "neural_tangents.experimental"
    sys.modules.setdefault(name, types.ModuleType(name))
    import neural_tangents

    return neural_tangents


def _mlp(weights: dict[str, Any], x: Any) -> Any:
    import jax

    for layer in (0, 2, 4):
        x = jax.lax.dot(x, weights[f"{layer}.weight"]) + weights[f"{layer}.bias"]
        x = x if layer == 4 else jax.nn.relu(x)
    return x


def _conv(weights: dict[str, Any], name: str, x: Any, stride: int = 1) -> Any:
    import jax

    kernel = weights[f"{name}.weight"]
    pad = kernel.shape[0] // 2
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=dimensions
    )
    return y + weights[f"{name}.bias"]


def _cnn(weights: dict[str, Any], x: Any) -> Any:
    import jax

    x = jax.nn.relu(_conv(weights, "0", x))
    for block in ("2", "3"):
        inner = jax.nn.relu(_conv(weights, f"{block}.conv1", x, 2))
        outer = _conv(weights, f"{block}.conv2", inner) + _conv(weights, f"{block}.shortcut", x, 2)
        x = jax.nn.relu(outer)
    return jax.lax.dot(x.mean((1, 2)), weights["6.weight"]) + weights["6.bias"]


def _arranged(value: np.ndarray) -> np.ndarray:
    """From torch's order of axes to JAX's: (out, in) -> (in, out), (out, in, h, w) -> (h, w, in, out)."""
    return {1: value, 2: value.T, 4: value.transpose(2, 3, 1, 0) if value.ndim == 4 else value}[value.ndim]


def structured(task: Task) -> Callable[[], Any]:
    """The kernel by structured derivatives, compiled; its mean over logits is made a sum."""
    import jax
    import jax.numpy as jnp

    tangents = _tangents()
    trace = task.kind == "trace"
    weights = {name: jnp.asarray(_arranged(value)) for name, value in task.weights().items()}
    x = jnp.asarray(task.x if task.name == "mlp" else task.x.transpose(0, 2, 3, 1))
    kernel = tangents.empirical_ntk_fn(
        _mlp if task.name == "mlp" else _cnn,
        trace_axes=(-1,) if trace else (),
        vmap_axes=0,
        implementation=tangents.NtkImplementation.STRUCTURED_DERIVATIVES,
    )
    scale = task.outputs if trace else 1
    compiled = jax.jit(lambda x, w: kernel(x, None, w) * scale).lower(x, weights).compile()
    return lambda: compiled(x, weights).block_until_ready()


def sample_major(result: Any) -> np.ndarray:
    """From (n, n, C, C) to (n, C, n, C); the trace as it is."""
    array = np.asarray(result)
    return array.transpose(0, 2, 1, 3) if array.ndim == 4 else array


METHODS = {"structured (lax.dot)": Method(structured, ("trace", "full"), arrange=sample_major, compiles=True)}
