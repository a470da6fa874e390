"""What the audit finds: on graphs, where the in-degree counts, and in its sentences."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from wideangle import nets
from wideangle.curvature import audit


def test_the_audit_of_a_graph_goes_by_in_degrees():
    x = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    narrow = audit(nets.DAG.bottleneck(6, 2, width=40, narrow=3), x)
    assert narrow.bottleneck
    assert narrow.narrowest == nets.DAG.bottleneck(6, 2, width=40, narrow=3).width() == 3
    assert len(narrow.layers) == 4
    assert narrow.linear_output
    assert "in-degree 3 against" in " ".join(narrow.findings)
    around = audit(nets.DAG.bottleneck(6, 2, width=40, narrow=3, skips=True), x)
    assert not around.bottleneck
    bent = audit(nets.DAG.fcn(6, 2, width=40, output_activation="tanh"), x)
    assert bent.linear_output is False
    thin = audit(nets.DAG.fcn(6, 2, width=8), x)
    assert thin.widest == 8
    assert "the largest in-degree is 8, under 32" in " ".join(thin.findings)


def said(model: nn.Module, x: torch.Tensor) -> str:
    return " ".join(audit(model, x).findings)


def test_a_softmax_output_is_no_attention():
    x = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    for last in (nn.Softmax(1), nn.LogSoftmax(1)):
        plain = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3), last)
        assert not audit(plain, x).attention
        assert "attention" not in said(plain, x)
        assert "passes through" in said(plain, x)
    gate = nn.Sequential(nn.Linear(6, 40), nn.Softmax(1), nn.Linear(40, 3), nn.Softmax(1))
    assert audit(gate, x).attention


class Attend(nn.Module):
    """Attention written out; `Bare` has no layer behind it."""

    def __init__(self, bare: bool, fused: bool):
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.out = nn.Identity() if bare else nn.Linear(6, 6)
        self.fused = fused

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.fused:
            return self.out(functional.scaled_dot_product_attention(q, k, v))
        return self.out((q @ k.transpose(-1, -2)).softmax(-1) @ v)


class SelfAttention(Attend):
    """The same under a name that tells it."""


@pytest.mark.parametrize(
    "model",
    [
        Attend(False, False),
        Attend(True, True),
        nn.Sequential(SelfAttention(True, False)),
        nn.MultiheadAttention(6, 2, batch_first=True),
        nets.Transformer((3, 6), 2, width=8, heads=2, patch=1),
    ],
    ids=lambda model: type(model).__name__,
)
def test_attention_is_seen(model):
    x = torch.rand(2, 3, 6, generator=torch.Generator().manual_seed(0))
    given = (x, x, x) if isinstance(model, nn.MultiheadAttention) else x
    assert audit(model, given).attention
    assert "Softmax attention inside" in said(model, given)


def test_what_batch_norm_means_is_said():
    x = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    text = said(nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40), nn.Tanh(), nn.Linear(40, 1)), x)
    for part in (
        "1 BatchNorm1d",
        "up to scale",
        "depends on its batch",
        "does not apply",
        "fixed affine map",
    ):
        assert part in text
    layer = said(nn.Sequential(nn.Linear(6, 40), nn.LayerNorm(40), nn.Tanh(), nn.Linear(40, 1)), x)
    assert "1 LayerNorm" in layer
    assert "BatchNorm" not in layer


def test_what_is_said_of_batch_norm_is_so():
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, eps=1e-12), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.rand(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before, fixed = model(x).detach(), model.eval()(x).detach()
    one = model(x[:1]).detach()
    assert torch.allclose(one, fixed[:1])  # eval mode: a sample by itself
    assert not torch.allclose(model.train()(x[:3]).detach(), before[:3])
    with torch.no_grad():
        model[0].weight *= 7
        model[0].bias *= 7
    assert torch.allclose(model.train()(x).detach(), before)  # train mode: only up to scale


@pytest.mark.parametrize(("width", "narrow"), [(2, True), (31, True), (32, False), (100, False)])
def test_a_net_that_is_narrow_everywhere_is_told_so(width, narrow):
    x = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(
        nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    )
    found = audit(model, x)
    assert (found.narrowest, found.widest, found.bottleneck) == (width, width, False)
    assert (f"the largest width is {width}, under 32" in said(model, x)) is narrow
    assert "can become linear with width" in said(model, x)
    assert "narrow:" not in said(nn.Linear(6, 1), x)


def test_kinks_of_every_kind_are_named():
    image = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    pooled = nn.Sequential(nn.Conv2d(1, 40, 3), nn.ELU(2.0), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(160, 1))
    assert audit(pooled, image).kinks == ["elu", "max_pool2d"]
    assert "elu, max_pool2d have kinks" in said(pooled, image)
    smooth = nn.Sequential(nn.Conv2d(1, 40, 3), nn.ELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(160, 1))
    assert audit(smooth, image).kinks == []
    assert "kinks" not in said(smooth, image)
    recurrent = nn.RNN(6, 40, nonlinearity="relu", batch_first=True)
    assert "rnn_relu has kinks" in said(recurrent, image[:, 0])


def test_the_width_of_an_assembly_is_the_number_of_its_parts():
    parts = [
        torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)) for _ in range(64)
    ]
    found = audit(nets.Assembly(parts, "signs"), torch.rand(2, 6, generator=torch.Generator().manual_seed(0)))
    assert found.assembled == found.narrowest == found.widest == 64
    assert not found.bottleneck
    assert found.linear_output
    text = " ".join(found.findings)
    assert "assembly of 64 sub-models" in text
    assert "narrow" not in text
