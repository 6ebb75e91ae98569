"""LoRA adapters: the same logits as in peft, both ways; merging; refusals in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import LLM
from engine.checkpoints.adapters.config import CONFIG, WEIGHTS, LoraConfig
from engine.checkpoints.adapters.files import (
    adapter_fingerprint,
    adapter_tensors,
    add_adapters,
    load_adapter,
    merge_adapters,
    save_adapter,
)
from engine.checkpoints.opening import open_model, weights_fingerprint
from engine.layers.linear import Matrix, is_adapted
from engine.models.family import Model
from engine.runtime.errors import BareloopError, UsageError

ALL_RWKV = ["key", "value", "receptance", "output"]
# Of every kind of family: what peft adapts, and other settings.
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "llama": ("llama", ["q_proj", "v_proj", "down_proj"], {"rank_pattern": {"q_proj": 5}, "use_rslora": True}),
    "llama-regex": ("llama", r".*layers\.[12]\.(self_attn|mlp)\.\w+_proj", {"alpha_pattern": {"mlp.up_proj": 40}}),
    "llama-head": ("llama", ["lm_head", "o_proj"], {"layers_to_transform": [1]}),
    "qwen2": ("qwen2", "all-linear", {"exclude_modules": ["k_proj"]}),
    "gpt2": ("gpt2", ["c_attn", "c_proj"], {}),
    "gpt_neox": ("gpt_neox", "all-linear", {}),
    "gpt_neox-head": ("gpt_neox", ["lm_head", "dense"], {"rank_pattern": {"lm_head": 5}}),
    "phi": ("phi", ["q_proj", "v_proj", "fc1", "fc2"], {}),
    "gemma": ("gemma", "all-linear", {"layers_to_transform": None}),
    "gemma3": ("gemma3", ["q_proj", "down_proj"], {}),  # the vision tower has a q_proj, too
    "gemma3-all": ("gemma3", "all-linear", {"layers_to_transform": None}),
    "gemma3-regex": (
        "gemma3",
        r".*language_model.*\.\w+_proj",
        {"rank_pattern": {r"^model\.language_model\.layers\.1\.mlp\.up_proj": 5}, "exclude_modules": r".*\.v_proj"},
    ),
    "mamba": ("mamba", ["in_proj", "x_proj"], {}),
    "rwkv": ("rwkv", ALL_RWKV, {}),
}


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(torch.tensor([ids])).logits[0]
    return result


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to max(1, largest |logit|)."""
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_an_adapter_of_peft_has_the_same_logits_here_and_ours_has_them_in_peft(
    case, draw_tiny, with_images, make_peft, dense, tmp_path, prompt
):
    variant, targets, settings = CASES[case]
    tiny, ids = with_images if variant == "gemma3" else draw_tiny(variant), prompt(20)
    expected = logits(make_peft(tiny.folder, tmp_path / "theirs", targets, **settings), ids)
    plain = LLM.load(tiny.folder, "cpu", "float32")
    assert difference(plain.logits(ids), expected) > 0.05
    merged = LLM.load(tiny.folder, "cpu", "float32", adapter=tmp_path / "theirs")
    assert difference(merged.logits(ids), expected) < tiny.tolerance
    config = load_adapter(plain.model, plain.family, tmp_path / "theirs")
    assert difference(plain.logits(ids), expected) < tiny.tolerance
    save_adapter(plain.model, plain.family, config, tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / name / WEIGHTS) for name in ("theirs", "ours"))
    loaded = {name for name in theirs if "vision_tower" not in name and not name.endswith("base_layer.weight")}
    assert loaded == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in loaded)
    from peft import PeftModel

    again = PeftModel.from_pretrained(dense(tiny.folder), tmp_path / "ours")
    assert {name for name, _ in again.named_parameters() if "lora_" in name} == {
        name.replace(".weight", ".default.weight") for name in ours
    }
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


def test_a_merged_model_is_saved_as_one_that_transformers_loads(adapter, tiny_llama, dense, tmp_path, prompt):
    llm = LLM.load(tiny_llama.folder, "cpu", "float32", adapter=adapter)
    assert llm.adapter == adapter and str(adapter) in llm.model.source
    llm.save(tmp_path / "merged")
    assert difference(logits(dense(tmp_path / "merged"), prompt(20)), llm.logits(prompt(20))) < 2e-5
    assert LLM.load(tiny_llama.folder, "cpu").adapter is None


def test_merging_rounds_once_and_says_what_that_loses(adapter, tiny_llama, prompt):
    base = LLM.load(tiny_llama.folder, "cpu", "bfloat16").model.get_parameter("layers.0.attention.qkv.weight")
    llm = LLM.load(tiny_llama.folder, "cpu", "bfloat16", adapter=adapter)
    merged = llm.model
    assert is_adapted(merged)  # beside its weights
    exact = LLM.load(tiny_llama.folder, "cpu", "float32", adapter=adapter)
    assert not is_adapted(exact.model)  # merged into float32 weights
    assert difference(llm.logits(prompt(20)), exact.logits(prompt(20))) < 0.02
    lost = merge_adapters(merged)
    assert not is_adapted(merged)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    a, b = (load_file(adapter / WEIGHTS)[name.format(part)].double() for part in "AB")
    expected = base[:48].double() + 7 / 3 * b @ a
    actual = merged.get_parameter("layers.0.attention.qkv.weight")
    assert ((actual[:48].double() - expected).abs() <= 2**-8 * expected.abs() + 1e-7).all()
    assert torch.equal(actual[48:], base[48:])
    folder = tiny_llama.folder
    models = [merged, exact.model, *(LLM.load(folder, "cpu", dtype).model for dtype in ("bfloat16", "float32"))]
    errors = changes = 0.0
    for tensors in zip(*(model.parameters() for model in models), strict=True):
        rounded, whole, before, before_whole = (tensor.double() for tensor in tensors)
        change = whole - before_whole
        errors += float((rounded - before - change).square().sum())
        changes += float(change.square().sum())
    assert lost == pytest.approx((errors / changes) ** 0.5, rel=0.01)


@pytest.mark.parametrize("quant", ["int8", "int4", "nf4"])
def test_beside_quantized_weights_it_is_as_on_their_dense_values(quant, draw_tiny, make_peft, tmp_path, prompt):
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
    with pytest.raises(BareloopError, match="merge it into the unquantized"):
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


def test_a_folder_with_the_bases_config_beside_the_adapter_is_an_adapter(adapter, tiny_llama, prompt):
    expected = LLM.load(adapter, "cpu", "float32").logits(prompt(9))
    (adapter / "config.json").write_bytes((tiny_llama.folder / "config.json").read_bytes())
    assert torch.equal(LLM.load(adapter, "cpu", "float32").logits(prompt(9)), expected)
    (adapter / "model.safetensors").write_bytes((tiny_llama.folder / "model.safetensors").read_bytes())
    assert LLM.load(adapter, "cpu").adapter is None


def test_merging_keeps_what_it_does_not_change_in_the_mapped_file_and_writes_in_place_elsewhere(
    draw_tiny, make_peft, monkeypatch, tmp_path
):
    tiny = draw_tiny("llama")
    make_peft(tiny.folder, tmp_path / "tuned", ["o_proj"])

    def mapped(model: Model) -> set[str]:
        """Ends of names."""
        matrices = ((name, module) for name, module in model.named_modules() if isinstance(module, Matrix))
        return {name.split(".", 2)[-1] for name, matrix in matrices if matrix.is_mapped}

    content = (tiny.folder / "model.safetensors").read_bytes()
    expected = LLM.load(tiny.folder, "cpu", "float32", adapter=tmp_path / "tuned")
    nbytes = sum(parameter.nbytes for parameter in expected.model.parameters())  # ample memory is twice as much
    with monkeypatch.context() as patch:
        patch.setattr("engine.checkpoints.loading.free_memory", lambda _: nbytes * 3 // 2)
        base = LLM.load(tiny.folder, "cpu", "float32")
        merged = LLM.load(tiny.folder, "cpu", "float32", adapter=tmp_path / "tuned")
    assert mapped(base.model) == {"embed", "attention.out", "mlp.down", "head"}
    assert mapped(merged.model) == mapped(base.model) - {"attention.out"}
    places = {name: parameter.data_ptr() for name, parameter in merged.model.named_parameters()}
    add_adapters(merged.model, merged.family, LoraConfig(rank=2, targets=("o_proj", "down_proj")))
    merge_adapters(merged.model)
    moved = {name for name, parameter in merged.model.named_parameters() if parameter.data_ptr() != places[name]}
    assert {name.split(".", 2)[-1] for name in moved} == {"mlp.down.weight"}
    load_adapter(base.model, base.family, tmp_path / "tuned")
    merge_adapters(base.model)
    for name, parameter in expected.model.named_parameters():
        assert torch.equal(parameter, base.model.get_parameter(name)), name
        assert torch.equal(parameter, merged.model.get_parameter(name)), name
    assert (tiny.folder / "model.safetensors").read_bytes() == content


def test_the_identity_of_weights_depends_on_what_an_adapter_computes(adapter, edit, tiny_llama):
    opened = open_model(adapter)
    assert opened.folder == tiny_llama.folder and opened.adapter == adapter
    prints = [weights_fingerprint(opened.folder), weights_fingerprint(opened.folder, adapter)]
    same = adapter_fingerprint(edit(base_model_name_or_path="another", lora_dropout=0.1))
    prints += [same, adapter_fingerprint(edit(lora_alpha=8))]
    assert len(set(prints)) == 4
    assert same == adapter_fingerprint(edit(lora_alpha=7))
    assert same == adapter_fingerprint(edit(target_modules=r".*(gate|q)_proj"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_tensors_of_any_floating_point_type_are_converted(dtype, adapter, prompt):
    rounded = {name: tensor.to(dtype) for name, tensor in load_file(adapter / WEIGHTS).items()}
    save_file({name: tensor.float() for name, tensor in rounded.items()}, adapter / WEIGHTS)
    expected = [LLM.load(adapter, "cpu", each).logits(prompt(20)) for each in ("float32", "bfloat16")]
    save_file(rounded, adapter / WEIGHTS)
    for each, logits_of_float32 in zip(("float32", "bfloat16"), expected, strict=True):
        assert torch.equal(LLM.load(adapter, "cpu", each).logits(prompt(20)), logits_of_float32)


def test_tensors_that_are_no_numbers_are_refused_in_one_line(adapter):
    tensors = load_file(adapter / WEIGHTS)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    for value in (float("nan"), float("inf")):
        broken = {**tensors, name: tensors[name].clone()}
        broken[name][0, 0] = value
        save_file(broken, adapter / WEIGHTS)
        with pytest.raises(BareloopError, match=r"model.layers.0.self_attn.q_proj have values that are not finite"):
            LLM.load(adapter, "cpu")
    save_file({**tensors, name: tensors[name].int()}, adapter / WEIGHTS)
    with pytest.raises(BareloopError, match=r"lora_B.weight is int32 \[48, 3\], not float \[48, 3\]"):
        LLM.load(adapter, "cpu")


def test_an_adapter_of_another_base_says_which(adapter, edit, draw_tiny):
    edit(base_model_name_or_path="owner/other")
    wider = draw_tiny("llama", hidden_size=96)
    for folder in (wider.folder, draw_tiny("gpt2").folder):
        with pytest.raises(BareloopError, match=r", which was made for owner/other, do(es)? not fit"):
            LLM.load(folder, "cpu", adapter=adapter)


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


@pytest.mark.filterwarnings("ignore")
def test_mambas_time_step_is_not_adapted_as_transformers_reads_its_weight_alone(draw_tiny, make_peft, tmp_path, prompt):
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
