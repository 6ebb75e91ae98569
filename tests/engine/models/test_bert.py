"""BERT's hidden states against transformers in float64; checkpoints in the wild; what an encoder refuses."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import LLM
from engine.cache.state import Step
from engine.decoding.params import SamplingParams
from engine.models import configure
from engine.runtime.errors import BareloopError
from tests.engine.encoders import SHAPE, make_encoder

ROWS = [[2, 5, 3], [2, *range(5, 30), 3], [2, 9, 8, 7, 3], [2, 5, 3], [2, *range(20, 40), 3]]
VARIANTS = {
    "plain": {},
    "gelu_new": {"hidden_act": "gelu_new"},
    "relu, one type": {"hidden_act": "relu", "type_vocab_size": 1},
    "one head, other eps": {"num_attention_heads": 1, "layer_norm_eps": 1e-3},
}


def hidden(llm: LLM, rows: list[list[int]]) -> torch.Tensor:
    with torch.inference_mode():
        return llm.model(Step.pack(rows))


def cosine_error(vectors: torch.Tensor, expected: torch.Tensor) -> float:
    return float((1 - torch.cosine_similarity(vectors.double(), expected.double(), dim=-1)).max())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture
def edited(tiny, tmp_path):
    """edited(change): a copy of the folder, with `change` applied to its tensors and settings."""

    def edit(change=lambda tensors: tensors, **settings):
        for path in tiny.folder.glob("*.json"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling/config.json").write_bytes((tiny.folder / "1_Pooling/config.json").read_bytes())
        config = json.loads((tiny.folder / "config.json").read_text()) | settings
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(change(load_file(tiny.folder / "model.safetensors")), tmp_path / "model.safetensors")
        return tmp_path

    return edit


@pytest.mark.parametrize("variant", VARIANTS)
def test_hidden_states_of_packed_rows_equal_those_of_transformers(tmp_path, variant):
    tiny = make_encoder(tmp_path, seed=1, **VARIANTS[variant])
    expected = torch.cat([tiny.hidden(row) for row in ROWS])
    llm = LLM.load(tmp_path, "cpu")
    assert (hidden(llm, ROWS) - expected).abs().max() <= 2e-5
    exact = torch.cat([hidden(llm, [row]) for row in ROWS])
    assert (hidden(llm, ROWS) - exact).abs().max() <= 1e-5


def test_names_and_extra_tensors_of_other_checkpoints_give_the_same_model(tiny, edited):
    def as_masked_lm(tensors):
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        renamed = {}
        for name, tensor in tensors.items():
            for new, former in old.items():
                name = name.replace(new, former)  # noqa: PLW2901
            renamed[f"bert.{name}"] = tensor
        return renamed | {
            "bert.embeddings.position_ids": torch.arange(40)[None],
            "cls.predictions.bias": torch.zeros(64),
            "cls.predictions.transform.dense.weight": torch.zeros(48, 48),
            "cls.predictions.transform.LayerNorm.gamma": torch.ones(48),
            "cls.seq_relationship.weight": torch.zeros(2, 48),
        }

    assert torch.equal(hidden(LLM.load(edited(as_masked_lm)), ROWS), hidden(LLM.load(tiny.folder), ROWS))


def test_a_tensor_that_nothing_knows_is_refused_by_its_name(edited):
    with pytest.raises(BareloopError, match=r"1 unexpected \(classifier.weight\)"):
        LLM.load(edited(lambda tensors: tensors | {"classifier.weight": torch.zeros(3, 48)}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key' is not implemented"),
        ({"is_decoder": True}, "is_decoder = true is not implemented"),
        ({"num_attention_heads": 5}, "hidden_size = 48 is not a multiple of 5"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish' is not implemented"),
        ({"model_type": "xlm-roberta"}, "model_type 'xlm-roberta', which is not implemented"),
        ({"model_type": "distilbert"}, "model_type 'distilbert', which is not implemented"),
    ],
)
def test_what_is_not_implemented_is_refused_by_its_name(settings, message):
    with pytest.raises(BareloopError, match=message):
        configure({"model_type": "bert"} | SHAPE | settings)


@pytest.mark.parametrize(
    "call",
    [
        lambda llm: llm.generate([[2, 5]]),
        lambda llm: list(llm.stream([2, 5], SamplingParams())),
        lambda llm: llm.score([([2], [5])]),
        lambda llm: llm.logits([2, 5]),
        lambda llm: llm.model.logits(torch.zeros(1, 48)),
        lambda llm: llm.sequence(),
        lambda llm: llm.affordable_length(),
    ],
)
def test_an_encoder_generates_and_scores_nothing(tiny, call):
    llm = LLM.load(tiny.folder, "cpu")
    assert llm.is_encoder
    with pytest.raises(BareloopError, match=r"is an encoder \(bert\), which embeds texts") as caught:
        call(llm)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("quant", "tolerance"), [("int8", 1e-3), ("int4", 0.1)])
def test_quantized_weights_give_nearly_the_same_and_are_saved(tiny, tmp_path, quant, tolerance):
    texts = ["a b c", "hello there", "z"]
    exact = LLM.load(tiny.folder, "cpu").embed(texts)
    llm = LLM.load(tiny.folder, "cpu", quant=quant)
    vectors = llm.embed(texts)
    assert 0 < cosine_error(vectors, exact) < tolerance
    llm.save(tmp_path / "saved")
    assert torch.equal(LLM.load(tmp_path / "saved", "cpu").embed(texts), vectors)


def test_a_saved_model_is_one_of_transformers_with_the_same_pooling(tiny, tmp_path):
    from transformers import BertModel

    llm = LLM.load(tiny.folder, "cpu")
    llm.save(tmp_path / "saved")
    reference = BertModel.from_pretrained(tmp_path / "saved", dtype=torch.float64, add_pooling_layer=False)
    with torch.no_grad():
        assert torch.allclose(reference(torch.tensor([ROWS[1]])).last_hidden_state[0], tiny.hidden(ROWS[1]))
    assert torch.equal(LLM.load(tmp_path / "saved", "cpu").embed(["a b"]), llm.embed(["a b"]))


def test_a_float16_checkpoint_is_computed_in_float16_and_gives_float32(tiny, edited):
    folder = edited(lambda tensors: {name: tensor.half() for name, tensor in tensors.items()}, dtype="float16")
    llm = LLM.load(folder, "cpu")
    vectors = llm.embed(["a b c", "d"])
    assert (llm.dtype, vectors.dtype) == (torch.float16, torch.float32)
    assert cosine_error(vectors, LLM.load(tiny.folder, "cpu").embed(["a b c", "d"])) < 1e-3


def test_an_adapter_of_peft_is_applied(tiny, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import BertModel

    base = BertModel.from_pretrained(tiny.folder, dtype=torch.float32, add_pooling_layer=False)
    config = peft.LoraConfig(r=4, target_modules=["query", "value", "intermediate.dense"], init_lora_weights=False)
    adapted = peft.get_peft_model(base, config).eval()
    adapted.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = adapted(torch.tensor([ROWS[1]])).last_hidden_state[0]
    assert (expected - tiny.hidden(ROWS[1])).abs().max() > 0.01
    llm = LLM.load(tiny.folder, "cpu", adapter=tmp_path)
    assert (hidden(llm, [ROWS[1]]) - expected).abs().max() < 2e-5


def test_gradients_flow_through_a_padded_batch(tiny):
    llm = LLM.from_config({"model_type": "bert"} | SHAPE)
    llm.model.recompute = True
    llm.model(Step.pack(ROWS)).sum().backward()
    assert all(parameter.grad is not None for parameter in llm.model.parameters())
