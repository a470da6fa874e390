"""Angles between inputs and gradients, and the separation report, against the tables measured before."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wideangle.errors import InputError
from wideangle.kernel.angles import (
    SeparationReport,
    gradient_angles,
    input_angles,
    min_angle,
    separation_report,
)
from wideangle.kernel.infinite import gradient_angle, kappa_limit, ntk
from wideangle.kernel.spectrum import eigenpairs
from wideangle.seeds import generator


def normal(*shape, name="x"):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(0, "test-angles", name))


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().data) / 16


@pytest.mark.parametrize("theta", [1e-3, 1e-8, 1e-13, 1.0, math.pi / 2, 3.0])
def test_input_angles_keep_their_digits(theta):
    basis = torch.linalg.qr(normal(30, 2, name="plane"))[0].T
    x = torch.stack([3 * basis[0], 0.2 * (math.cos(theta) * basis[0] + math.sin(theta) * basis[1])])
    assert float(input_angles(x)[0, 1]) == pytest.approx(theta, abs=5e-16, rel=1e-12)
    assert float(input_angles(torch.stack([x[0], -x[1]]))[0, 1]) == pytest.approx(math.pi - theta, abs=1e-15)
    assert float(input_angles(x[:1], x[1:])[0, 0]) == pytest.approx(theta, abs=5e-16, rel=1e-12)


def test_angles_within_a_tight_cluster_agree_with_extended_precision():
    x = 1 + 1e-5 * normal(12, 30, name="cluster")
    x[3] = x[2] + 1e-12 * normal(30, name="nudge")
    u = x.numpy().astype(np.longdouble)
    u = u / np.sqrt((u * u).sum(1, keepdims=True))
    apart = np.sqrt(((u[:, None] - u[None, :]) ** 2).sum(-1))
    wanted = (2 * np.arcsin(apart / 2)).astype(float)
    assert input_angles(x).numpy() == pytest.approx(wanted, rel=1e-11, abs=3e-16)


def test_input_angles_are_those_of_the_cosine_and_ignore_scale():
    x = normal(40, 7)
    x[5] = x[4] * 4
    angles = input_angles(x)
    u = x / x.norm(dim=1, keepdim=True)
    assert torch.allclose(angles, torch.acos(torch.clamp(u @ u.T, -1, 1)), atol=1e-7)
    assert torch.equal(angles, angles.T)
    assert float(angles[4, 5]) == 0
    assert torch.allclose(input_angles(1e200 * x), angles)
    assert torch.allclose(input_angles(1e-200 * x), angles)
    assert torch.allclose(input_angles(x[:3], x), angles[:3])


def test_gradient_angles_of_the_infinite_kernel_agree_with_the_direct_route():
    x = normal(20, 5)
    wanted = gradient_angle(input_angles(x), 3)
    assert torch.allclose(gradient_angles(ntk(x, 3)), wanted, atol=1e-7)
    assert torch.allclose(gradient_angles(ntk(x, 0)), input_angles(x), atol=1e-7)


def test_gradient_angles_resolve_down_to_the_square_root_of_rounding():
    for theta in (1e-2, 1e-5, 1e-6):
        x = torch.tensor([[1.0, 0.0], [2 * math.cos(theta), 2 * math.sin(theta)]], dtype=torch.float64)
        assert float(gradient_angles(x @ x.T)[0, 1]) == pytest.approx(theta, abs=4e-16 / theta)
    same = normal(5, 9)[torch.tensor([0, 1, 1, 2])]
    assert float(gradient_angles(same @ same.T)[1, 2]) < 5e-8


def test_a_full_kernel_gives_an_angle_for_every_sample_and_output():
    rows = normal(3, 2, 8)
    full = torch.einsum("icp,jdp->icjd", rows, rows)
    assert torch.allclose(gradient_angles(full), input_angles(rows.reshape(6, 8)), atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 10**6))
def test_smallest_eigenvalue_is_bounded_by_every_pair(n, p, seed):
    rows = normal(n, p, name=seed) * torch.linspace(0.5, 2, n)[:, None]
    kernel = rows @ rows.T
    smallest = float(torch.linalg.eigvalsh(kernel)[0])
    phi, a = gradient_angles(kernel), kernel.diagonal()
    bound = 2 * a[:, None] * a[None, :] * (1 - torch.cos(phi)) / (a[:, None] + a[None, :])
    bound.fill_diagonal_(math.inf)
    assert smallest <= float(bound.min()) + 1e-12 * float(a.max())


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(0, 10**6))
def test_min_angle_names_the_closest_pair(n, seed):
    angles = input_angles(normal(n, 3, name=seed))
    found = min_angle(angles)
    assert found.first < found.second
    assert found.angle == float(angles[found.first, found.second])
    off = angles + torch.diag(torch.full((n,), math.inf, dtype=torch.float64))
    assert found.angle == float(off.min())


def test_digits_condition_numbers_match_the_table(digits):
    report = separation_report(digits[:512], [0, 1, 2, 3, 5, 10], normalize=False)
    assert report.linear_condition == report.relu_condition[0] == math.inf  # rank at most 61
    assert report.relu_condition[1:] == pytest.approx([1.68e4, 7.90e3, 5.02e3, 2.83e3, 1.33e3], rel=3e-3)
    assert all(deep < shallow for shallow, deep in pairwise(report.first_layer_condition[1:]))
    assert all(deep > shallow for shallow, deep in pairwise(report.relu_angle))
    assert report.input_angle == pytest.approx(report.relu_angle[0], rel=1e-12)
    assert report.warnings == []


def test_gaussian_data_in_five_dimensions_follow_the_table():
    x = torch.tensor(np.random.default_rng(0).standard_normal((512, 5)))
    report = separation_report(x, [0, 1, 2, 3, 5, 10], normalize=False)
    assert report.linear_condition == math.inf
    assert report.relu_condition[1:] == pytest.approx([3.28e4, 1.69e4, 1.25e4, 8.49e3, 5.16e3], rel=5e-3)
    assert report.first_layer_condition[1:] == pytest.approx([8.97e3, 2.64e3, 1.39e3, 600, 188], rel=5e-3)
    assert "norms differ" in report.warnings[0]
    assert max(separation_report(x, [1]).relu_condition) < 0.5 * report.relu_condition[1]  # unit norms


def test_well_separated_data_are_made_worse_by_relu_and_it_says_so(digits):
    report = separation_report(torch.eye(50), range(11))
    assert report.linear_condition == pytest.approx(1)
    assert report.relu_condition[1] == pytest.approx(10.5, rel=5e-3)
    assert report.relu_condition[-1] == pytest.approx(24.1, rel=5e-3)
    assert report.first_layer_condition == pytest.approx([1.0] * 11)
    assert report.condition_limit == kappa_limit(50)
    assert any("well separated" in text for text in report.warnings)
    wide = separation_report(normal(100, 1000), [0, 1, 10])
    assert wide.relu_condition[1] > 5 * wide.linear_condition
    assert wide.first_layer_condition[2] < wide.first_layer_condition[1] < wide.linear_condition


@settings(max_examples=15, deadline=None)
@given(st.integers(3, 10), st.integers(2, 6), st.integers(0, 10**6))
def test_first_layer_separation_never_gets_worse(n, d, seed):
    x = normal(n, d, name=seed)
    report = separation_report(x, range(5))
    for shallow, deep in pairwise(report.first_layer_condition):
        assert deep <= shallow * (1 + 1e-9)
    assume(report.input_angle < math.radians(30))
    assert all(deep > shallow for shallow, deep in pairwise(report.relu_angle))


def test_degenerate_samples_are_counted_and_named():
    x = normal(8, 4)
    x[2] = 0
    x[5] = 3 * x[1]
    x[6] = -x[3]
    report = separation_report(x, [0, 2])
    assert (report.samples, report.zero_rows, report.parallel_pairs, report.opposite_pairs) == (7, 1, 1, 1)
    assert report.closest_rows == [1, 5]
    assert report.relu_condition == [math.inf, math.inf]
    told = " ".join(report.warnings)
    for words in (
        "zero rows left out: 1",
        "duplicated pairs of samples: 1 (such as rows 1 and 5)",
        "opposite",
    ):
        assert words in told
    single = separation_report(torch.tensor([[0.1, 0.7], [0.3, 2.1], [1.0, 0.0]]), [1])  # parallel in float32
    assert single.parallel_pairs == 1
    opposite = separation_report(x[torch.tensor([3, 6])], [0, 1])
    assert opposite.relu_condition[0] == math.inf
    assert opposite.relu_condition[1] < 2


def test_the_report_round_trips():
    report = separation_report(normal(6, 2), [0, 1])
    assert SeparationReport.from_json(report.to_json()) == report
    assert "input angle" in str(report)


def test_condition_number_of_a_pair_follows_its_angle():
    for theta in (0.3, 1e-3):
        x = torch.tensor([[1.0, 0.0], [math.cos(theta), math.sin(theta)]], dtype=torch.float64)
        report = separation_report(x, [0, 1, 4])
        phi = report.relu_angle
        assert report.relu_condition == pytest.approx([1 / math.tan(p / 2) ** 2 for p in phi], rel=1e-6)
        assert eigenpairs(ntk(x, 4)).condition_number == pytest.approx(report.relu_condition[2])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: input_angles(torch.tensor([[1.0, 0.0], [0.0, 0.0]])), "zero rows .first: 1"),
        (lambda: input_angles(torch.eye(2), torch.eye(3)), "different numbers"),
        (lambda: input_angles(torch.tensor([[math.inf, 0.0]])), "non-finite"),
        (lambda: gradient_angles(torch.diag(torch.tensor([1.0, 0.0]))), "zero rows"),
        (lambda: gradient_angles(torch.diag(torch.tensor([1.0, -1.0]))), "negative"),
        (lambda: min_angle(torch.zeros(1, 1)), "n >= 2"),
        (lambda: min_angle(torch.zeros(2, 3)), r"\(2, 3\)"),
        (lambda: separation_report(torch.zeros(4, 2)), "got 0"),
        (lambda: separation_report(torch.eye(2), []), "depths"),
        (lambda: separation_report(torch.eye(2), [-1]), "-1"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
