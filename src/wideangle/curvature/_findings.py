"""What an audit found, in plain sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wideangle.curvature._trace import Trace
from wideangle.nets._stage import Stage

if TYPE_CHECKING:
    from wideangle.curvature._audit import Audit

__all__ = ["sentences"]

WIDE = 32


def sentences(found: Audit, trace: Trace) -> list[str]:
    """Return the findings of an audit, the most general first."""
    texts = [
        _size_sentence(found),
        _output_sentence(found, trace),
        _bottleneck_sentence(found),
        _narrow_sentence(found),
        _norm_sentence(found),
        f"Dropout in {len(found.dropout)} layers: measurements need eval mode." if found.dropout else "",
        "Softmax attention inside: it adds curvature that width alone need not remove."
        if found.attention
        else "",
        _activation_sentence(found),
        _scale_sentence(found),
    ]
    return [text for text in texts if text]


def _size_sentence(found: Audit) -> str:
    frozen = found.parameters - found.trainable
    text = f"{found.parameters:,} parameters in {len(found.layers)} weight layers"
    return f"{text}, {frozen:,} of them frozen." if frozen else f"{text}."


def _output_sentence(found: Audit, trace: Trace) -> str:
    if found.linear_output is None:
        return "Whether the output is linear in the last layer could not be measured."
    if found.linear_output:
        return "The output is linear in the last weight layer: the model can become linear with width."
    through = ", ".join(found.output_functions) or "a non-linear function"
    layer = f"'{trace.last}'" if trace.last else "the last weights"
    return (
        f"The output passes through {through} after {layer}: the model does not become linear at any "
        "width. If that function belongs to the loss, move it there."
    )


def _is_graph(found: Audit) -> bool:
    return any(row["type"] == Stage.__name__ for row in found.layers)


def _bottleneck_sentence(found: Audit) -> str:
    if found.assembled:
        return (
            f"An assembly of {found.assembled} sub-models: its width is their number, as long as none dominates and "
            "they share no parameters (curvature.dominance, curvature.assembly_hessian_norm)."
        )
    if found.narrowest is None:
        return ""
    graph = _is_graph(found)
    what, measure = ("in-degree", "fan_in") if graph else ("width", "width")
    if not found.bottleneck:
        return (
            f"The smallest in-degree behind the first layer is {found.narrowest}."
            if graph
            else f"The narrowest hidden layer has width {found.narrowest}."
        )
    rows = found.layers[1:] if graph else found.layers
    name = next(row["name"] for row in rows if row[measure] == found.narrowest)
    return (
        f"Layer '{name}' is a bottleneck: {what} {found.narrowest} against {found.typical_width:g} typically. "
        f"The curvature stays of order 1/sqrt({found.narrowest}) however wide the other layers are."
    )


def _narrow_sentence(found: Audit) -> str:
    if found.widest is None or found.widest >= WIDE:
        return ""
    what = "in-degree" if _is_graph(found) else "width"
    return (
        f"Every hidden layer is narrow: the largest {what} is {found.widest}, under {WIDE}. What holds with width "
        "need not show at this size: wider nets of this form may be nearly linear, this one need not be; "
        "measure linearity_gap."
    )


def _norm_sentence(found: Audit) -> str:
    if not found.normalization:
        return ""
    text = f"Normalisation: {', '.join(f'{count} {kind}' for kind, count in found.normalization.items())}."
    if not any("batch" in kind.lower() for kind in found.normalization):
        return text
    return (
        f"{text} BatchNorm is part of f. In train mode it divides by statistics of the batch: weights before it "
        "count only up to scale, a sample's output depends on its batch, and the theory of width, made for one "
        "f(x; w) a sample, does not apply; curvature need not vanish with width in the usual way. In eval mode, "
        "measured here, it is a fixed affine map where it keeps running statistics: another function of the "
        "weights than the one that train mode trains."
    )


def _activation_sentence(found: Audit) -> str:
    if not found.kinks:
        return ""
    have = "have" if len(found.kinks) > 1 else "has"
    return (
        f"{', '.join(found.kinks)} {have} kinks: the Hessian misses them, so use the linearity gap instead."
    )


def _scale_sentence(found: Audit) -> str:
    texts = {
        "ntk": "Weights have standard deviation about 1: the NTK parameterisation, where training moves them "
        "by a distance of about 1 to 3.",
        "standard": "Weights scale as 1/sqrt(fan-in): standard parameterisation, so distances between "
        "weights do not compare across widths.",
        "mixed": "Weight scales differ between layers: neither the NTK nor the standard parameterisation.",
        "other": "Weight scales fit neither the NTK nor the standard parameterisation.",
    }
    return texts.get(found.parameterization, "")
