from __future__ import annotations

import pytest
import torch

from wideangle.errors import InputError
from wideangle.targets import accuracy, loss_function, prepare_targets


def test_class_labels_become_one_hot_rows_or_stay_labels():
    y = torch.tensor([2, 0, 1], dtype=torch.uint8)
    hot = prepare_targets(y, 3, "mse", torch.float32)
    assert hot.dtype == torch.float32
    assert torch.equal(hot, torch.tensor([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]]))
    labels = prepare_targets(y, 3, "cross-entropy")
    assert labels.dtype == torch.int64
    assert labels.tolist() == [2, 0, 1]


def test_one_output_takes_numbers_of_either_shape():
    for y in (torch.tensor([1, -1]), torch.tensor([1.0, -1.0]), torch.tensor([[1.0], [-1.0]])):
        assert prepare_targets(y, 1, "mse").tolist() == [[1.0], [-1.0]]


def test_numbers_and_probabilities_pass_through():
    table = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    assert torch.equal(prepare_targets(table, 2, "mse", torch.float32), table)
    assert torch.equal(prepare_targets(table, 2, "cross-entropy", torch.float32), table)
    assert prepare_targets(torch.tensor([[0, 1]]), 2, "mse").tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(
    ("y", "outputs", "loss", "words"),
    [
        (torch.tensor([0, 3]), 3, "mse", "0 to 3"),
        (torch.tensor([-1, 2]), 3, "cross-entropy", "-1 to 2"),
        (torch.tensor([0.0, 1.0]), 3, "mse", "y.long()"),
        (torch.tensor([[0], [1]]), 3, "mse", "squeeze"),
        (torch.zeros(2, 4), 3, "mse", "(2, 4)"),
        (torch.zeros(0), 1, "mse", "at least one row"),
        (torch.tensor(1.0), 1, "mse", "at least one row"),
        (torch.tensor([1.0, float("nan")]), 1, "mse", "not finite"),
        (torch.tensor([0, 1]), 1, "cross-entropy", "2 outputs"),
        (torch.tensor([[0.5, 0.2]]), 2, "cross-entropy", "probabilities"),
        (torch.tensor([0, 1]), 2, "hinge", "hinge"),
        (torch.tensor([1j]), 1, "mse", "complex"),
    ],
)
def test_bad_targets_are_refused_with_the_remedy(y, outputs, loss, words):
    with pytest.raises(InputError) as caught:
        prepare_targets(y, outputs, loss)
    assert words in str(caught.value)


def test_losses_are_those_of_torch():
    gen = torch.Generator().manual_seed(0)
    f = torch.randn(5, 3, generator=gen, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1])
    hot = prepare_targets(y, 3, "mse")
    assert float(loss_function("mse")(f, hot)) == pytest.approx(float(torch.nn.MSELoss()(f, hot)), abs=1e-15)
    labels = prepare_targets(y, 3, "cross-entropy")
    expected = float(-(f.log_softmax(1)[torch.arange(5), y]).mean())
    assert float(loss_function("cross-entropy")(f, labels)) == pytest.approx(expected, abs=1e-14)
    assert float(loss_function("mse")(torch.ones(2), torch.zeros(2, 1))) == 1.0


def test_losses_refuse_shapes_that_would_broadcast():
    with pytest.raises(InputError):
        loss_function("mse")(torch.zeros(4, 1), torch.zeros(4, 3))
    with pytest.raises(InputError):
        loss_function("cross-entropy")(torch.zeros(4, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError):
        loss_function("hinge")


def test_accuracy_of_labels_rows_and_a_binary_column():
    f = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert accuracy(f, torch.tensor([1, 0, 0])) == pytest.approx(2 / 3)
    assert accuracy(f, torch.tensor([[0.0, 1], [1, 0], [1, 0]])) == pytest.approx(2 / 3)
    assert accuracy(torch.tensor([2.0, -3.0, 0.5]), torch.tensor([[1.0], [-1], [-1]])) == pytest.approx(2 / 3)
    assert accuracy(torch.tensor([2.0, 1.0, 0.5]), torch.tensor([[0.1], [0.2], [0.3]])) is None
    assert accuracy(f, torch.tensor([[0.5, 1.5], [1, 0], [1, 0]])) is None
