"""The neurons of a model seen as models: the Hessian norms and gradients of their pre-activations."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from wideangle.curvature._hessian_norm import hessian_norm
from wideangle.curvature._operator import refuse_random
from wideangle.curvature._trace import first_tensor
from wideangle.errors import InputError, NumericsError
from wideangle.kernel._model import Batch, batch_size, call, check_model, take
from wideangle.names import unknown_name
from wideangle.result import Provenance, Result
from wideangle.seeds import generator

__all__ = ["Diversity", "NeuronNorms", "gradient_diversity", "preactivation_hessian_norms"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Diversity(Result):
    """How alike the gradients of a layer's neurons are: cosines over all pairs and samples.

    `mean` and `largest` are of |cos|; 1/sqrt(p) times sqrt(2/pi) is what independent directions in p
    dimensions give.
    """

    layer: str = ""
    mean: float = 0.0
    largest: float = 0.0
    neurons: int = 0
    of: int = 0
    samples: int = 0
    cosines: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0)), repr=False)


@dataclass(frozen=True)
class NeuronNorms(Result):
    """Hessian norms of pre-activations, layer by layer: `norms`[layer] is (n, k) for k neurons looked at."""

    norms: dict[str, np.ndarray] = field(default_factory=dict)
    neurons: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "norms", {k: np.asarray(v, dtype=float) for k, v in self.norms.items()})

    def rows(self) -> list[tuple[str, str]]:
        """Return one printed line a layer: mean and largest norm."""
        return [
            (name, f"mean {norms.mean():.4g}, largest {norms.max():.4g} of {norms.shape[1]} neurons")
            for name, norms in self.norms.items()
        ]


class _Neurons(nn.Module):
    """A model that stops at one layer and returns some of its pre-activations, (n, k)."""

    def __init__(self, model: nn.Module, layer: str, chosen: Tensor):
        super().__init__()
        self.model, self.layer, self.chosen = model, layer, chosen

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        found: list[Tensor] = []
        # a copy, as what follows may write into the tensor: nn.SiLU(inplace=True)
        handle = self.model.get_submodule(self.layer).register_forward_hook(
            lambda module, inputs, output: found.append(_tensor(output).clone())
        )
        try:
            self.model(*args, **kwargs)
        finally:
            handle.remove()
        return found[-1].flatten(1)[:, self.chosen]


def preactivation_hessian_norms(
    model: nn.Module,
    x: Batch,
    *,
    neurons: int = 4,
    tolerance: float = 1e-2,
    confidence: float = 0.99,
    seed: int = 0,
) -> NeuronNorms:
    """Return the Hessian norms of the pre-activations of neurons in every linear and convolutional layer.

        norms[layer][i, j] = |grad^2_w a_j(x_i)|_2,   a_j what neuron j of the layer returns (W h + b)

    By induction over layers: where these vanish with width in every layer, so does the curvature of the
    output; a layer whose norms stay large is where linearity is lost. Exactly 0 in the first layer. In a
    convolutional layer a neuron is one channel at one position.

    Cost: one Hessian norm (`hessian_norm`) for each sample, layer and neuron looked at.

    Args:
        model: any module, smooth in its weights.
        x: n inputs; one or two.
        neurons: how many of a layer to look at, drawn by the seed; the same for all samples.
        tolerance: relative residual of each norm.
        confidence: that no larger eigenvalue was missed.
        seed: of the draw and of the random starts.

    Returns:
        A `NeuronNorms`, layers by name in the order of use.

    Raises:
        InputError: no such layer is used, neurons below one; as `hessian_norm`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        >>> found = preactivation_hessian_norms(model, torch.ones(1, 2))
        >>> float(found.norms["0"].max()), bool(found.norms["2"].min() > 0)
        (0.0, True)

    Reference: Liu, Zhu and Belkin 2022 (arXiv 2203.05104), the recursion over layers; Zhu, Liu and Belkin
    2022 (arXiv 2205.11786), Theorem 3.8.
    """
    sizes = _layer_sizes(model, x)
    norms, chosen = {}, {}
    for layer, size in sizes.items():
        numbers = _drawn(size, neurons, layer, seed)
        part = _Neurons(model, layer, numbers)
        found = hessian_norm(part, x, tolerance=tolerance, confidence=confidence, seed=seed)
        norms[layer], chosen[layer] = found.values, numbers.tolist()
    return NeuronNorms(norms, chosen, provenance=Provenance.here(seed=seed))


def gradient_diversity(
    model: nn.Module, layer: str, x: Batch, *, neurons: int = 64, seed: int = 0
) -> Diversity:
    """Return how alike the gradients of the neurons in one layer are.

        cosines[i, j, k] = <grad a_j(x_i), grad a_k(x_i)> / (|grad a_j| |grad a_k|),   a_j as for
        `preactivation_hessian_norms`, gradients in all trainable parameters

    Nearly orthogonal gradients are what makes the neurons of a layer behave like independent sub-models; in
    a wide net at the start, mean |cos| falls like 1/sqrt(width). In the first layer of a fully connected net
    it is 0, for neurons there share no weight.

    Cost: one backward pass for each sample and neuron looked at; memory, neurons gradients.

    Args:
        model: any module.
        layer: its name, as in `model.named_modules()`.
        x: n inputs; a few.
        neurons: how many to look at, drawn by the seed.
        seed: of the draw.

    Returns:
        A `Diversity`.

    Raises:
        InputError: an unknown layer, one that is not used or has a single neuron, neurons below two.
        NumericsError: a neuron has no gradient.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> gradient_diversity(model, "0", torch.ones(1, 2)).mean
        0.0

    Reference: Liu, Zhu and Belkin 2022 (arXiv 2203.05104): diverse sub-models. The measure is ours.
    """
    refuse_random(model)
    check_model(model)
    names = [name for name, _ in model.named_modules() if name]
    if layer not in names:
        raise unknown_name("layer", layer, names)
    size = _layer_sizes(model, x, layer)[layer]
    if size < 2 or neurons < 2:
        raise InputError(f"layer {layer!r} has {size} neurons and neurons={neurons}; a cosine needs two")
    numbers = _drawn(size, neurons, layer, seed)
    part = _Neurons(model, layer, numbers)
    weights = {name: p.detach().requires_grad_() for name, p in part.named_parameters() if p.requires_grad}
    grams = [_gram(part, weights, take(x, slice(i, i + 1))) for i in range(batch_size(x))]
    cosines = torch.stack([_cosines(gram, layer) for gram in grams])
    upper = cosines[:, *torch.triu_indices(len(numbers), len(numbers), 1)].abs()
    return Diversity(
        layer=layer,
        mean=float(upper.mean()),
        largest=float(upper.max()),
        neurons=len(numbers),
        of=size,
        samples=len(grams),
        cosines=cosines.cpu().numpy(),
        provenance=Provenance.here(seed=seed, device=str(cosines.device)),
    )


def _layer_sizes(model: nn.Module, x: Batch, layer: str | None = None) -> dict[str, int]:
    """Return neurons a sample of each layer with weights, or of the one named, in the order of use."""
    sizes: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():
        if name == layer or (layer is None and isinstance(module, LAYERS)):
            handles.append(
                module.register_forward_hook(
                    lambda _module, _inputs, output, name=name: sizes.update({name: _per_sample(output)})
                )
            )
    try:
        with torch.no_grad():
            call(model, {}, take(x, slice(0, 1)))
    finally:
        for handle in handles:
            handle.remove()
    if not sizes:
        wanted = "no linear or convolutional layer" if layer is None else f"the layer {layer!r} is not"
        raise InputError(f"{wanted} used in the forward pass of the {type(model).__name__}")
    return sizes


def _per_sample(output: object) -> int:
    tensor = _tensor(output)
    if tensor.dim() < 2 or tensor.shape[0] != 1:
        raise InputError(
            f"a layer returns {tuple(tensor.shape)} for one sample; neurons need one row a sample"
        )
    return tensor.numel()


def _tensor(output: object) -> Tensor:
    tensor = first_tensor(output)
    if tensor is None:
        raise InputError(f"a layer returns a {type(output).__name__} without a floating tensor; name another")
    return tensor


def _drawn(size: int, neurons: int, layer: str, seed: int) -> Tensor:
    if neurons < 1:
        raise InputError(f"neurons must be at least 1, got {neurons}")
    order = torch.randperm(size, generator=generator(seed, "neurons", layer))
    return order[:neurons].sort().values


def _gram(part: _Neurons, weights: dict[str, Tensor], one: Batch) -> Tensor:
    """Return the inner products of the gradients of all chosen neurons, in float64."""
    with torch.enable_grad():
        outputs = call(part, weights, one)[0]
        rows = torch.eye(len(outputs), dtype=outputs.dtype, device=outputs.device)
        slopes = [
            torch.autograd.grad(outputs, list(weights.values()), row, retain_graph=True, allow_unused=True)
            for row in rows
        ]
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=outputs.device)
    for pieces, weight in zip(zip(*slopes, strict=True), weights.values(), strict=True):
        if any(piece is not None for piece in pieces):
            flat = torch.stack([(torch.zeros_like(weight) if p is None else p).flatten() for p in pieces])
            gram += flat.double() @ flat.double().T
    return gram


def _cosines(gram: Tensor, layer: str) -> Tensor:
    norms = gram.diagonal().sqrt()
    if not bool((torch.isfinite(norms) & (norms > 0)).all()):
        raise NumericsError(f"a neuron of layer {layer!r} has a gradient of norm {float(norms.min()):g}")
    return gram / norms[:, None] / norms
