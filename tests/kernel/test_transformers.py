"""Small transformers of random weights against the slow twin: masks, padding, tied weights, attention of two kinds."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import fresh, normal, tokens

from wideangle.kernel import TangentKernel, _fallback, factors, jacobian_kernel, tangent_kernel

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")  # before the import; nothing is fetched
hf: Any = pytest.importorskip("transformers")

Batch = dict[str, Tensor]
TEXT = {"vocab_size": 12, "num_hidden_layers": 2, "intermediate_size": 12, "max_position_embeddings": 16}
ENCODER = TEXT | {"hidden_size": 8, "num_attention_heads": 2, "num_labels": 3}
DECODER = TEXT | {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "num_labels": 3}
DECODER |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
GPT2 = {"vocab_size": 12, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, "num_labels": 3}
GPT2 |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
VIT = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
VIT |= {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 3}
T5 = {"vocab_size": 12, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}
DISTIL = {"vocab_size": 12, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12, "num_labels": 3}
DEBERTA = ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 8}


class LastToken(nn.Module):
    """A language model's logits of the token after the last one."""

    def __init__(self, language: nn.Module):
        super().__init__()
        self.language = language

    def forward(self, **batch: Tensor) -> Any:
        out = self.language(**batch)
        out.logits = out.logits[:, -1]
        return out


class MeanState(nn.Module):
    """An encoder's mean state over the tokens that count, under a linear head."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(8, 3)

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        states = self.encoder(**batch).last_hidden_state
        return {"logits": self.head((states * batch["attention_mask"][..., None]).sum(1))}


@dataclass(frozen=True)
class Case:
    """A model by its configuration, and the parameters that only the generic fallback accounts for."""

    kind: str
    settings: dict[str, Any]
    fallback: tuple[str, ...] = ()
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    left_eager: bool = True  # False: eager attention gives NaN in float64 for a row that is masked altogether

    def model(self, attention: str) -> nn.Module:
        kind = getattr(hf, self.kind)
        config = kind.config_class(**self.settings, attn_implementation=attention)
        return fresh(self.wrap(kind(config)))


CASES = {
    "bert": Case(
        "BertForSequenceClassification", ENCODER, fallback=("bert.embeddings.position_embeddings.weight",)
    ),
    "distilbert": Case(
        "DistilBertForSequenceClassification",
        DISTIL,
        fallback=("distilbert.embeddings.position_embeddings.weight",),
    ),
    "roberta": Case("RobertaForSequenceClassification", ENCODER | {"pad_token_id": 0}),
    "albert, one block called twice": Case(
        "AlbertForSequenceClassification",
        ENCODER | {"embedding_size": 4},
        fallback=("albert.embeddings.position_embeddings.weight",),
    ),
    "gpt2": Case("GPT2ForSequenceClassification", GPT2, fallback=("transformer.wpe.weight",)),
    "gpt2, tied": Case(
        "GPT2LMHeadModel",
        GPT2,
        fallback=("language.transformer.wte.weight", "language.transformer.wpe.weight"),
        wrap=LastToken,
    ),
    "llama": Case("LlamaForSequenceClassification", DECODER, left_eager=False),
    "qwen2": Case("Qwen2ForSequenceClassification", DECODER, left_eager=False),
    "qwen3, tied": Case(
        "Qwen3ForCausalLM",
        DECODER | {"head_dim": 4, "tie_word_embeddings": True},
        fallback=("language.model.embed_tokens.weight",),
        wrap=LastToken,
        left_eager=False,
    ),
    "t5 encoder": Case(
        "T5EncoderModel",
        T5,
        fallback=("encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",),
        wrap=MeanState,
    ),
    "vit": Case(
        "ViTForImageClassification",
        VIT,
        fallback=("vit.embeddings.cls_token", "vit.embeddings.position_embeddings"),
    ),
}
BOTH = [(name, attention) for name in CASES for attention in ("eager", "sdpa")]


def texts(n: int, length: int, side: str = "right", seed: int = 1) -> Batch:
    """Return sentences of `length` or fewer tokens, padded on one side."""
    ids = tokens(n, length, high=10, seed=seed) + 2
    short = torch.arange(n)[:, None] % 3  # how many tokens are missing
    place = torch.arange(length)[None]
    mask = place < length - short if side == "right" else place >= short
    return {"input_ids": torch.where(mask, ids, 0), "attention_mask": mask.long()}


def data(name: str, n: int = 5, side: str = "right", seed: int = 1) -> Batch:
    return {"pixel_values": normal(n, 1, 8, 8, seed=seed)} if name == "vit" else texts(n, 7, side, seed)


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize(("name", "attention"), BOTH)
def test_equals_the_jacobian(name: str, attention: str):
    """Both kinds of attention: kernel, trace, cross-kernel and products, and which parameters are exceptions."""
    model, x, other = CASES[name].model(attention), data(name), data(name, 2, seed=2)
    expected = jacobian_kernel(model, x, output="logits")
    assert relative(tangent_kernel(model, x, output="logits"), expected) < 1e-9
    trace = tangent_kernel(model, x, output="logits", outputs="trace")
    assert relative(trace, torch.einsum("icjc->ij", expected)) < 1e-9
    cross = jacobian_kernel(model, x, other, output="logits")
    assert relative(tangent_kernel(model, x, other, output="logits"), cross) < 1e-9
    cache = factors(model, x, output="logits")
    assert cache.fallback == CASES[name].fallback
    n, c = expected.shape[:2]
    v = normal(n * c, 2)
    assert relative(cache @ v, expected.reshape(n * c, n * c) @ v) < 1e-9
    assert relative(cache.blocks(), torch.einsum("icid->icd", expected)) < 1e-9


@pytest.mark.parametrize(("name", "attention"), [pair for pair in BOTH if pair[0] != "vit"])
def test_padding_on_the_left_and_several_lengths(name: str, attention: str):
    """Batches of unlike lengths give one kernel; padding stands before the tokens."""
    case = CASES[name]
    side = "left" if case.left_eager or attention == "sdpa" else "right"
    model, batches = case.model(attention), [texts(3, 6, side), texts(2, 4, side, 2), texts(4, 7, side, 3)]
    if name != "t5 encoder":
        del batches[1]["attention_mask"]
    expected = jacobian_kernel(model, batches, output="logits")
    assert expected.shape[0] == 9
    assert relative(tangent_kernel(model, batches, output="logits"), expected) < 1e-9
    n, c = expected.shape[:2]
    v = normal(n * c)
    cache = factors(model, batches, output="logits")
    assert relative(cache @ v, expected.reshape(n * c, n * c) @ v) < 1e-9
    assert cache.fallback == case.fallback
    streamed = TangentKernel(model, batches, output="logits", method="streamed")
    # forward mode rounds its derivatives where the model takes a step in float32 (RMSNorm, RoPE, eager softmax)
    assert relative(streamed @ v, expected.reshape(n * c, n * c) @ v) < 1e-6


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit"])
def test_both_methods_agree(name: str, monkeypatch: pytest.MonkeyPatch):
    """Transposed weights too: factorised and per-sample give one kernel, and the same products."""
    from wideangle.kernel import cost

    model, x = CASES[name].model("sdpa"), data(name)
    original, expected = cost._cheaper, jacobian_kernel(model, x, output="logits")
    n, c = expected.shape[:2]
    v = normal(n * c)
    for forced in ("per-sample", "factorised"):

        def force(cover, layout, *rest, forced=forced):
            free = cover.rule.gradient is None and not cover.rule.lookup
            return forced if free else original(cover, layout, *rest)

        monkeypatch.setattr(cost, "_cheaper", force)
        cache = factors(model, x, output="logits")
        assert relative(cache.gram(), expected) < 1e-9
        assert relative(cache @ v, expected.reshape(n * c, n * c) @ v) < 1e-9
        pulled = cache.pull(v.reshape(1, n, c))
        assert {key: value.shape[1:] for key, value in pulled.items()} == {
            key: value.shape for key, value in model.named_parameters() if key in pulled
        }


def test_pulled_back_vectors_are_gradients():
    """J^T v of a transposed weight is that weight's gradient, not its transpose's."""
    model, x = CASES["gpt2"].model("eager"), data("gpt2")
    v = normal(5, 3)
    pulled = factors(model, x, output="logits").pull(v[None])
    (model(**x).logits * v).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert relative(pulled[name][0], parameter.grad) < 1e-9, name


def test_selected_parameters_of_transposed_layers():
    model, x = CASES["gpt2"].model("sdpa"), data("gpt2")
    for some in ("transformer.h.0.mlp.c_fc.bias", "transformer.h.1.attn.c_attn.weight", "transformer.ln_f"):
        expected = jacobian_kernel(model, x, output="logits", params=some)
        assert relative(tangent_kernel(model, x, output="logits", params=some), expected) < 1e-9
        assert factors(model, x, output="logits", params=some).fallback == ()


def test_single_precision_keeps_the_rules():
    """In float32, as such models are used; also with left padding for eager attention."""
    for name in ("bert", "gpt2", "llama", "t5 encoder"):
        model, x = CASES[name].model("eager"), data(name, side="left")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
        model = model.float()
        cache = factors(model, x, output="logits")
        assert relative(cache.gram(), jacobian_kernel(model, x, output="logits")) < 1e-5
        assert cache.fallback == CASES[name].fallback


def test_scaled_weights_of_other_norms():
    """A norm that scales by one plus its weight, and an embedding with a forward of its own, in the fallback.

    This model rounds its scales to single precision within, so the slow twin itself is exact to that only.
    """
    model = Case("GemmaForSequenceClassification", DECODER | {"head_dim": 4}).model("sdpa")
    x = data("gemma")
    cache = factors(model, x, output="logits")
    assert relative(cache.gram(), jacobian_kernel(model, x, output="logits")) < 1e-6
    assert cache.fallback == ("model.embed_tokens.weight",)


def test_relative_positions_in_the_fallback():
    """Projections of relative positions see no batch: they are the only exceptions of this model."""
    model, x = Case("DebertaV2ForSequenceClassification", DEBERTA).model("eager"), data("deberta")
    cache = factors(model, x, output="logits")
    assert relative(cache.gram(), jacobian_kernel(model, x, output="logits")) < 1e-9
    assert all("pos_" in name or "rel_" in name or "position_" in name for name in cache.fallback)


def test_what_vmap_cannot_follow_is_differentiated_sample_by_sample(monkeypatch: pytest.MonkeyPatch):
    """A mask is looked at by the model: no vmap, yet one backward pass a sample and output, not through all."""
    model, x = CASES["bert"].model("sdpa"), data("bert", 6)
    sizes, original = [], _fallback._rows

    def counted(z: Tensor, leaves: list[Tensor]) -> Tensor:
        sizes.append(tuple(z.shape))
        return original(z, leaves)

    monkeypatch.setattr(_fallback, "_rows", counted)
    positions = "bert.embeddings.position_embeddings"
    found = tangent_kernel(model, x, output="logits", params=positions)
    assert relative(found, jacobian_kernel(model, x, output="logits", params=positions)) < 1e-9
    assert sizes == [(1, 3)] * 6
    sizes.clear()
    tangent_kernel(model, {"input_ids": x["input_ids"]}, output="logits", params=positions)
    assert sizes == []


def test_a_cache_beside_the_logits_and_other_picks():
    """Language models return their keys and values too; the state stays as found."""
    model, x = CASES["gpt2"].model("sdpa"), data("gpt2")
    assert model(**x).past_key_values is not None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = tangent_kernel(model, x, output="logits")
    assert torch.equal(tangent_kernel(model, x, output=0), expected)
    assert torch.equal(tangent_kernel(model, x, output=lambda raw: raw.logits), expected)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
