"""Checkpoints of a training run: written whole or not at all, and read only where they fit."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wideangle.errors import InputError
from wideangle.files import digest, write_atomically
from wideangle.kernel._model import Batch
from wideangle.training._recipe import Recipe

__all__ = ["FORMAT", "check_free", "fingerprint", "read", "write"]

FORMAT = 1
KEYS = ("format", "fingerprint", "model", "optimizer", "step", "steps", "losses", "accuracies", "random")


def fingerprint(model: nn.Module, x: Batch, y: Tensor, recipe: Recipe) -> dict[str, str]:
    """Return what must be equal for a run to go on: the model's shape, the data, the settings but `steps`."""
    facts = {"model": type(model).__name__}
    for name, parameter in model.named_parameters():
        kind = "" if parameter.requires_grad else " frozen"
        facts[f"parameter {name}"] = f"{tuple(parameter.shape)} {parameter.dtype}{kind}"
    for name in ("loss", "step_size", "batch_size", "optimizer", "momentum", "warmup_steps", "seed"):
        facts[name.replace("_", " ")] = repr(getattr(recipe, name))
    if recipe.optimizer == "mass":
        facts["kappa tilde"] = repr(recipe.kappa_tilde)
    for name, tensor in sorted(x.items()) if isinstance(x, dict) else [("x", x)]:
        facts[f"inputs {name}"] = digest(tensor)
    facts["targets"] = digest(y)
    return facts


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint under a temporary name, then rename it."""
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def read(path: Path, facts: dict[str, str] | None = None) -> dict[str, Any]:
    """Return the checkpoint at `path`, tensors on the CPU; nothing in it is executed.

    Raises:
        InputError: no file, no checkpoint of this library, or one of another model, data or recipe.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; leave resume out to start from the beginning")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is no readable checkpoint ({reason[:120]}); start without resume"
        ) from error
    if not isinstance(state, dict) or any(key not in state for key in KEYS):
        raise InputError(f"{path} is not a checkpoint written by wideangle; start without resume")
    if state["format"] > FORMAT:
        raise InputError(
            f"{path} has format {state['format']}, this wideangle reads {FORMAT}; install a newer one"
        )
    if facts is not None:
        _compare(path, state["fingerprint"], facts)
    return state


def _compare(path: Path, there: dict[str, str], here: dict[str, str]) -> None:
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if not names:
        return
    shown = [f"{name}: {there.get(name, 'none')} there, {here.get(name, 'none')} here" for name in names[:3]]
    more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
    raise InputError(
        f"{path} is of another run ({'; '.join(shown)}{more}); resume with what it was started with, or "
        "start anew with another checkpoint file"
    )


def check_free(path: Path) -> None:
    """Refuse to start a new run over the checkpoint of an unfinished one.

    Raises:
        InputError: `path` holds a run that stopped before its end, or a file that is no checkpoint.
    """
    if not path.exists():
        return
    try:
        state = read(path)
    except InputError as error:
        raise InputError(f"{path} exists and is no checkpoint of wideangle; choose another file") from error
    if state["step"] < state["steps"]:
        raise InputError(
            f"{path} holds a run that stopped at step {state['step']} of {state['steps']}; pass resume=True "
            "to go on with it, or remove the file"
        )
