from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from wideangle.errors import InputError
from wideangle.kernel import factors
from wideangle.kernel.function_space import linearised_descent


def _problem():
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, generator=gen, dtype=torch.float64)
    y = torch.randn(7, 2, generator=gen, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    return model, x, y


def test_the_way_is_that_of_the_weights_for_a_step_each():
    """Against gradient descent on the linear model f0 + J d, written out in the weights."""
    model, x, y = _problem()
    names = [name for name, _ in model.named_parameters()]
    weights = {name: p.detach() for name, p in model.named_parameters()}
    jacobian = torch.func.jacrev(lambda w: torch.func.functional_call(model, w, (x,)))(weights)
    rows = torch.cat([jacobian[name].reshape(14, -1) for name in names], 1)
    start, moved, steps = model(x).detach(), torch.zeros(rows.shape[1], dtype=torch.float64), [0.3, 0.05, 0.2]
    losses = []
    for step in [*steps, 0.0]:
        z = start + (rows @ moved).reshape(7, 2)
        losses.append(float((z - y).square().mean()))
        moved = moved - step * rows.T @ (2 * (z - y) / z.numel()).flatten()
    cache = factors(model, x)
    run = linearised_descent(cache, start, lambda z: (z - y).square().mean(), steps, 3)
    assert run.losses == pytest.approx(np.array(losses), rel=1e-12)
    pulled = cache.pull(torch.as_tensor(run.way)[None])
    found = torch.cat([pulled[name][0].flatten() for name in names])
    assert found.numpy() == pytest.approx(moved.numpy(), rel=1e-10, abs=1e-14)
    assert run.distance[-1] == pytest.approx(float(moved.norm()), rel=1e-10)


@pytest.mark.parametrize(
    ("step", "message"), [([0.1, 0.1], "2 step sizes for steps=3"), ([0.1, 0.0, 0.1], "must be positive")]
)
def test_steps_that_do_not_fit(step, message):
    model, x, y = _problem()
    with pytest.raises(InputError, match=message):
        linearised_descent(factors(model, x), model(x), lambda z: (z - y).square().mean(), step, 3)
