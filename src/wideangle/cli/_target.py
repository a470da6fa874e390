"""TARGET: a built-in model by name, or the user's own as module.py:factory."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wideangle.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from wideangle.data import Dataset

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_SHAPE_AND_OUTPUTS = (("in_shape", "outputs"), ("shape", "outputs"))


def build(target: str, dataset: Dataset, seed: int) -> nn.Module:
    """The model behind `target`, for this data; the same seed draws the same weights.

    A user's factory draws from torch's global stream, so that stream is set to one derived from the
    seed while the factory runs and put back after it.
    """
    if ".py" not in target:
        from wideangle import nets

        return nets.build(target, dataset, seed=seed)
    if ":" not in target:
        raise InputError(f"{target!r} names a file only; name the factory in it too, as in {target}:build")
    from wideangle.data import import_function

    with _stream(seed):
        factory = import_function(target)
        try:
            made = _call(factory, target, dataset)
        except InputError:
            raise
        except Exception as error:  # the user's own code may raise anything
            raise InputError(f"{target} raised {_told(error)}") from error
    return _model(made, target)


def _told(error: Exception) -> str:
    """The error and the place in the user's code where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _stream(seed: int) -> Any:
    import contextlib

    import torch

    from wideangle import seeds

    @contextlib.contextmanager
    def scope() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(seeds.generator(seed, "model").get_state())
            yield

    return scope()


def _call(factory: Callable[..., Any], target: str, dataset: Dataset) -> Any:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        return factory()
    places = [part for part in parameters if part.kind in _POSITIONAL]
    needed = [part for part in parameters if part.default is part.empty and part.kind in _POSITIONAL]
    keywords = [
        part.name for part in parameters if part.kind is part.KEYWORD_ONLY and part.default is part.empty
    ]
    names = tuple(part.name for part in places[:2])
    if keywords or len(needed) > 2 or (len(needed) == 1 and len(places) < 2):
        listed = ", ".join([part.name for part in needed] + keywords)
        raise InputError(
            f"{target} needs {listed}; a factory takes no argument, or the shape of one input and the number "
            "of outputs"
        )
    if needed or names in _SHAPE_AND_OUTPUTS:
        outputs = dataset.classes or int(dataset.y.shape[1])
        return factory(tuple(dataset.x.shape[1:]), outputs)
    return factory()


def _model(made: Any, target: str) -> nn.Module:
    from torch import nn

    if isinstance(made, tuple) and made:
        made = made[0]
    if not isinstance(made, nn.Module):
        raise InputError(f"{target} returned a {type(made).__name__}; it must return a torch.nn.Module")
    return made
