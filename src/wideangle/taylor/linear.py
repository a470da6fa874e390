"""The model's own linear expansion in its parameters, as a module one can train."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from wideangle.errors import InputError
from wideangle.kernel._model import OutputPick, select_parameters
from wideangle.kernel._push import Mode, Named, pick_tensor, push_forward

__all__ = ["Linearized", "linearize"]


class Linearized(nn.Module):
    """The first-order Taylor expansion of a network in its parameters; `linearize` makes it.

        f_lin(x; w) = f(w0; x) + J(w0; x) (w - w0)

    Its trainable parameters w carry the names of the network's and start at w0; w0 and the network's
    buffers are buffers of this module, so `state_dict`, `to` and `double` keep all of them together.
    Its `train()` and `eval()` switch the layers of the expansion: in train mode, BatchNorm is expanded
    with the statistics of the batch and its running statistics are left alone.

    Any optimiser trains it. Linear in w, so gradient descent on a squared loss follows
    r_{t+1} = (I - eta c K) r_t exactly, K the tangent kernel at w0, c of `wideangle.losses`.

    Cost of a call: about two forward passes; no p x p and no n x p array is made.
    """

    _origin: nn.Module

    def __init__(
        self, model: nn.Module, *, params: Any = None, output: OutputPick = None, mode: Mode = "auto"
    ):
        super().__init__()
        chosen = select_parameters(model, params)
        origin = _copy(model)
        aliases = _aliases(origin, chosen)
        start = {name: origin.get_parameter(name).detach() for name in chosen}
        _freeze(origin)
        for name, tensor in start.items():
            _place(self, name, nn.Parameter(tensor.clone()))
        self._origin = origin
        self._aliases = aliases
        self._output: OutputPick = output
        self._mode: Mode = mode
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return f(w0; x) + J(w0; x) (w - w0), shaped as the network's output.

        Args:
            *args: what the network takes.
            **kwargs: what the network takes.

        Raises:
            InputError: the network returns something else than a tensor and no `output=` was given.
        """
        point = {name: self._origin.get_buffer(name) for name in self._aliases}
        shift = {name: self.get_parameter(name) - point[name] for name in self._aliases}

        def function(weights: Named) -> Tensor:
            return self._evaluate(weights, args, kwargs)

        value, product, worked = push_forward(function, point, shift, self._mode)
        self._mode = "reverse" if worked == "reverse" else self._mode
        return value + product

    def _evaluate(self, weights: Named, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        state = {name: buffer.clone() for name, buffer in self._origin.named_buffers(remove_duplicate=False)}
        for name, others in self._aliases.items():
            state.update(dict.fromkeys(others, weights[name]))
        return pick_tensor(
            torch.func.functional_call(self._origin, state, args, kwargs, tie_weights=False), self._output
        )


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"the {type(model).__name__} cannot be copied ({error}); remove old-style weight_norm or tensors "
            "that carry a graph from its attributes"
        ) from error


def _aliases(model: nn.Module, chosen: list[str]) -> dict[str, list[str]]:
    """Every name under which a chosen parameter is used: more than one where weights are tied."""
    every = list(model.named_parameters(remove_duplicate=False))
    return {
        name: [other for other, tensor in every if tensor is model.get_parameter(name)] for name in chosen
    }


def _freeze(model: nn.Module) -> None:
    """Turn every parameter into a buffer of the same name; tied ones stay one tensor."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                del module._parameters[name]
                module.register_buffer(name, made.setdefault(id(parameter), parameter.detach()))


def _place(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.register_parameter(last, parameter)


def linearize(
    model: nn.Module, *, params: Any = None, output: OutputPick = None, mode: Mode = "auto"
) -> Linearized:
    """Return the linear expansion of `model` around its present parameters, as a trainable module.

        f_lin(x; w) = f(w0; x) + J(w0; x) (w - w0),   J = df/dw at w0, w starts at w0

    Exact up to rounding: J (w - w0) comes from forward-mode differentiation, or from two backward
    passes where an operation has no forward mode. The model is copied and left as found.

    Cost: memory of 2 copies of the parameters; a call costs about two forward passes.

    Args:
        model: any module; frozen parameters stay constants of the expansion.
        params: which parameters to expand in: None for all that require a gradient, or names, or a
            predicate on names.
        output: which part of a tuple, dict or ModelOutput to expand (a key, an index or a function).
        mode: "forward", "reverse" (two backward passes), or "auto" (forward, else reverse).

    Returns:
        A `Linearized` in the training mode, on the device and of the type of `model`.

    Raises:
        InputError: no parameter to expand in, a model that cannot be copied, an unknown mode.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> expansion = linearize(model)
        >>> x = torch.ones(4, 2)
        >>> bool((expansion(x) - model(x)).abs().max() < 1e-6)
        True
        >>> [name for name, _ in expansion.named_parameters()] == [n for n, _ in model.named_parameters()]
        True

    Reference: Lee et al. 2019, "Wide neural networks of any depth evolve as linear models under gradient
    descent", Eq. 5.
    """
    if mode not in ("auto", "forward", "reverse"):
        raise InputError(f"unknown mode {mode!r}; choose auto, forward or reverse")
    return Linearized(model, params=params, output=output, mode=mode)
