"""What tells one function from another, in one process and in the next, and the sweeps that go by it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from wideangle.curvature import width_scaling
from wideangle.curvature._identity import identity
from wideangle.curvature._sweep import fingerprint
from wideangle.errors import InputError


class Sized(nn.Module):
    def __init__(self, width: int, seed: int):
        super().__init__()
        self.width, self.seed = width, seed


def power(exponent, model):
    return 3.0 * model.width**exponent


def closed(value):
    return lambda model: model.width * value


def preset(value):
    def metric(model, scale=value):
        return model.width * scale

    return metric


def keyword(value):
    def metric(model, *, scale=value):
        return model.width * scale

    return metric


def written(text: str, **names):
    """A function as a script of one's own would define it."""
    space = {"__name__": "script"} | names
    exec(textwrap.dedent(text), space)
    return space["metric"]


@dataclass
class Setting:
    value: object


class Callable:
    def __init__(self, value):
        self.value = value

    def __call__(self, model):
        return model.width * self.value

    def method(self, model):
        return model.width * self.value


def layer(value: float, activation=torch.tanh) -> nn.Module:
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, value)
    nn.init.zeros_(model.bias)
    model.activation = activation
    return model


LINES = "def helper(m):\n    return m * {0}\ndef metric(m):\n    return helper(m)"
NESTED = "def metric(m):\n    return sum((lambda k: k + {0})(n) for n in range(3))"
CLASS = "class Way:\n    def go(self, m):\n        return m * {0}\ndef metric(m):\n    return Way().go(m)"

MAKERS = {
    "partial": lambda v: functools.partial(power, v),
    "partial by keyword": lambda v: functools.partial(power, exponent=v),
    "partial of a partial": lambda v: functools.partial(functools.partial(power, v), 1),
    "closure": closed,
    "array": lambda v: closed(np.array([v])),
    "tensor": lambda v: closed(torch.tensor([v])),
    "sparse tensor": lambda v: closed(torch.tensor([v]).to_sparse()),
    "array of objects": lambda v: closed(np.array([v, "a"], dtype=object)),
    "list": lambda v: closed([1, [v]]),
    "dict": lambda v: closed({"a": v}),
    "set": lambda v: closed({"a", v}),
    "function in a closure": lambda v: closed(closed(v)),
    "module": lambda v: closed(layer(v)),
    "dataclass": lambda v: closed(Setting(v)),
    "default": preset,
    "keyword default": keyword,
    "callable object": Callable,
    "method": lambda v: Callable(v).method,
    "constant": lambda v: written(f"def metric(m):\n    return m * {v}"),
    "constant within": lambda v: written(NESTED.format(v)),
    "helper": lambda v: written(LINES.format(v)),
    "class": lambda v: written(CLASS.format(v)),
    "constant of the module": lambda v: written("def metric(m):\n    return m * SCALE", SCALE=v),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_another_value_is_another_function_and_the_same_value_the_same(kind):
    make = MAKERS[kind]
    assert identity(make(-0.5)) == identity(make(-0.5))
    assert identity(make(-0.5)) != identity(make(3.0))


def test_other_code_is_another_function():
    texts = ["m.width", "m.height", "m + 1", "m - 1", "abs(m)", "len(m)", "1", "1.0", "True", "'1'"]
    found = [identity(written(f"def metric(m):\n    return {text}")) for text in texts]
    assert len(set(found)) == len(texts)
    assert identity(written("def metric(m):\n\n    # a remark\n    return m.width")) == found[0]


def test_values_that_look_alike_are_told_apart():
    alike = [1, 1.0, True, "1", [1], (1,), [[1]], [1, []], {1}, {1: 1}, ["ab", "c"], ["a", "bc"], b"1", None]
    alike += [
        np.array([1]),
        np.array([1.0]),
        np.array([[1]]),
        torch.tensor([1]),
        torch.tensor([1.0]),
        np.int64(1),
    ]
    alike += [layer(1.0), layer(1.0, torch.relu), nn.Linear, nn.Conv1d]
    alike += [torch.tanh, torch.relu, torch.Tensor.tanh, torch.Tensor.relu, np.exp, np.tanh, np, torch, print]
    alike += [[1].count, [2].count, nn.UninitializedParameter()]
    assert len({identity(closed(value)) for value in alike}) == len(alike)
    assert identity({"a": 1, "b": 2}) == identity({"b": 2, "a": 1})


def test_functions_that_hold_themselves_and_empty_cells():
    def recursive(value):
        def metric(n):
            return value if n == 0 else metric(n - 1)

        return metric

    assert identity(recursive(1)) == identity(recursive(1))
    assert identity(recursive(1)) != identity(recursive(2))
    ring: list = [1]
    ring.append(ring)
    assert identity(closed(ring))

    def early():
        found = identity(lambda: later)
        later = 1
        return found, later

    assert early()[0]


def test_what_counts_by_its_type_only():
    def opened():
        return closed(torch.Generator())

    assert identity(opened()) == identity(opened())
    assert identity(closed(torch.empty(2, device="meta"))) != identity(closed(torch.empty(3, device="meta")))


PROGRAM = """
    import functools, sys
    import numpy as np, torch
    from torch import nn
    from wideangle.curvature import linearity_gap
    from wideangle.curvature._sweep import fingerprint
    WORDS = {"one", "two", "three", "four"}
    class Sized(nn.Module):
        def __init__(self, width, seed=object()):
            super().__init__()
            self.width = width
        def pick(self):
            return self.width in {"five", "six", "seven", 8}
    def helper(model): return [word for word in WORDS if word in ("one", model)]
    def outer():
        held, model, thing = torch.ones(2), nn.Linear(2, 1), object()
        nn.init.ones_(model.weight), nn.init.ones_(model.bias)
        def metric(model_, power, sizes={"a": 1}):
            return helper(model_), held, model(held), linearity_gap, power, thing, metric, np.float64, print, torch
        return functools.partial(metric, power=np.array([-0.5]))
    metric = outer()
    if len(sys.argv) > 1:
        for _ in range(100):  # the interpreter specialises its bytecode
            metric(Sized(2))
    print(sorted(fingerprint(Sized, metric, "a", {"x": np.ones(2)}, [torch.ones(1)]).items()))
"""


def test_it_is_the_same_in_another_process(tmp_path):
    texts = set()
    for number, extra in enumerate([(), ("warm",)]):
        script = tmp_path / f"{number}" / "script.py"
        script.parent.mkdir()
        script.write_text(textwrap.dedent(PROGRAM))
        run = subprocess.run(
            [sys.executable, str(script), *extra],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(number + 1)},
        )
        texts.add(run.stdout)
    assert len(texts) == 1
    assert "0x" not in texts.pop()


@pytest.mark.parametrize("kind", ["partial", "closure", "default", "tensor"])
def test_a_sweep_of_the_same_name_and_another_metric_is_refused(kind, tmp_path):
    path = tmp_path / "sweep.json"
    make = MAKERS[kind]
    first = width_scaling(Sized, [16, 64], lambda m: abs(float(make(-0.5)(m))), 1, jobs=1)
    held = functools.partial(positive, make(-0.5))
    found = width_scaling(Sized, [16, 64], held, 1, jobs=1, resume=path)
    assert np.array_equal(found.values, first.values)
    cells = json.loads(path.read_text())["cells"]
    with pytest.raises(InputError, match=r"metric was '.*positive, content \w+' and is '.*positive, content"):
        width_scaling(Sized, [16, 64], functools.partial(positive, make(3.0)), 1, jobs=1, resume=path)
    assert json.loads(path.read_text())["cells"] == cells
    again = width_scaling(
        Sized, [16, 64, 128], functools.partial(positive, make(-0.5)), 1, jobs=1, resume=path
    )
    assert np.array_equal(again.values[:, :2], first.values)


def positive(inner, model):
    return abs(float(inner(model)))


def test_factories_and_data_of_any_kind_count():
    def key(**changes):
        given = {"factory": Sized, "metric": "linearity_gap", "label": "", "x": None, "y": None}
        return fingerprint(**(given | changes))

    assert key(factory=closed(1)) != key(factory=closed(2))
    for make in (lambda v: np.array([v]), lambda v: [torch.tensor([v])], lambda v: {"a": torch.tensor([v])},
                 lambda v: {"a": np.array([v])}, lambda v: torch.tensor([v])):  # fmt: skip
        for name in ("x", "y"):
            assert key(**{name: make(1.0)}) == key(**{name: make(1.0)})
            assert key(**{name: make(1.0)}) != key(**{name: make(2.0)})
    assert set(key(x={"a": torch.ones(1), "b": torch.ones(1)})) >= {"x.a", "x.b"}
