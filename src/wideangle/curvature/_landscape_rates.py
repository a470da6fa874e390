"""What PL* and aiming promise: steps, rates, radii and times as functions of the constants."""

from __future__ import annotations

import math

from wideangle.errors import InputError

__all__ = [
    "aiming_bound",
    "batch_smoothness",
    "exit_probability",
    "iterations",
    "pl_gradient_step",
    "pl_sgd_rate",
    "pl_sgd_step",
    "quadratic_growth",
    "sgd_step",
    "solution_radius",
    "transformed_pl",
    "uniform_pl",
]


def _positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be positive and finite, got {value}")


def _not_negative(**numbers: float) -> None:
    for name, value in numbers.items():
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name} must be zero or more and finite, got {value}")


def uniform_pl(lambda_0: float, *, lipschitz: float, hessian: float, equations: int, radius: float) -> float:
    """Return the mu that holds on a whole ball by the paper's bound; below zero it says nothing.

        mu = lambda_0 - 2 lipschitz sqrt(equations) hessian radius

    From |lambda_min(K(w)) - lambda_0| <= |K(w) - K(w_0)|_2 and K(w) - K(w_0) = J J^T - J_0 J_0^T.

    Args:
        lambda_0: the smallest eigenvalue of K(w_0), full kernel.
        lipschitz: L_F >= |J(w)|_2 on the ball.
        hessian: >= |grad^2 f_ic(w)|_2 on the ball, for every sample and output.
        equations: n C.
        radius: of the ball around w_0.

    Raises:
        InputError: a number is negative or not finite, or the radius is not positive.

    Example:
        >>> uniform_pl(1.0, lipschitz=2.0, hessian=0.05, equations=4, radius=1.0)
        0.6

    Reference: Liu, Zhu & Belkin 2022 (arXiv 2003.00307), uniform conditioning by Hessian control; n there
    is the number of equations, n C here.
    """
    _not_negative(lambda_0=lambda_0, lipschitz=lipschitz, hessian=hessian)
    _positive(radius=radius, equations=equations)
    return lambda_0 - 2 * lipschitz * math.sqrt(equations) * hessian * radius


def solution_radius(residual: float, *, lipschitz: float, mu: float) -> float:
    """Return the radius of the ball around w_0 in which mu-PL* makes a solution exist.

        R = 2 lipschitz |F(w_0) - y| / mu       (L = 1/2 |F - y|^2, a sum)

    Gradient descent with `pl_gradient_step` stays within it. It is far from tight: paths measured on wide
    nets are thousands of times shorter.

    Args:
        residual: |F(w_0) - y|.
        lipschitz: L_F on the ball.
        mu: of PL* on the ball.

    Raises:
        InputError: a number is not positive and finite (the residual may be 0).

    Example:
        >>> solution_radius(3.0, lipschitz=2.0, mu=0.5)
        24.0

    Reference: Liu, Zhu & Belkin 2022 (arXiv 2003.00307), local PL* gives a solution.
    """
    _not_negative(residual=residual)
    _positive(lipschitz=lipschitz, mu=mu)
    return 2 * lipschitz * residual / mu


def pl_gradient_step(residual: float, *, lipschitz: float, smoothness: float) -> float:
    """Return the step at which gradient descent on L = 1/2 |F - y|^2 loses the factor 1 - step mu a step.

        step = 1 / (lipschitz^2 + smoothness |F(w_0) - y|)

    The bracket bounds the Hessian of L where L <= L(w_0). Rate: L(w_t) <= (1 - step mu)^t L(w_0).

    Args:
        residual: |F(w_0) - y|.
        lipschitz: L_F on the ball of `solution_radius`.
        smoothness: beta_F on it: |J(w) - J(v)|_2 <= beta_F |w - v|.

    Raises:
        InputError: the Lipschitz constant is not positive, or another number is negative.

    Example:
        >>> pl_gradient_step(3.0, lipschitz=1.0, smoothness=1.0)
        0.25

    Reference: Liu, Zhu & Belkin 2022 (arXiv 2003.00307), gradient descent under PL*.
    """
    _not_negative(residual=residual, smoothness=smoothness)
    _positive(lipschitz=lipschitz)
    return 1 / (lipschitz**2 + smoothness * residual)


def pl_sgd_step(mu: float, beta: float, *, samples: int, batch: int) -> float:
    """Return the step of SGD under mu-PL*, for the *sum* of the batch's gradients.

        step = mu / (beta (samples beta + mu (batch - 1)))

    with l_i = 1/2 |f_i - y_i|^2, L = sum_i l_i, w <- w - step sum_{i in batch} grad l_i, batches drawn with
    replacement. Then E L(w+) <= `pl_sgd_rate` * L(w).

    Args:
        mu: of PL* for the sum.
        beta: smoothness of every l_i.
        samples: n.
        batch: s.

    Raises:
        InputError: a number is not positive.

    Example:
        >>> pl_sgd_step(1.0, 2.0, samples=4, batch=1)
        0.0625

    Reference: Liu, Zhu & Belkin 2022 (arXiv 2003.00307), SGD under PL*; derived here, without the paper's
    probability of leaving the ball.
    """
    _positive(mu=mu, beta=beta, samples=samples, batch=batch)
    return mu / (beta * (samples * beta + mu * (batch - 1)))


def pl_sgd_rate(mu: float, step: float, *, samples: int, batch: int) -> float:
    """Return the factor by which SGD with at most `pl_sgd_step` reduces the expected loss: 1 - mu s step / n.

    With batch = samples it is the 1 - mu step of gradient descent.

    Args:
        mu: of PL* for the sum of the losses.
        step: of the sum of the batch's gradients.
        samples: n.
        batch: s.

    Raises:
        InputError: a number is not positive.

    Example:
        >>> pl_sgd_rate(1.0, 0.0625, samples=4, batch=1)
        0.984375

    Reference: as `pl_sgd_step`.
    """
    _positive(mu=mu, step=step, samples=samples, batch=batch)
    return 1 - mu * batch * step / samples


def transformed_pl(mu: float, slope: float) -> float:
    """Return the mu that is left behind an output transform whose slope is at least `slope`: slope^2 mu.

        K of phi(F) = Phi' K Phi',  Phi' diagonal,  so  lambda_min >= slope^2 lambda_min(K)

    Args:
        mu: lambda_min of the kernel of F.
        slope: the smallest |phi'| at the outputs.

    Raises:
        InputError: a number is negative or not finite.

    Example:
        >>> transformed_pl(2.0, 0.5)
        0.5

    Reference: Liu, Zhu & Belkin 2022 (arXiv 2003.00307), transformations that keep PL*.
    """
    _not_negative(mu=mu, slope=slope)
    return slope**2 * mu


def quadratic_growth(loss: float, distance: float) -> float:
    """Return the quadratic growth seen at a point: the alpha of L(w) = (alpha/2) dist(w, S)^2.

        alpha = 2 loss / distance^2

    The constant of the condition is the minimum over points. PL* with mu implies growth with alpha = mu.

    Args:
        loss: L(w), in the convention in which alpha is wanted (the mean, 1/(2n), for the aiming paper).
        distance: to the nearest solution.

    Raises:
        InputError: the distance is not positive, or the loss negative.

    Example:
        >>> quadratic_growth(2.0, 2.0)
        1.0

    Reference: Liu, Drusvyatskiy, Belkin, Davis & Ma 2023 (arXiv 2306.02601), quadratic growth.
    """
    _not_negative(loss=loss)
    _positive(distance=distance)
    return 2 * loss / distance**2


def sgd_step(theta: float, beta: float) -> float:
    """Return the best constant step of SGD under aiming: theta / (2 beta).

    Any step below theta / beta converges: E dist^2 <- (1 - step alpha (theta - beta step)) dist^2.

    Args:
        theta: the aiming constant, 2 for least squares.
        beta: smoothness of every sample's loss (or of a batch's, see `batch_smoothness`).

    Raises:
        InputError: a number is not positive: without aiming this step promises nothing.

    Example:
        >>> sgd_step(2.0, 4.0)
        0.25

    Reference: Liu et al. 2023 (arXiv 2306.02601), SGD under aiming. Loss: L = E l, a mean.
    """
    _positive(theta=theta, beta=beta)
    return theta / (2 * beta)


def iterations(
    target: float,
    distance: float,
    *,
    growth: float,
    beta: float,
    theta: float = 2.0,
    step: float | None = None,
) -> int:
    """Return the steps of SGD after which E dist^2 <= target, under aiming and quadratic growth.

        T = ceil(log(distance^2 / target) / (step growth (theta - beta step)))

    At step = theta / (2 beta): 4 beta / (growth theta^2) times the logarithm. Gradient descent has the mean
    loss's own smoothness beta_L in place of beta: the same order in the conditioning, but SGD takes up to
    beta / beta_L times the steps, which can be as large as n.

    Args:
        target: the squared distance wanted.
        distance: to the solutions at the start.
        growth: alpha, L >= (alpha/2) dist^2, L a mean.
        beta: smoothness of every sample's loss.
        theta: aiming constant.
        step: below theta / beta; `sgd_step` where left out.

    Raises:
        InputError: a number is not positive, or the step is theta / beta or more.

    Example:
        >>> iterations(1e-3, 1.0, growth=1.0, beta=10.0)
        70

    Reference: Liu et al. 2023 (arXiv 2306.02601), iteration complexity of SGD under aiming.
    """
    _positive(target=target, distance=distance, growth=growth, beta=beta, theta=theta)
    used = sgd_step(theta, beta) if step is None else step
    _positive(step=used)
    gain = used * growth * (theta - beta * used)
    if gain <= 0:
        raise InputError(f"step={used:g} is not below theta/beta={theta / beta:g}; SGD need not converge")
    return max(0, math.ceil(math.log(distance**2 / target) / gain))


def exit_probability(distance: float, radius: float) -> float:
    """Return a bound of the chance that SGD ever leaves the tube dist(w, S) <= radius: min(1, d^2 / r^2).

    dist^2 stopped at the exit is a non-negative supermartingale under aiming in the tube (Ville).

    Args:
        distance: d, of the start to the solutions.
        radius: r, of the tube in which aiming holds.

    Raises:
        InputError: the radius is not positive.

    Example:
        >>> exit_probability(1.0, 4.0)
        0.0625

    Reference: Liu et al. 2023 (arXiv 2306.02601), local convergence; derived here.
    """
    _not_negative(distance=distance)
    _positive(radius=radius)
    return min(1.0, (distance / radius) ** 2)


def batch_smoothness(beta: float, lambda_max: float, batch: int) -> float:
    """Return the beta of a batch of independent draws: (beta + (batch - 1) lambda_max) / batch.

    E|g_b|^2 <= 2 beta_b L for least squares; batch = 1 gives beta, a large batch lambda_max.

    Args:
        beta: smoothness of the hardest sample's loss.
        lambda_max: smoothness of the mean loss L.
        batch: b.

    Raises:
        InputError: a number is not positive.

    Example:
        >>> batch_smoothness(10.0, 1.0, 3)
        4.0

    Reference: Liu et al. 2023 (arXiv 2306.02601), mini-batch SGD; exact for least squares only.
    """
    _positive(beta=beta, lambda_max=lambda_max, batch=batch)
    return (beta + (batch - 1) * lambda_max) / batch


def aiming_bound(hessian: float, distance: float, growth: float, *, outputs: int = 1) -> float:
    """Return a lower bound of theta for a nearly linear model: 2 - hessian distance sqrt(outputs / growth).

    Let d = distance. F(w*) = y gives grad f_i . (w - w*) = r_i + e_i with |e_i| <= hessian d^2 / 2, so
    |theta - 2| <= hessian d^2 sqrt(outputs / (2 L)), and L >= (growth/2) d^2.

    Args:
        hessian: >= |grad^2 f_ic|_2 on the segment from w to its projection, for every sample and output.
        distance: |w - proj(w)|.
        growth: alpha of L = 1/(2n) |F - y|^2: L(w) >= (alpha/2) distance^2.
        outputs: C.

    Raises:
        InputError: a number is negative, or the growth not positive.

    Example:
        >>> aiming_bound(0.1, 2.0, 0.25)
        1.6

    Reference: Liu et al. 2023 (arXiv 2306.02601), aiming of wide networks; derived here, with the factor
    sqrt(C) that several outputs a sample bring.
    """
    _not_negative(hessian=hessian, distance=distance)
    _positive(growth=growth, outputs=outputs)
    return 2 - hessian * distance * math.sqrt(outputs / growth)
