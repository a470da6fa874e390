"""One wording for an unknown name: the nearest known one and the whole list."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from wideangle.errors import InputError

__all__ = ["unknown_name"]


def unknown_name(kind: str, name: object, known: Iterable[str], otherwise: str = "") -> InputError:
    """Return the error to raise for a name that is none of the known ones, with the nearest on offer.

    Args:
        kind: what was named, e.g. "data set".
        name: what the user wrote.
        known: the names there are.
        otherwise: what else may be given, e.g. "or pass a function".

    Example:
        >>> print(unknown_name("model", "mpl", ["mlp", "conv"]))
        unknown model 'mpl'; did you mean 'mlp'? Known are mlp, conv
    """
    choices = list(known)
    near = difflib.get_close_matches(str(name).lower(), choices, n=2)
    offer = f"did you mean {' or '.join(map(repr, near))}? Known are" if near else "known are"
    return InputError(
        f"unknown {kind} {name!r}; {offer} {', '.join(choices)}{otherwise and ', ' + otherwise}"
    )
