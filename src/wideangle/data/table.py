"""Tables: the credit-default data and comma-separated files."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence

import numpy as np

from wideangle.data._folder import data_root, read_checked
from wideangle.data._raw import Raw, every_fifth, standardised
from wideangle.errors import InputError

CREDIT_FILE = "tabular/credit-default.csv"
CREDIT_TARGET = "default-payment-next-month"
WHOLE_NUMBER = re.compile(r"[+-]?\d+")


def parse_csv(content: bytes, where: str) -> tuple[list[str], list[Sequence[str]]]:
    """Return the column names and the columns, as text; without a header the names are 1, 2, ...

    The first row is a header where none of its cells is a number.
    """
    try:
        lines = content.decode("utf-8-sig").splitlines()
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{where} is not comma-separated text in UTF-8 ({error})") from error
    if not rows:
        raise InputError(f"{where} is empty; it must hold one row per sample")
    header = [str(i + 1) for i in range(len(rows[0]))]
    if not any(_is_number(cell) for cell in rows[0]):
        header, rows = rows[0], rows[1:]
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise InputError(f"{where}: data row {number} has {len(row)} cells, expected {len(header)}")
    if not rows or len(header) < 2:
        raise InputError(
            f"{where} has {len(rows)} data rows and {len(header)} columns; it needs at least one row, "
            "and two columns separated by commas"
        )
    return header, list(zip(*rows, strict=True))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def numeric_columns(header: list[str], columns: list[Sequence[str]], where: str) -> np.ndarray:
    """Return the columns as a float64 array (rows, columns)."""
    numbers = []
    for name, column in zip(header, columns, strict=True):
        try:
            numbers.append(np.array(column, dtype=np.float64))
        except ValueError:
            row, cell = next((i, cell) for i, cell in enumerate(column, 1) if not _is_number(cell))
            raise InputError(
                f"{where}: column {name!r}, data row {row} holds {cell!r}, which is no number; "
                "encode text and fill in missing values first"
            ) from None
    return np.stack(numbers, axis=1)


def target_values(column: Sequence[str]) -> np.ndarray:
    """Return a target column as integers (whole numbers), floats (other numbers) or text."""
    if all(WHOLE_NUMBER.fullmatch(cell) for cell in column):
        return np.array(column, dtype=np.int64)
    if all(_is_number(cell) for cell in column):
        return np.array(column, dtype=np.float64)
    return np.array(column, dtype=np.str_)


def read_credit_default(split: str, root: str | None) -> Raw:
    """Return the credit-card default table: 32 standardised features, label 1 where the client defaults."""
    layout = f"{CREDIT_FILE}[.gz] with the columns ID, {CREDIT_TARGET} and the features"
    folder = data_root(root, "credit-default", layout)
    content, where = read_checked(folder, CREDIT_FILE, "credit-default", layout, None)
    header, columns = parse_csv(content, where)
    if CREDIT_TARGET not in header:
        raise InputError(f"{where} has no column {CREDIT_TARGET!r}; expected {layout}")
    y = target_values(columns[header.index(CREDIT_TARGET)])
    if set(np.unique(y).tolist()) != {0, 1}:
        raise InputError(f"{where}: the column {CREDIT_TARGET!r} must hold 0 and 1")
    kept = [i for i, column in enumerate(header) if column not in ("ID", CREDIT_TARGET)]
    x = numeric_columns([header[i] for i in kept], [columns[i] for i in kept], where)
    train = x[every_fifth(y, "train")]
    raw = Raw(standardised(x, train), y, classes=2, label_names=("paid", "defaulted"))
    return raw.take(every_fifth(y, split))
