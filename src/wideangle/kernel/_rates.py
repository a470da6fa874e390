"""Rates that follow from a power-law spectrum, and generalisation bounds from spectrum and labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from wideangle.errors import InputError
from wideangle.kernel.spectrum import Spectrum, eigenpairs, project
from wideangle.result import Result

_UNRESOLVED = 1e-12  # share of the label energy that may lie in modes below the resolution


@dataclass(frozen=True)
class PowerLaw(Result):
    """A power law fitted to a spectrum, lambda_i ~ i^(-exponent), and the loss decay it implies.

    The loss falls like t^(-decay_exponent): steps to a loss epsilon grow like
    epsilon^(-1 / decay_exponent). A decay exponent of 0 means that the law gives no rate (the sum over
    the modes does not converge).
    """

    exponent: float
    low: float
    high: float
    r_squared: float
    decay_exponent: float
    first: int
    last: int


def power_law(
    spectrum: Spectrum, *, first: int = 1, last: int | None = None, alignment: float = 1.0
) -> PowerLaw:
    """Return the exponent q of lambda_i ~ i^(-q), its interval, and the decay of the loss it implies.

        tr[(I - step c K)^(2t) K] ~ t^(-(q - 1)/q);   in general energy ~ lambda^s gives t^(-(s - 1/q))

    q is fitted to log(lambda_i) against log(i) with weights 1/i, so that every factor of two in rank
    counts alike; [low, high] is the 95 % interval of the regression at as many degrees of freedom as
    there are doublings. Cost: none to speak of.

    Args:
        spectrum: eigenvalues above the resolution are used.
        first: first rank of the fit, from 1.
        last: last rank of the fit; the rank of the kernel where left out.
        alignment: slope s of the residual's energy against the eigenvalues, see `residual_alignment`.

    Returns:
        A `PowerLaw`; decay_exponent = max(s - 1/q, 0).

    Raises:
        InputError: fewer than eight eigenvalues in the range.

    Example:
        >>> law = power_law(eigenpairs(np.diag(np.arange(1.0, 101.0) ** -2), vectors=False))
        >>> round(law.exponent, 6), round(law.decay_exponent, 6)
        (2.0, 0.5)

    Reference: Marreddy & Liu 2026 (arXiv 2605.25275). Differs from the text available to us, which
    prints T_epsilon = O(log(1/epsilon)/(q - 1)): under a power law log T_epsilon = q/(q - 1) log(1/epsilon).
    """
    from scipy.stats import t

    last = spectrum.rank if last is None else last
    if not (first >= 1 and first + 7 <= last <= spectrum.rank):
        raise InputError(
            f"a power law needs eight eigenvalues within ranks 1 to {spectrum.rank}, got {first} to {last}"
        )
    rank = np.arange(first, last + 1, dtype=float)
    x, e, weight = np.log(rank), np.log(spectrum.eigenvalues[first - 1 : last]), 1 / rank
    weight = weight / weight.sum()
    x, e = x - weight @ x, e - weight @ e
    spread = weight @ x**2
    slope = (weight * x) @ e / spread
    left = max(float(weight @ (e - slope * x) ** 2), 0.0)
    free = max(1.0, math.log2(last / first) - 1)
    half = float(t.ppf(0.975, free)) * math.sqrt(left / spread / free)
    q = -float(slope)
    return PowerLaw(
        exponent=q,
        low=q - half,
        high=q + half,
        r_squared=1 - left / float(weight @ e**2) if e.any() else 1.0,
        decay_exponent=max(alignment - 1 / q, 0.0) if q > 0 else 0.0,
        first=first,
        last=last,
    )


def generalization_bound(K: Any, y: Any, kind: Literal["arora", "aligned"] = "arora") -> float:
    """Return the leading term of a kernel generalisation bound.

        arora:    sqrt(2 sum_c y_c^T K^-1 y_c / n)
        aligned:  sqrt(2 c_y tr K / n),   c_y = |y|^2 / tr K^2

    The second is the first with the label energies replaced by c_y lambda_i^2. Values above the loss of
    a constant guess (about 1 for labels of size 1) are vacuous. Scaling K by s divides both by sqrt(s): the
    bound of the paper is for the kernel of a two-layer ReLU net with |x| = 1 and the first layer trained,
    `ntk(x, 1, trainable="first")`, and has a further term O(sqrt(log(n / (lambda_n delta)) / n)).
    Cost: an eigendecomposition where a kernel is given.

    Args:
        K: kernel or its `Spectrum` with vectors.
        y: real targets (n,) or (n, C), or (n C,) for a full kernel; not class numbers.
        kind: "arora" or "aligned".

    Returns:
        The bound; inf for "arora" where more than 1e-12 of the labels' energy lies in modes below the
        resolution, for those labels cannot be fitted.

    Raises:
        InputError: sizes do not match, class numbers, another kind, or a kernel of zeros.

    Example:
        >>> generalization_bound(np.eye(8), np.ones(8))
        1.4142135623730951

    Reference: Arora et al. 2019 (fine-grained analysis), Theorem 5.1; Marreddy & Liu 2026
    (arXiv 2605.25275), whose constant for the second form is not known to us.
    """
    if kind not in ("arora", "aligned"):
        raise InputError(f"kind must be 'arora' or 'aligned', got {kind!r}")
    labels = torch.as_tensor(y)
    if labels.dim() == 1 and not labels.is_floating_point() and int(labels.abs().max()) > 1:
        raise InputError(
            "the bound needs real targets, and these look like class numbers; one-hot encode them"
        )
    spectrum = K if isinstance(K, Spectrum) else eigenpairs(K)
    energies, lam = (project(spectrum, labels) ** 2).sum(1), spectrum.resolved
    if not lam[0] > 0:
        raise InputError("the kernel is zero; it has no generalisation bound")
    if kind == "aligned":
        scaled = lam / lam[0]
        return math.sqrt(2 * energies.sum() * scaled.sum() / (scaled**2).sum() / lam[0] / spectrum.samples)
    if energies[lam == 0].sum() > _UNRESOLVED * energies.sum():
        return math.inf
    return math.sqrt(2 * float((energies[lam > 0] / lam[lam > 0]).sum()) / spectrum.samples)
