from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from wideangle import data, nets
from wideangle.cli import _target
from wideangle.errors import InputError

FILE = """
from torch import nn
import neighbour

def build():
    return nn.Linear(64, 10)

def fitted(shape, outputs):
    model = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], outputs))
    model.told = (shape, outputs)
    return model

def optional(width=7, depth=3):
    return nn.Linear(width, depth)

def named(in_shape=None, outputs=None):
    return nn.Linear(in_shape[-1], outputs)

def three(a, b, c):
    return None

def one(a):
    return None

def only_keyword(*, depth):
    return None

def pair():
    return (nn.Linear(3, 2),)

def number():
    return 3

class Net(nn.Linear):
    def __init__(self):
        super().__init__(neighbour.WIDTH, 4)
"""


@pytest.fixture
def digits():
    return data.load("digits", n=20)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "neighbour.py").write_text("WIDTH = 5\n")
    path = tmp_path / "models.py"
    path.write_text(FILE)
    return str(path)


@pytest.mark.parametrize("name", list(nets.MODELS))
def test_a_built_in_model_fits_the_data_and_repeats(digits, name):
    one, two = (_target.build(name, digits, 3) for _ in range(2))
    other = _target.build(name, digits, 4)
    assert one(digits.x).shape == (20, 10)
    assert torch.equal(one(digits.x), two(digits.x))
    assert not torch.equal(one(digits.x), other(digits.x))


@pytest.mark.parametrize(
    ("function", "shape"),
    [("build", (10, 64)), ("optional", (3, 7)), ("named", (10, 8)), ("pair", (2, 3)), ("Net", (4, 5))],
)
def test_factories_are_called_as_they_ask(digits, file, function, shape):
    model = _target.build(f"{file}:{function}", digits, 0)
    assert isinstance(model, nn.Linear)
    assert tuple(model.weight.shape) == shape


def test_a_factory_of_two_gets_the_shape_and_the_outputs(digits, file):
    assert _target.build(f"{file}:fitted", digits, 0).told == ((1, 8, 8), 10)
    table = data.Dataset(torch.zeros(4, 6, 2, 1), torch.zeros(4, 3), classes=0, name="numbers")
    assert _target.build(f"{file}:fitted", table, 0).told == ((6, 2, 1), 3)


def test_the_seed_decides_the_weights_and_the_global_stream_is_left_alone(digits, file):
    before = torch.get_rng_state()
    one, two, other = (_target.build(f"{file}:build", digits, seed).weight for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("bulid", "no function 'bulid'.*build"),
        ("three", "needs a, b, c"),
        ("one", "needs a;"),
        ("only_keyword", "needs depth"),
        ("number", "returned a int"),
    ],
)
def test_what_cannot_be_used_is_named(digits, file, function, message):
    with pytest.raises(InputError, match=message):
        _target.build(f"{file}:{function}", digits, 0)


def test_missing_files_and_names(digits, file, tmp_path):
    with pytest.raises(InputError, match=r"no Python file at .*absent\.py"):
        _target.build(f"{tmp_path}/absent.py:build", digits, 0)
    with pytest.raises(InputError, match=r"names a file only.*:build"):
        _target.build(file, digits, 0)
    with pytest.raises(InputError, match="unknown model 'mpl'; did you mean 'mlp'"):
        _target.build("mpl", digits, 0)


def test_the_users_own_error_is_not_hidden(digits, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def build():\n    return {}['missing']\n")
    with pytest.raises(InputError, match=r"raised KeyError: 'missing' \(.*broken.py, line 2\)") as caught:
        _target.build(f"{path}:build", digits, 0)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_users_model_can_be_pickled(digits, file):
    model = _target.build(f"{file}:Net", digits, 0)
    assert torch.equal(pickle.loads(pickle.dumps(model)).weight, model.weight)


def test_the_example_model_fits_the_example_data(pytestconfig):
    folder = pytestconfig.rootpath / "examples"
    own = data.load(str(folder / "own_data.npz"))
    assert (len(own), own.classes) == (143, 3)
    model = _target.build(f"{folder}/own_model.py:build", own, 0)
    assert model(own.x).shape == (143, 3)
    assert (folder / "own_data.npz").stat().st_size < 200_000
    assert float(own.x.mean(0).abs().max()) < 1e-5
