"""Optimisers whose parameters hold u, the point of the gradient, and w, the iterate, for as long as one asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from wideangle.errors import InputError

__all__ = ["ShowsW"]


class ShowsW(Optimizer):
    """What MaSS and the accelerated methods share: w is shown within a context, and nothing moves inside."""

    _inside = False  # not part of what is saved or copied

    @contextmanager
    def _shown(self, iterates: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
        """Hold w in each parameter of the pairs (parameter, w); after it, what they held, bit for bit."""
        self._refuse_inside("eval_params")
        kept: list[tuple[Tensor, Tensor]] = []
        self._inside = True
        try:
            with torch.no_grad():
                for param, w in iterates:
                    kept.append((param, param.detach().clone()))
                    param.copy_(w)
            yield
        finally:
            with torch.no_grad():
                for param, u in kept:
                    param.copy_(u)
            self._inside = False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state from `state_dict()`; the tensors are copied.

        Raises:
            InputError: within `eval_params`.
        """
        self._refuse_inside("load_state_dict")
        super().load_state_dict(state_dict)

    def _refuse_inside(self, what: str) -> None:
        if self._inside:
            raise InputError(
                f"{what} within eval_params, where the parameters hold w and not u; leave it first"
            )
