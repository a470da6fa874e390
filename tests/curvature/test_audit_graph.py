"""The audit of nets on graphs: what counts there is the in-degree."""

from __future__ import annotations

import torch

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
