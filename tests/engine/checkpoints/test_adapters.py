"""LoRA adapters: the same logits as in peft, both ways; merging; refusals in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import LLM
from engine.checkpoints.adapter_config import CONFIG, WEIGHTS, LoraConfig, read_adapter_config
from engine.checkpoints.adapters import (
    adapter_fingerprint,
    adapter_tensors,
    add_adapters,
    load_adapter,
    merge_adapters,
    save_adapter,
)
from engine.checkpoints.opening import open_model, weights_fingerprint
from engine.layers.linear import Matrix
from engine.runtime.errors import BareloopError, UsageError

peft = pytest.importorskip("peft")

ALL_RWKV = ["key", "value", "receptance", "output"]
# Of every kind of family: what peft adapts, and other settings.
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "llama": ("llama", ["q_proj", "v_proj", "down_proj"], {"rank_pattern": {"q_proj": 5}, "use_rslora": True}),
    "llama-regex": ("llama", r".*layers\.[12]\.(self_attn|mlp)\.\w+_proj", {"alpha_pattern": {"mlp.up_proj": 40}}),
    "llama-head": ("llama", ["lm_head", "o_proj"], {"layers_to_transform": [1]}),
    "qwen2": ("qwen2", "all-linear", {"exclude_modules": ["k_proj"]}),
    "gpt2": ("gpt2", ["c_attn", "c_proj"], {}),
    "gpt_neox": ("gpt_neox", "all-linear", {}),
    "phi": ("phi", ["q_proj", "v_proj", "fc1", "fc2"], {}),
    "gemma": ("gemma", "all-linear", {"layers_to_transform": None}),
    "mamba": ("mamba", ["in_proj", "x_proj"], {}),
    "rwkv": ("rwkv", ALL_RWKV, {}),
}


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(torch.tensor([ids])).logits[0]
    return result


def dense(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def make_peft(base: Path, folder: Path, targets: Any, seed: int = 0, **settings: Any) -> Any:
    """Write an adapter with random A and B, and return peft's model."""
    config = peft.LoraConfig(
        **{"r": 3, "lora_alpha": 7, "task_type": "CAUSAL_LM", "target_modules": targets} | settings
    )
    model = peft.get_peft_model(dense(base), config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.2, generator=generator)
    model.save_pretrained(folder)
    return model


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to max(1, largest |logit|)."""
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


@pytest.fixture
def adapter(tiny_llama, tmp_path) -> Path:
    """An adapter of a Llama, whose base is named."""
    make_peft(tiny_llama.folder, tmp_path / "tuned", ["q_proj", "gate_proj"])
    return tmp_path / "tuned"


@pytest.fixture
def edit(adapter) -> Callable[..., Path]:
    """Change keys of the adapter's config; None removes one: edit(r=0) -> its folder."""

    def change(**keys: Any) -> Path:
        raw = json.loads((adapter / CONFIG).read_text()) | keys
        (adapter / CONFIG).write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
        return adapter

    return change


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_an_adapter_of_peft_has_the_same_logits_here_and_ours_has_them_in_peft(case, draw_tiny, tmp_path, prompt):
    variant, targets, settings = CASES[case]
    tiny, ids = draw_tiny(variant), prompt(20)
    expected = logits(make_peft(tiny.folder, tmp_path / "theirs", targets, **settings), ids)
    plain = LLM.load(tiny.folder, "cpu", "float32")
    assert difference(plain.logits(ids), expected) > 0.05
    merged = LLM.load(tiny.folder, "cpu", "float32", adapter=tmp_path / "theirs")
    assert difference(merged.logits(ids), expected) < tiny.tolerance
    config = load_adapter(plain.model, plain.family, tmp_path / "theirs")
    assert difference(plain.logits(ids), expected) < tiny.tolerance
    save_adapter(plain.model, plain.family, config, tmp_path / "ours")
    if case != "llama-head":  # of which peft also writes the head itself
        theirs, ours = (load_file(tmp_path / name / WEIGHTS) for name in ("theirs", "ours"))
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    again = peft.PeftModel.from_pretrained(dense(tiny.folder), tmp_path / "ours")
    assert difference(logits(again, ids), expected) < 1e-6
    assert json.loads((tmp_path / "ours" / CONFIG).read_text())["fan_in_fan_out"] == (variant == "gpt2")


def test_a_new_adapter_changes_nothing_trains_alone_and_has_the_seeds_values(tiny_llama, prompt):
    models = [LLM.load(tiny_llama.folder, "cpu", "float32") for _ in range(3)]
    before = models[0].logits(prompt(9))
    for llm, seed in zip(models, (1, 1, 2), strict=True):
        add_adapters(llm.model, llm.family, LoraConfig(rank=4), seed)
    assert difference(models[0].logits(prompt(9)), before) < 2e-5
    trained = {name for name, parameter in models[0].model.named_parameters() if parameter.requires_grad}
    assert trained and all(".adapter." in name for name in trained)
    first, same, other = (adapter_tensors(llm.model, llm.family) for llm in models)
    assert len(first) == 2 * 7 * 3
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first[next(iter(first))], other[next(iter(first))])
    with pytest.raises(BareloopError, match="has an adapter already"):
        add_adapters(models[0].model, models[0].family, LoraConfig())


def test_a_merged_model_is_saved_as_one_that_transformers_loads(adapter, tiny_llama, tmp_path, prompt):
    llm = LLM.load(tiny_llama.folder, "cpu", "float32", adapter=adapter)
    assert llm.adapter == adapter and str(adapter) in llm.model.source
    llm.save(tmp_path / "merged")
    assert difference(logits(dense(tmp_path / "merged"), prompt(20)), llm.logits(prompt(20))) < 2e-5
    assert LLM.load(tiny_llama.folder, "cpu").adapter is None


def test_merging_rounds_once_and_leaves_a_mapped_file_alone(adapter, tiny_llama, monkeypatch):
    content = (tiny_llama.folder / "model.safetensors").read_bytes()
    base = LLM.load(tiny_llama.folder, "cpu", "bfloat16").model.get_parameter("layers.0.attention.qkv.weight")
    monkeypatch.setattr("engine.checkpoints.loading.free_memory", lambda _: 2**20)  # so that weights would be mapped
    merged = LLM.load(tiny_llama.folder, "cpu", "bfloat16", adapter=adapter).model
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    a, b = (load_file(adapter / WEIGHTS)[name.format(part)].double() for part in "AB")
    expected = base[:48].double() + 7 / 3 * b @ a
    actual = merged.get_parameter("layers.0.attention.qkv.weight")
    assert ((actual[:48].double() - expected).abs() <= 2**-8 * expected.abs() + 1e-7).all()
    assert torch.equal(actual[48:], base[48:])
    assert (tiny_llama.folder / "model.safetensors").read_bytes() == content


@pytest.mark.parametrize("quant", ["int8", "int4", "nf4"])
def test_beside_quantized_weights_it_is_as_on_their_dense_values(quant, draw_tiny, tmp_path, prompt):
    tiny = draw_tiny("llama", hidden_size=128, intermediate_size=256, num_attention_heads=4)
    make_peft(tiny.folder, tmp_path / "tuned", ["q_proj", "down_proj"])
    tuned = LLM.load(tiny.folder, "cpu", "float32", quant, adapter=tmp_path / "tuned")
    dense_values = LLM.load(tiny.folder, "cpu", "float32")
    for name, matrix in tuned.model.named_modules():
        if isinstance(matrix, Matrix) and matrix.format is not None:
            weight = matrix.format.dense(matrix._parameters, 0, matrix.rows, torch.float32)
            dense_values.model.get_submodule(name).weight = torch.nn.Parameter(weight, requires_grad=False)
    without = difference(tuned.logits(prompt(20)), dense_values.logits(prompt(20)))
    load_adapter(dense_values.model, dense_values.family, tmp_path / "tuned")
    assert difference(tuned.logits(prompt(20)), dense_values.logits(prompt(20))) < without / 8
    with pytest.raises(BareloopError, match="--quant none"):
        tuned.save(tmp_path / "saved")
    with pytest.raises(BareloopError, match="not merged into quantized weights"):
        merge_adapters(tuned.model)


def test_an_adapters_folder_is_a_model_with_the_base_that_it_names(adapter, edit, tiny_llama, prompt, monkeypatch):
    expected = LLM.load(tiny_llama.folder, "cpu", "float32", adapter=adapter).logits(prompt(9))
    assert torch.equal(LLM.load(adapter, "cpu", "float32").logits(prompt(9)), expected)
    (adapter.parent / "base").symlink_to(tiny_llama.folder)
    edit(base_model_name_or_path="base")  # beside the adapter
    assert torch.equal(LLM.load(adapter, "cpu", "float32").logits(prompt(9)), expected)
    monkeypatch.chdir(tiny_llama.folder.parent)
    edit(base_model_name_or_path=tiny_llama.folder.name)  # in the working directory
    assert torch.equal(LLM.load(adapter, "cpu", "float32").logits(prompt(9)), expected)
    with pytest.raises(UsageError, match="is an adapter itself"):
        LLM.load(adapter, "cpu", adapter=adapter)
    edit(base_model_name_or_path=str(adapter))
    with pytest.raises(BareloopError, match="is an adapter, too"):
        LLM.load(adapter, "cpu")
    edit(base_model_name_or_path=None)
    with pytest.raises(BareloopError, match="names no base model; use -m BASE --adapter"):
        LLM.load(adapter, "cpu")
    edit(base_model_name_or_path="./nowhere")
    with pytest.raises(BareloopError, match=r"the base model of .*no such folder: \./nowhere"):
        LLM.load(adapter, "cpu")


def test_the_identity_of_weights_depends_on_what_an_adapter_computes(adapter, edit, tiny_llama):
    opened = open_model(adapter)
    assert opened.folder == tiny_llama.folder and opened.adapter == adapter
    prints = [weights_fingerprint(opened.folder), weights_fingerprint(opened.folder, adapter)]
    same = adapter_fingerprint(edit(base_model_name_or_path="another", lora_dropout=0.1))
    prints += [same, adapter_fingerprint(edit(lora_alpha=8))]
    assert len(set(prints)) == 4
    assert same == adapter_fingerprint(edit(lora_alpha=7))


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"peft_type": "IA3"}, "peft_type = 'IA3' is not implemented; LORA is"),
    "dora": ({"use_dora": True}, "DoRA"),
    "bias": ({"bias": "all"}, "bias = 'all' trains biases"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "modules_to_save = .* is not implemented; merge it in peft"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' changes the base model"),
    "unknown": ({"trainable_token_indices": [1]}, "trainable_token_indices = .* is not implemented"),
    "rank 0": ({"r": 0}, "rank 0 is none"),
    "rank": ({"r": "8"}, "r = '8' is not a whole number"),
    "alpha": ({"lora_alpha": []}, "is not an adapter_config.json of peft"),
    "dropout": ({"lora_dropout": 1.0}, "dropout is 1.0"),
    "no targets": ({"target_modules": None}, "target_modules names no modules"),
    "nothing": (
        {"target_modules": ["c_attn"]},
        r"'c_attn'.* is no linear layer of this llama model; it has: down_proj",
    ),
    "embedding": ({"target_modules": ["embed_tokens"]}, "embed_tokens is a Embedding, and not a linear layer"),
    "regex": ({"target_modules": "(q_proj"}, r"regular expression '\(q_proj' is invalid"),
    "shape": ({"r": 4}, r"misshapen \(.*lora_A.weight is \[3, 48\], not \[4, 48\]"),
    "missing": ({"target_modules": ["q_proj", "gate_proj", "up_proj"]}, "6 missing"),
    "unexpected": ({"target_modules": ["q_proj"]}, "6 unexpected"),
    "layers": ({"target_modules": "all-linear", "layers_to_transform": [1]}, "needs a list of target_modules"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_not_plain_lora_for_this_model_is_refused_in_one_line(case, edit):
    keys, line = REFUSALS[case]
    with pytest.raises(BareloopError, match=line):
        LLM.load(edit(**keys), "cpu")


def test_broken_folders_are_refused_in_one_line(adapter, tiny_llama, tmp_path):
    tensors = load_file(adapter / WEIGHTS)
    save_file({**tensors, "base_model.model.lm_head.weight": torch.zeros(2, 2)}, adapter / WEIGHTS)
    with pytest.raises(BareloopError, match=r"1 unexpected \(lm_head.weight\); whole weights are not implemented"):
        LLM.load(adapter, "cpu")
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(BareloopError, match=r"has no adapter_model.safetensors; its adapter_model.bin is a pickle"):
        LLM.load(adapter, "cpu")
    (adapter / CONFIG).write_text("[]")
    with pytest.raises(BareloopError, match="not a JSON object"):
        LLM.load(adapter, "cpu")
    with pytest.raises(BareloopError, match=r"has no adapter_config\.json, so it is not an adapter"):
        LLM.load(tiny_llama.folder, "cpu", adapter=tmp_path)
    with pytest.raises(BareloopError, match=r"no such folder: \./nowhere"):
        LLM.load(tiny_llama.folder, "cpu", adapter="./nowhere")


@pytest.mark.parametrize(
    ("variant", "targets", "line"),
    [
        ("qwen2", ("lm_head",), "lm_head is a head whose weight is the embedding's"),
        ("llama", ("q_proj", "nothing"), "'nothing' is no linear layer"),
        ("mamba", ("conv1d",), "conv1d is a Convolution"),
        ("mamba", ("out_proj",), "without that adapter; leave it out; targets can be in_proj, x_proj"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused(variant, targets, line, draw_tiny):
    llm = LLM.load(draw_tiny(variant).folder, "cpu")
    with pytest.raises(BareloopError, match=line):
        add_adapters(llm.model, llm.family, LoraConfig(targets=targets))


@pytest.mark.filterwarnings("ignore")
def test_mambas_time_step_is_not_adapted_as_transformers_reads_its_weight_alone(draw_tiny, tmp_path, prompt):
    tiny = draw_tiny("mamba")
    model = make_peft(tiny.folder, tmp_path / "tuned", ["in_proj", "dt_proj"])
    with pytest.raises(BareloopError, match="which transformers leaves out"):
        LLM.load(tiny.folder, "cpu", adapter=tmp_path / "tuned")
    for name, parameter in model.named_parameters():
        if "dt_proj.lora_B" in name:
            parameter.data.zero_()  # as training leaves it
    model.save_pretrained(tmp_path / "tuned")
    actual = LLM.load(tiny.folder, "cpu", "float32", adapter=tmp_path / "tuned").logits(prompt(20))
    assert difference(actual, logits(model, prompt(20))) < tiny.tolerance


def test_a_config_survives_saving_and_names_no_module_that_is_not_adapted(draw_tiny, tmp_path):
    llm = LLM.load(draw_tiny("gpt2").folder, "cpu")
    config = LoraConfig(rank=2, alpha=3.5, targets=r".*\.h\.1\.attn\.c_proj", rslora=True, base="gpt2")
    add_adapters(llm.model, llm.family, config)
    save_adapter(llm.model, llm.family, config, tmp_path, {"README.md": b"tuned"})
    saved = read_adapter_config(tmp_path)
    assert saved.targets == ("1.attn.c_proj",)
    assert (saved.rank, saved.alpha, saved.rslora, saved.base) == (2, 3.5, True, "gpt2")
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", CONFIG, WEIGHTS}
