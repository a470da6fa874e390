"""The recipes of torch.func: what one writes by hand without a library."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, jvp, linearize, vjp, vmap

from peers.task import Method, Task, largest_values

PACKAGES = ("torch", "scipy")


def _weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def jacobian(task: Task) -> Callable[[], Tensor]:
    """Jacobian contraction: vmap of jacrev over the samples, then one einsum for each parameter."""
    model, x = task.model(), task.inputs()
    weights = _weights(model)
    form = "icp,jcp->ij" if task.kind == "trace" else "icp,jdp->icjd"

    def one(w: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, w, (sample.unsqueeze(0),)).squeeze(0)

    def work() -> Tensor:
        rows = vmap(jacrev(one), (None, 0))(weights, x)
        total = torch.zeros(())
        for block in rows.values():
            total = total + torch.einsum(form, block.flatten(2), block.flatten(2))
        return total

    return work


def per_logit(task: Task) -> Callable[[], Tensor]:
    """One vmap(grad) for each logit; their Gram matrices add up to the trace kernel."""
    model, x = task.model(), task.inputs()
    weights = _weights(model)

    def one(w: dict[str, Tensor], sample: Tensor, pick: Tensor) -> Tensor:
        return functional_call(model, w, (sample.unsqueeze(0),)).squeeze(0) @ pick

    def work() -> Tensor:
        total = torch.zeros(len(x), len(x))
        for pick in torch.eye(task.outputs):
            gradients = vmap(grad(one), (None, 0, None))(weights, x, pick)
            flat = torch.cat([g.flatten(1) for g in gradients.values()], 1)
            total.addmm_(flat, flat.T)
        return total

    return work


def kept_graph(task: Task) -> Callable[[], Tensor]:
    """K v: the graph of one vjp kept, and the forward linearised once; both are the set-up."""
    model, x = task.model(), task.inputs()
    weights = _weights(model)

    def outputs(w: dict[str, Tensor]) -> Tensor:
        return functional_call(model, w, (x,))

    shape = (len(x), task.outputs)
    _, pull = vjp(outputs, weights)
    _, push = linearize(outputs, weights)
    v = torch.from_numpy(task.v).reshape(shape)
    return lambda: push(pull(v)[0]).flatten()


def products_and_eigsh(task: Task) -> Callable[[], np.ndarray]:
    """Products by vjp (graph kept) and jvp under scipy's eigsh."""
    model, x = task.model(), task.inputs()
    weights = _weights(model)

    def outputs(w: dict[str, Tensor]) -> Tensor:
        return functional_call(model, w, (x,))

    def work() -> np.ndarray:
        _, pull = vjp(outputs, weights)

        def product(v: Tensor) -> Tensor:
            (tangent,) = pull(v.reshape(len(x), task.outputs))
            return jvp(outputs, (weights,), (tangent,))[1].flatten()

        return largest_values(product, len(x) * task.outputs)

    return work


METHODS = {
    "Jacobian": Method(jacobian, ("trace", "full")),
    "vmap(grad) per logit": Method(per_logit, ("trace",)),
    "kept vjp graph + linearize": Method(kept_graph, ("product",)),
    "products + eigsh": Method(products_and_eigsh, ("eigen",)),
}
