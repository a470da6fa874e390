"""Kernels of an infinitely wide fully connected net: tangent kernel (NTK) and Gaussian process (NNGP).

One scaling throughout, with c = 1 / E[s(z)^2], z ~ N(0, 1), W ~ N(0, 1), no biases, m -> infinity:

    alpha_0 = x,  alpha_l = sqrt(c / m) s(W_l alpha_{l-1}),  f(x) = W_{L+1} alpha_L

For ReLU, |grad f(x)|^2 = (L + 1) |x|^2. `wideangle.nets.MLP` (NTK parameterisation, its default gain)
also divides the input by sqrt(d): its kernel at x is the one here at x / sqrt(d), for any activation;
for ReLU and identity that is the kernel here divided by d. Without the gain (gain=False, c = 1),
ReLU's kernels are smaller by another 2^L.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from wideangle.errors import InputError, NumericsError
from wideangle.kernel._duals import DEGREE, angle_of, deficit_of, dual
from wideangle.kernel._pairs import as_rows, norms_and_directions, pair_angles
from wideangle.nets.activations import Activation

__all__ = ["depth_for_angle", "gradient_angle", "kappa_limit", "nngp", "ntk", "relu_angle_map"]

Trainable = Literal["all", "first"]


class State(NamedTuple):
    """All pairs at one depth: variances q, angles of the hidden vectors, squared gradient norms t, gap."""

    q_i: Tensor
    q_j: Tensor
    theta: Tensor
    delta: Tensor  # 1 - cos(theta)
    t_i: Tensor
    t_j: Tensor
    gap: Tensor  # 1 - cosine of the two gradients


def by_depth(
    theta: Tensor, q_i: Tensor, q_j: Tensor, activation: Activation, trainable: Trainable
) -> Iterator[State]:
    """Yield the state at depth 0, 1, 2, ... without end; q_i and q_j broadcast against theta."""
    if trainable not in ("all", "first"):
        raise InputError(f"trainable must be 'all' or 'first', got {trainable!r}")
    through, delta = dual(activation), deficit_of(theta)
    state = State(q_i, q_j, theta, delta, q_i, q_j, delta)
    while True:
        yield state
        q_i, q_j, chi_i, chi_j, theta, delta, eta = through(state.q_i, state.q_j, state.theta)
        common = state.q_j is state.q_i
        t_i = state.t_i * chi_i
        t_j = t_i if common else state.t_j * chi_j
        gap = state.gap + eta - state.gap * eta
        if trainable == "all":
            share_i = q_i / (q_i + t_i)  # of the new layer in |grad f|^2
            share_j = share_i if common else q_j / (q_j + t_j)
            gap = _blend(share_i, share_j, delta, gap)
            t_i = q_i + t_i
            t_j = t_i if common else q_j + t_j
        state = State(q_i, q_j, theta, delta, t_i, t_j, gap)


def _blend(share_i: Tensor, share_j: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return the gap of (sqrt(share) new, sqrt(1 - share) old) vectors from the gaps of their parts."""
    if share_j is share_i:
        return old + share_i * (new - old)
    rest_i, rest_j = 1 - share_i, 1 - share_j
    mismatch = (share_i.sqrt() - share_j.sqrt()) ** 2 + (rest_i.sqrt() - rest_j.sqrt()) ** 2
    return mismatch / 2 + (share_i * share_j).sqrt() * new + (rest_i * rest_j).sqrt() * old


def relu_angle_map(theta: Tensor | float) -> Tensor:
    """Return the angle between two hidden vectors after one more infinitely wide ReLU layer.

        g(theta) = arccos( ((pi - theta) cos(theta) + sin(theta)) / pi )

    g(theta) < theta for theta > 0; g(theta) = theta - theta^2 / (3 pi) + ... near zero, where it is
    evaluated from 1 - cos without loss of digits. Cost: a few elementary functions an entry.

    Args:
        theta: angles in radians, within [0, pi], any shape.

    Returns:
        The new angles, float64, of the same shape.

    Raises:
        InputError: an angle is not in [0, pi].

    Example:
        >>> round(float(relu_angle_map(math.pi)), 4)
        1.5708

    Reference: Cho & Saul 2009 (arc-cosine kernel of order 1); Liu & Hui 2023 (arXiv 2305.08813), section 3.
    """
    one = torch.ones((), dtype=torch.float64)
    return dual("relu")(one, one, _as_angles(theta)).theta


def gradient_angle(
    theta: Tensor | float, depth: int, activation: Activation = "relu", *, trainable: Trainable = "all"
) -> Tensor:
    """Return the angle between the gradients of f at two unit-norm inputs that are theta apart.

        cos(phi) = 1/(L+1) sum_{l=0}^{L} cos(theta_l) prod_{k=l}^{L-1} (1 - theta_k / pi)      (ReLU)

    with theta_0 = theta and theta_{l+1} = relu_angle_map(theta_l); for other activations the same sum
    with their own derivative means. Near zero phi = sqrt(depth theta / pi) for ReLU; as depth grows,
    phi -> arccos(1/4) = 75.52 degrees for every theta in (0, pi]. Evaluated from 1 - cos by adding
    positive terms: phi keeps its relative accuracy for the smallest theta. Cost: depth passes over theta.

    Args:
        theta: input angles in radians, within [0, pi], any shape.
        depth: number of hidden layers L, zero or more; at zero phi = theta.
        activation: "relu", "identity", "relu2" (ReLU squared), "tanh", "gelu", "erf", "swish" or a
            smooth function of a tensor. ReLU and identity do not need unit norm.
        trainable: "all" layers, or only the "first" (then cos(phi) = cos(theta) prod_l (1 - theta_l / pi)).

    Returns:
        phi in radians, float64, of the shape of theta.

    Raises:
        InputError: an angle outside [0, pi], a negative depth, an unknown or non-smooth activation.

    Example:
        >>> round(math.degrees(gradient_angle(math.radians(1.0), depth=1)), 3)
        4.387

    Reference: Liu & Hui 2023 (arXiv 2305.08813), Lemma 3.1 and Theorem 3.5. Differs from the paper in
    |grad f|^2 = (L + 1) |x|^2 (the paper prints |grad f| = (L + 1) |x|).
    """
    angles, one = _as_angles(theta), torch.ones((), dtype=torch.float64)
    one = one.to(angles.device)
    return angle_of(_at_depth(by_depth(angles, one, one, activation, trainable), depth).gap)


def depth_for_angle(
    theta: float, target: float, activation: Activation = "relu", *, max_depth: int = 100_000
) -> int:
    """Return the smallest depth at which inputs theta apart have gradients at least `target` apart.

        min { L >= 0 : gradient_angle(theta, L) >= target }

    Cost: one scalar step a layer.

    Args:
        theta: input angle in radians, within (0, pi].
        target: wanted gradient angle in radians.
        activation: as for `gradient_angle`.
        max_depth: where the search ends.

    Returns:
        The depth.

    Raises:
        InputError: not reached by `max_depth`; for ReLU the angle tends to arccos(1/4), 1.3181 rad.

    Example:
        >>> depth_for_angle(math.radians(1.0), math.radians(10.0))
        6

    Reference: Liu & Hui 2023 (arXiv 2305.08813), Theorems 3.2 and 3.5.
    """
    angles, one = _as_angles(theta), torch.ones((), dtype=torch.float64)
    wanted = float(deficit_of(torch.tensor(target, dtype=torch.float64)))
    gap = 0.0
    for depth, state in enumerate(islice(by_depth(angles, one, one, activation, "all"), max_depth + 1)):
        gap = float(state.gap)
        if gap >= wanted:
            return depth
    reached = float(angle_of(torch.tensor(gap, dtype=torch.float64)))
    raise InputError(
        f"the gradient angle of {target:.4g} rad is out of reach at depth {max_depth} ({reached:.4g}); "
        "for ReLU it tends to arccos(1/4) = 1.318 rad, and parallel inputs never part"
    )


def kappa_limit(n: int) -> float:
    """Return the condition number of the ReLU tangent kernel of n non-parallel unit inputs at infinite depth.

        K / (L + 1) -> 3/4 I + 1/4 J,   kappa = (n + 3) / 3

    (J is all ones; the top eigenvalue is (n + 3)/4, every other 3/4.) The limit is approached like
    log(L) / L once L is well above 3 pi / theta, theta being the smallest angle.

    Args:
        n: number of samples, two or more.

    Returns:
        (n + 3) / 3.

    Raises:
        InputError: n is below two.

    Example:
        >>> kappa_limit(2)
        1.6666666666666667

    Reference: Liu & Hui 2023 (arXiv 2305.08813), section 4. Differs from the paper, which prints
    (n + 4)/3 although the matrix in its own proof has top eigenvalue (n + 3)/4.
    """
    if n < 2:
        raise InputError(f"a condition number at infinite depth needs at least two samples, got n = {n}")
    return (n + 3) / 3


def ntk(
    x: Tensor,
    depth: int,
    activation: Activation = "relu",
    trainable: Trainable = "all",
    z: Tensor | None = None,
) -> Tensor:
    """Return the infinite-width tangent kernel of a scalar net with `depth` hidden layers, (n, n) or (n, m).

        Theta_0 = Sigma_0 = x z^T,   Theta_{l+1} = Sigma_{l+1} + Theta_l * c E[s'(u) s'(v)]

    (u, v) ~ N(0, Sigma_l), Sigma_l as in `nngp`; with trainable="first" the Sigma_{l+1} term is left
    out. ReLU, identity and relu2 are in closed form; smooth activations use Mehler's formula, which
    turns the two-dimensional Gaussian integral into a series of one-dimensional ones (accurate to
    rounding, inputs of any norm up to a few units). This module's first lines tell how the scaling maps
    to `wideangle.nets`. Cost: O(n m (d + depth)), times about 100 for smooth activations; memory:
    about ten (n, m) matrices.

    Args:
        x: samples (n, ...), flattened to (n, d); real, finite.
        depth: number of hidden layers L, zero or more; at zero the kernel is the Gram matrix.
        activation: "relu", "identity", "relu2", "tanh", "gelu", "erf", "swish" or a smooth function.
        trainable: "all" layers, or only the "first".
        z: second samples (m, ...); `x` where left out.

    Returns:
        float64 on the device of x; exactly symmetric where z is left out.

    Raises:
        InputError: non-finite or misshaped samples, an unknown activation, norms too large for a
            smooth one.
        NumericsError: the kernel overflows (relu2 on inputs away from unit norm).

    Example:
        >>> ntk(torch.eye(2), depth=1).diagonal().tolist()
        [2.0, 2.0]

    Reference: Jacot, Gabriel & Hongler 2018, Theorem 1; Liu & Hui 2023 (arXiv 2305.08813), Lemma 3.1,
    which gives K = (L + 1) G for a linear net (the paper prints (L + 1)^2 G).
    """
    scale, states = _pairs(x, z, depth, activation, trainable)
    state = _at_depth(states, depth)
    return _finite(scale * (state.t_i * state.t_j).sqrt() * (1 - state.gap), activation)


def nngp(x: Tensor, depth: int, activation: Activation = "relu", z: Tensor | None = None) -> Tensor:
    """Return the covariance of the outputs of an infinitely wide net at initialisation, (n, n) or (n, m).

        Sigma_{l+1} = c E[s(u) s(v)],  (u, v) ~ N(0, Sigma_l),  Sigma_0 = x z^T

    It is the last layer's part of the tangent kernel, so Sigma <= ntk(x, depth) as matrices, and the
    initial outputs f_0 ~ N(0, Sigma) have E (v_i . f_0)^2 <= lambda_i on every eigenvector of the
    tangent kernel. Scaling, cost and activations as for `ntk`.

    Args:
        x: samples (n, ...).
        depth: number of hidden layers L.
        activation: as for `ntk`.
        z: second samples (m, ...); `x` where left out.

    Returns:
        float64 on the device of x.

    Raises:
        InputError: as for `ntk`.
        NumericsError: as for `ntk`.

    Example:
        >>> nngp(torch.eye(2), depth=3).diagonal().tolist()
        [1.0, 1.0]

    Reference: Lee et al. 2018 (deep neural networks as Gaussian processes), section 2.
    """
    scale, states = _pairs(x, z, depth, activation, "all")
    state = _at_depth(states, depth)
    return _finite(scale * (state.q_i * state.q_j).sqrt() * (1 - state.delta), activation)


def _pairs(
    x: Tensor, z: Tensor | None, depth: int, activation: Activation, trainable: Trainable
) -> tuple[Tensor, Iterator[State]]:
    """Return the factor that restores the norms, and the states of unit (or actual) norm by depth."""
    norm, u = norms_and_directions(as_rows(x))
    other, v = (norm, None) if z is None else norms_and_directions(as_rows(z, "z"))
    if v is not None and v.shape[1] != u.shape[1]:
        raise InputError(f"x has {u.shape[1]} features a sample and z has {v.shape[1]}; they must agree")
    norm, other = (torch.where((length - 1).abs() < 1e-14, 1.0, length) for length in (norm, other))
    theta, one = pair_angles(u, v), torch.ones((), dtype=torch.float64, device=u.device)
    if isinstance(activation, str) and activation in DEGREE:
        power = float(DEGREE[activation]) ** min(depth, 1000)
        return _outer(norm**power, other**power), by_depth(theta, one, one, activation, trainable)
    if bool((norm == 0).any()) or bool((other == 0).any()):
        _check_silent_at_zero(activation)
    present = _outer((norm > 0).double(), (other > 0).double())
    norm, other = (torch.where(length > 0, length, 1.0) for length in (norm, other))
    unit = bool((norm == 1).all()) and bool((other == 1).all())
    q_i, q_j = (one, one) if unit else (norm[:, None] ** 2, other[None, :] ** 2)
    return present, by_depth(theta, q_i, q_j, activation, trainable)


def _check_silent_at_zero(activation: Activation) -> None:
    if callable(activation) and float(activation(torch.zeros(1, dtype=torch.float64))) != 0:
        raise InputError(
            "a zero row has no direction, and this activation is not zero at zero; drop zero rows"
        )


def _outer(left: Tensor, right: Tensor) -> Tensor:
    return left[:, None] * right[None, :]


def _at_depth(states: Iterator[State], depth: int) -> State:
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
        raise InputError(f"depth counts hidden layers and must be an integer of zero or more, got {depth!r}")
    return next(islice(states, depth, None))


def _as_angles(theta: Tensor | float) -> Tensor:
    angles = torch.as_tensor(theta, dtype=torch.float64)
    if not bool(((angles >= 0) & (angles <= math.pi)).all()):
        raise InputError(
            f"angles are in radians within [0, pi], got {float(angles.min())} to {float(angles.max())}"
        )
    return angles


def _finite(kernel: Tensor, activation: Activation) -> Tensor:
    if not bool(torch.isfinite(kernel).all()):
        raise NumericsError(
            f"the kernel of {activation!r} overflows at these norms; scale the inputs to unit norm"
        )
    return kernel
