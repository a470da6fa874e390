"""The audit: what in a model decides whether it becomes linear with width, found by running it."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from wideangle.curvature._findings import sentences
from wideangle.curvature._trace import ATTENTION, SOFTMAX, Trace, first_tensor, is_torch, kinks, observe, run
from wideangle.errors import InputError
from wideangle.kernel._model import OutputPick
from wideangle.kernel._push import pick_tensor
from wideangle.nets._stage import Stage
from wideangle.nets.assembly import Assembly
from wideangle.result import Provenance, Result
from wideangle.seeds import generator

__all__ = ["Audit", "audit"]

NARROW, LINEAR = 4, 1e-3


@dataclass(frozen=True)
class Audit(Result):
    """What a model is made of, as far as it decides about linearity, with findings in plain sentences.

    `layers` lists the weight layers in the order of use: name, type, fan_in, width, parameters, calls,
    scale (standard deviation of the weights). `linear_output` is None where it could not be measured.
    `output_curvature` is the second difference of the output, relative to the first, when what the last
    weight layer returns is moved: 0 for a linear output. `narrowest` and `widest` are hidden widths, or in a
    graph in-degrees behind the first layer. `kinks` names the functions with kinks behind weights.
    `attention` is True for attention, and for a softmax that another weight layer follows.
    """

    layers: list[dict[str, Any]] = field(default_factory=list, repr=False)
    parameters: int = 0
    trainable: int = 0
    linear_output: bool | None = None
    output_curvature: float | None = None
    output_functions: list[str] = field(default_factory=list)
    narrowest: int | None = None
    widest: int | None = None
    typical_width: float | None = None
    bottleneck: bool = False
    assembled: int = 0
    normalization: dict[str, int] = field(default_factory=dict)
    dropout: dict[str, float] = field(default_factory=dict)
    activations: dict[str, int] = field(default_factory=dict)
    kinks: list[str] = field(default_factory=list)
    attention: bool = False
    parameterization: str = "unknown"
    findings: list[str] = field(default_factory=list)


def audit(model: nn.Module, example_input: Any, *, output: OutputPick = None, seed: int = 0) -> Audit:
    """Return what in a model decides whether it becomes linear with width, measured by running it.

        output_curvature = max over shifts d of |f(z+d) - 2 f(z) + f(z-d)| / |f(z+d) - f(z-d)|,

    z what the last weight layer returns: above 1e-3 the output is called non-linear. A hidden layer is
    a bottleneck where 4 times its width is at most the median hidden width; a net whose hidden layers
    all have widths under 32 is called narrow. The parameterisation is
    "ntk" where weights have standard deviation about 1 (fan-in 16 or more), "standard" where it is
    about 1/sqrt(fan-in), "mixed" or "unknown" otherwise.

    Cost: about a dozen forward passes in eval mode; the model is left as found.

    Args:
        model: any module.
        example_input: what the model takes: a tensor, a dict of arguments by name, or a tuple of them; a
            few samples are enough.
        output: which part of a tuple, dict or ModelOutput is the output; None takes the first
            floating tensor.
        seed: of the shifts d.

    Returns:
        An `Audit`.

    Raises:
        InputError: the model does not run on the example input.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1), nn.Tanh())
        >>> found = audit(model, torch.ones(2, 4))
        >>> found.linear_output, found.output_functions
        (False, ['tanh'])

    Reference: Liu, Zhu and Belkin 2020 (arXiv 2010.01092), Sections 3 and 4: linear output and no
    bottleneck make the Hessian vanish with width.
    """
    try:
        trace = observe(model, example_input)
    except Exception as error:
        raise InputError(
            f"the {type(model).__name__} does not run on the example input ({type(error).__name__}: "
            f"{error}); give what its forward takes: a tensor, a dict of arguments, or a tuple"
        ) from error
    curvature = _quietly(lambda: _output_curvature(model, example_input, trace, output, seed))
    linear = None if curvature is None else curvature < LINEAR
    layers = [_row(use.name, use.module, use.calls, use.width) for use in trace.uses.values()]
    hidden = [len(assembled)] if (assembled := _assembled(model)) else _hidden(layers)
    typical = statistics.median(hidden) if hidden else None
    found = Audit(
        layers=layers,
        parameters=sum(_count(p) for p in model.parameters()),
        trainable=sum(_count(p) for p in model.parameters() if p.requires_grad),
        linear_output=linear,
        output_curvature=curvature,
        output_functions=[] if linear or trace.last is None else list(trace.after),
        narrowest=min(hidden) if hidden else None,
        widest=max(hidden) if hidden else None,
        typical_width=typical,
        assembled=0 if assembled is None else len(assembled),
        bottleneck=typical is not None and NARROW * min(hidden) <= typical,
        normalization=dict(Counter(_kinds(model, "norm"))),
        dropout=_dropout(model),
        activations={n: k for n, k in trace.functions.items() if n not in SOFTMAX | ATTENTION},
        kinks=_quietly(lambda: kinks(model, example_input)) or [],
        attention=_attention(model, trace),
        parameterization=_parameterization(layers),
        provenance=Provenance.here(seed=seed),
    )
    return replace(found, findings=sentences(found, trace))


def _assembled(model: nn.Module) -> nn.ModuleList | None:
    """Return the sub-models where the model is an assembly: their number is the width that matters."""
    return model.sub_models if isinstance(model, Assembly) else None


def _hidden(layers: list[dict[str, Any]]) -> list[int]:
    """Return the widths that matter: of the hidden layers, or in a graph the in-degrees behind the first layer."""
    if any(row["type"] == Stage.__name__ for row in layers):
        return [row["fan_in"] for row in layers[1:]]
    return [row["width"] for row in layers[:-1] if row["width"] > 0]


def _attention(model: nn.Module, trace: Trace) -> bool:
    """Tell whether attention is inside: a function of that name, or a softmax that is not the output's."""
    used = Counter({name: count for name, count in trace.functions.items() if name in SOFTMAX})
    inside = used - Counter(trace.after)
    return bool(ATTENTION & set(trace.functions) or inside or (used and _kinds(model, "attention")))


def _quietly(measure: Callable[[], Any]) -> Any:
    """A probe may meet a model it cannot handle; then the answer is "not measured", never an error."""
    try:
        return measure()
    except Exception:
        return None


def _count(parameter: Tensor) -> int:
    return 0 if isinstance(parameter, nn.parameter.UninitializedParameter) else parameter.numel()


def _row(name: str, module: nn.Module, calls: int, width: int) -> dict[str, Any]:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        weight = next((p for p in module._parameters.values() if p is not None and p.ndim >= 2), None)
    fan_in = None if weight is None else weight[0].numel()
    if isinstance(module, Stage):
        fan_in = module.even or int(module.degree.min())
    scale = None if weight is None else float(weight.detach().double().square().mean().sqrt())
    return {
        "name": name or "(the model)",
        "type": type(module).__name__,
        "fan_in": fan_in,
        "width": width,
        "parameters": sum(_count(p) for p in module.parameters()),
        "calls": calls,
        "scale": scale,
    }


def _kinds(model: nn.Module, word: str) -> list[str]:
    return [type(m).__name__ for m in model.modules() if word in type(m).__name__.lower() and m is not model]


def _dropout(model: nn.Module) -> dict[str, float]:
    rates = {}
    for name, module in model.named_modules():
        plain = isinstance(module, nn.modules.dropout._DropoutNd)
        rate = module.p if plain else getattr(module, "dropout", 0.0)
        if isinstance(rate, float) and rate > 0:
            rates[name or "(the model)"] = rate
    return rates


def _parameterization(layers: list[dict[str, Any]]) -> str:
    votes = set()
    for row in layers:
        if row["type"].startswith("Embedding") or not row["scale"] or (row["fan_in"] or 0) < 16:
            continue
        relative = row["scale"] * math.sqrt(row["fan_in"])
        if 0.7 < row["scale"] < 1.4:
            votes.add("ntk")
        else:
            votes.add("standard" if 0.1 < relative < 3 else "other")
    if not votes:
        return "unknown"
    return votes.pop() if len(votes) == 1 else "mixed"


def _output_curvature(model: nn.Module, x: Any, trace: Trace, output: OutputPick, seed: int) -> float | None:
    """Curvature of the output in what the last weight layer returns, or in weights no such layer holds."""
    gen = generator(seed, "audit")
    use = None if trace.last is None else trace.uses[trace.last]
    found = []
    if use is not None and is_torch(use.module):
        found.append(_curvature(lambda size: _shifted(model, x, use.module, use.calls, size, gen), output))
        if found[0] is not None and found[0] < LINEAR:
            return found[0]
    wide = first_tensor(trace.output)
    width = 1 if wide is None or wide.ndim == 0 else wide.shape[-1]
    for name, parameter in _loose(model, trace):
        if parameter.numel() > width:
            found.append(_curvature(lambda size, n=name: _moved(model, x, n, size, gen), output))
    return min((value for value in found if value is not None), default=None)


def _loose(model: nn.Module, trace: Trace) -> list[tuple[str, Tensor]]:
    """Parameters used by other code than a layer of torch: those of containers and of custom layers."""
    held = set()
    for name, module in model.named_modules():
        layer = name in trace.uses and is_torch(module)
        if layer or "norm" in type(module).__name__.lower():
            held.update(id(p) for p in module.parameters(recurse=layer))
        elif name in trace.uses and name != trace.last:
            held.update(id(p) for p in module.parameters())
    return [(n, p) for n, p in model.named_parameters() if id(p) not in held and p.is_floating_point()]


def _curvature(evaluate: Callable[[float], list[Any]], output: OutputPick) -> float | None:
    worst = None
    for size in (1.0, 3.0):
        low, middle, high = (_take(raw, output).double() for raw in evaluate(size))
        first = float((high - low).norm())
        if not math.isfinite(first) or first <= 1e-6 * float(middle.norm()):
            continue
        second = float((high - 2 * middle + low).norm()) / first
        worst = second if worst is None else max(worst, second)
    return worst


def _take(raw: Any, output: OutputPick) -> Tensor:
    found = pick_tensor(raw, output) if output is not None else first_tensor(raw)
    if found is None:
        raise InputError("the model returns no floating tensor")
    return found


def _shifted(
    model: nn.Module, x: Any, module: nn.Module, calls: int, size: float, gen: torch.Generator
) -> list[Any]:
    """Outputs with the last return value of `module` moved by -d, 0, +d."""
    drawn: list[Tensor] = []
    results = []
    for factor in (-size, 0.0, size):
        seen = [0]

        def move(_: nn.Module, args: Any, out: Any, factor: float = factor, seen: list[int] = seen) -> Any:
            seen[0] += 1
            return _add(out, factor, drawn, gen) if seen[0] == calls else out

        handle = module.register_forward_hook(move)
        try:
            results.append(run(model, x))
        finally:
            handle.remove()
    return results


def _add(out: Any, factor: float, drawn: list[Tensor], gen: torch.Generator) -> Any:
    if isinstance(out, Tensor):
        if not drawn:
            drawn.append(torch.randn(out.shape, generator=gen, dtype=torch.float64).to(out))
            drawn[0].mul_(max(1.0, float(out.double().square().mean().sqrt())))
        return out + factor * drawn[0]
    if isinstance(out, tuple) and isinstance(out[0], Tensor):
        return (_add(out[0], factor, drawn, gen), *out[1:])
    raise InputError(f"the last layer returns a {type(out).__name__}")


def _moved(model: nn.Module, x: Any, name: str, size: float, gen: torch.Generator) -> list[Any]:
    """Outputs with one parameter moved by -d, 0, +d."""
    weight = dict(model.named_parameters())[name]
    spread = float(weight.detach().double().square().mean().sqrt()) or 1.0
    shift = size * spread * torch.randn(weight.shape, generator=gen, dtype=torch.float64).to(weight)
    return [run(model, x, {name: weight.detach() + factor * shift}) for factor in (-1.0, 0.0, 1.0)]
