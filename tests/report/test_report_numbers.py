from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wideangle.plan import Decision
from wideangle.report._axes import tick_labels
from wideangle.report._numbers import duration, number, power, show

CASES = [
    (None, "not measured"),
    (math.nan, "not measured"),
    (math.inf, "inf"),
    (-math.inf, "-inf"),
    (0.0, "0"),
    (-0.0, "0"),
    (3, "3"),
    (3.0, "3"),
    (0.1, "0.1"),
    (0.0872345, "0.08723"),
    (9.99996, "10"),
    (123.456, "123.5"),
    (1234.56, "1235"),
    (12345.6, "12,350"),
    (123456.7, "123,500"),
    (1234567.8, "1.235e6"),
    (1_482_250, "1,482,250"),
    (5.184e-5, "5.184e-5"),
    (-2.5e-12, "-2.5e-12"),
    (1e300, "1e300"),
    (True, "yes"),
    (np.float64(0.25), "0.25"),
    (np.int64(7), "7"),
    (np.bool_(False), "no"),
    ([1, 2.5, None], "1, 2.5, not measured"),
    (list(range(9)), "0, 1, 2, 3, 4, 5, 6, 7, … (9 in all)"),
    ([], "none"),
    ({}, "none"),
    ({"a_b": 1}, "a b: 1"),
    (np.zeros((2, 3)), "array of shape 2 × 3"),
    (np.array([1.0, 2.0]), "1, 2"),
    ("text", "text"),
]


@pytest.mark.parametrize(("value", "expected"), CASES)
def test_values_as_text(value, expected):
    assert show(value) == expected


def test_a_nested_result_is_shown_by_its_rows():
    assert show(Decision(0.1, "per step", "measured")) == "value 0.1; unit per step; evidence measured"


@given(st.floats(-1e300, 1e300))
def test_a_number_reads_back_within_four_digits(value):
    assert float(number(value, group=False)) == pytest.approx(value, rel=5.1e-4)
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=5.1e-4)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "0 s"),
        (0.42, "0.42 s"),
        (1.31, "1.3 s"),
        (14.2, "14 s"),
        (59.4, "59 s"),
        (75.0, "1 min 15 s"),
        (59.7, "1 min 0 s"),
        (3700.0, "1 h 1 min"),
        (None, "not measured"),
        (math.inf, "not measured"),
    ],
)
def test_durations(seconds, expected):
    assert duration(seconds) == expected


def test_powers_of_ten():
    assert [power(k) for k in (0, 1, 2, -3, 12)] == ["1", "10", "10²", "10⁻³", "10¹²"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 50.0, 100.0], ["0", "50", "100"]),
        ([0.0, 0.25, 0.5], ["0", "0.25", "0.5"]),
        ([-1.0, 0.0, 1e-17], ["−1", "0", "0"]),
        ([1.0001, 1.0002], ["1.0001", "1.0002"]),
        ([2e6, 4e6], ["2·10⁶", "4·10⁶"]),
        ([1e-7, 3e-7], ["10⁻⁷", "3·10⁻⁷"]),
        ([100000.0, 200000.0], ["100000", "200000"]),
        ([], []),
    ],
)
def test_tick_labels_are_short_and_exact(values, expected):
    assert tick_labels(values) == expected
