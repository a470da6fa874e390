"""The record every loader returns, checked on the way in."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wideangle.errors import InputError

__all__ = ["Dataset"]


@dataclass(frozen=True, repr=False, eq=False)
class Dataset:
    """Samples and their targets, checked: finite, of equal number, labels in range.

    Args:
        x: inputs with the sample axis first: float32 (images (n, channels, height, width) in [0, 1],
            tables (n, features)), or int64 token ids (n, length).
        y: int64 class labels (n,), or float32 regression targets (n, k).
        classes: number of classes C, labels being 0..C-1; 0 for regression.
        name: what the data is called in reports.
        vocabulary: number of different token ids, padding included; 0 where x holds numbers.
        label_names: what the classes are called, where known.

    Raises:
        InputError: no sample, x and y of different length, a value that is not finite, a wrong type or
            shape, or a label outside 0..C-1.

    Example:
        >>> Dataset(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]), classes=2, name="toy")
        Dataset('toy': 4 samples of shape (2,), torch.float32, 2 classes)
    """

    x: torch.Tensor
    y: torch.Tensor
    classes: int
    name: str
    vocabulary: int = 0
    label_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.x.ndim < 2 or self.x.shape[0] == 0:
            raise InputError(f"{self.name}: x must be (n, ...) with n >= 1, got {tuple(self.x.shape)}")
        if self.y.ndim == 0 or len(self.y) != len(self.x):
            raise InputError(
                f"{self.name}: x has {len(self.x)} rows and y has shape {tuple(self.y.shape)}; "
                "give one target per row"
            )
        self._check_inputs()
        if self.classes:
            self._check_labels()
        else:
            self._check_targets()

    def _check_inputs(self) -> None:
        if self.x.dtype not in (torch.float32, torch.int64):
            raise InputError(f"{self.name}: x is {self.x.dtype}; use float32 (numbers) or int64 (token ids)")
        if self.x.is_floating_point():
            raise_non_finite(self.x, f"{self.name}: x")
        elif not 0 <= int(self.x.min()) <= int(self.x.max()) < self.vocabulary:
            raise InputError(
                f"{self.name}: token ids run from {int(self.x.min())} to {int(self.x.max())}, "
                f"expected 0..{self.vocabulary - 1}; store features as floating-point numbers"
            )

    def _check_labels(self) -> None:
        if self.y.dtype != torch.int64 or self.y.ndim != 1:
            raise InputError(
                f"{self.name}: class labels must be int64 of shape (n,), got {self.y.dtype} of "
                f"shape {tuple(self.y.shape)}"
            )
        low, high = int(self.y.min()), int(self.y.max())
        if low < 0 or high >= self.classes:
            raise InputError(f"{self.name}: labels run from {low} to {high}, expected 0..{self.classes - 1}")

    def _check_targets(self) -> None:
        if self.y.dtype != torch.float32 or self.y.ndim != 2:
            raise InputError(
                f"{self.name}: regression targets must be float32 of shape (n, k), got {self.y.dtype} of "
                f"shape {tuple(self.y.shape)}"
            )
        raise_non_finite(self.y, f"{self.name}: y")

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        kind = f"{self.classes} classes" if self.classes else f"{self.y.shape[1]} regression target(s)"
        words = f", vocabulary {self.vocabulary}" if self.vocabulary else ""
        shape = tuple(self.x.shape[1:])
        return f"Dataset({self.name!r}: {len(self)} samples of shape {shape}, {self.x.dtype}, {kind}{words})"

    def one_hot(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return the labels as rows of zeros with a one: t_ic = 1 if y_i = c else 0, shape (n, C).

        Args:
            dtype: floating type of the result.

        Raises:
            InputError: the targets are numbers, not classes.

        Example:
            >>> Dataset(torch.zeros(2, 1), torch.tensor([1, 0]), classes=2, name="toy").one_hot().tolist()
            [[0.0, 1.0], [1.0, 0.0]]
        """
        if not self.classes:
            raise InputError(f"{self.name} holds regression targets; there are no classes to encode, use .y")
        return torch.nn.functional.one_hot(self.y, self.classes).to(dtype)


def raise_non_finite(values: torch.Tensor, what: str) -> None:
    """Raise an InputError that counts the values of a tensor which are not finite and shows the first."""
    bad = ~torch.isfinite(values)
    count = int(bad.sum())
    if count:
        first = tuple(int(i) for i in bad.nonzero()[0])
        rows = int(bad.flatten(1).any(1).sum())
        raise InputError(
            f"{what} holds {count} value(s) that are not finite, in {rows} of {len(values)} rows, the first "
            f"at index {first} ({float(values[first])}); remove or replace them"
        )
