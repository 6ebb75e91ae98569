"""A GGUF file keeps its blocks: every type, mixed types, tied heads, and what chooses the format."""

from __future__ import annotations

import pytest
import torch

from engine import LLM, SamplingParams, kernels
from engine.__main__ import main, parser
from engine.checkpoints.opening import open_model
from engine.cli.inspection import inspect
from engine.layers.linear import Matrix
from engine.quant.gguf import Records
from engine.runtime.errors import BareloopError, UsageError

gguf = pytest.importorskip("gguf")
from tests.engine.checkpoints.gguf.converter import convert  # noqa: E402

SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
TYPES = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q5_K", "Q6_K"]
MIXED = {"attn_v": "Q6_K", "ffn_down": "Q6_K", "token_embd": "Q6_K", "output": "Q8_0"}  # as in Q4_K_M
PROMPT = [5, 9, 33, 60, 2, 17, 41, 12, 8, 3, 22] * 3  # more rows than the kernels take, which are multiplied exactly

pytestmark = pytest.mark.skipif(not kernels.available(), reason="needs the C++ kernels")


@pytest.fixture
def write(draw_tiny, tmp_path, cache):
    """Write a tiny model: write(kind, variant, kinds) -> the file."""

    def convert_tiny(kind="Q4_0", variant="llama", kinds=MIXED, **sizes):
        return convert(draw_tiny(variant, **SIZES, **sizes).folder, tmp_path / "model.gguf", kind, kinds=kinds)

    return convert_tiny


def formats(llm: LLM) -> dict[str, Records | None]:
    return {name: module.format for name, module in llm.model.named_modules() if isinstance(module, Matrix)}


def check(path, few_rows_tolerance: float) -> LLM:
    """Compare with the dense model of the same file in float32: prompts exactly, tokens within the rounding of x."""
    llm, dense = LLM.load(path, "cpu", "float32"), LLM.load(path, "cpu", "float32", "none")
    assert (llm.quant, dense.quant) == ("gguf", "none")
    expected = dense.logits(PROMPT)
    assert (llm.logits(PROMPT) - expected).abs().max() <= 2e-6 * expected.abs().max()
    for matrix, other in zip(llm.model.modules(), dense.model.modules(), strict=True):
        if isinstance(matrix, Matrix) and matrix.format is not None:
            assert torch.equal(matrix.format.dense(matrix._parameters, 0, matrix.rows, torch.float32), other.weight)
    few = llm.logits(PROMPT[:5])
    assert (few - dense.logits(PROMPT[:5])).abs().max() <= few_rows_tolerance * expected.abs().max()
    return llm


@pytest.mark.parametrize("kind", TYPES)
def test_a_file_in_each_type_computes_with_its_values(write, kind):
    llm = check(write(kind, kinds={}), 1e-3)
    kept = formats(llm)
    assert len(kept) == 14 and all(isinstance(weight_format, Records) for weight_format in kept.values())
    expected = gguf.GGMLQuantizationType[kind]
    assert {part for weight_format in kept.values() for part, _ in weight_format.parts} == {expected}
    half = LLM.load(llm.folder, "cpu", "bfloat16")
    assert (half.logits(PROMPT) - llm.logits(PROMPT)).abs().max() < 0.1 * llm.logits(PROMPT).abs().max()


def test_stacked_projections_may_have_different_types(write):
    llm = check(write("Q4_K"), 1e-3)
    kinds = {name: tuple(kind for kind, _ in kept.parts) for name, kept in formats(llm).items()}
    assert kinds["layers.0.attention.qkv"] == (12, 12, 14) and kinds["layers.1.mlp.gate_up"] == (12, 12)
    assert kinds["layers.1.mlp.down"] == kinds["embed"] == (14,) and kinds["head"] == (8,)


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K"])
def test_a_tied_head_shares_the_embedding(write, kind):
    llm = check(write("Q4_1", "llama-3.2", {"token_embd": kind}), 1e-3)
    assert llm.model.head.weight is llm.model.embed.weight and isinstance(llm.model.head.format, Records)


@pytest.mark.parametrize("variant", ["qwen2", "qwen3", "gemma2", "mistral", "olmo2", "mamba"])
def test_families_keep_their_blocks(write, variant):
    sizes = {"query_pre_attn_scalar": 64, "head_dim": 64} if variant == "gemma2" else {}
    llm = check(write("Q4_0", variant, {}, **sizes), 5e-3)
    exact = ("x_proj", "dt_proj")  # of Mamba
    dense = {name for name, weight_format in formats(llm).items() if weight_format is None}
    assert all(name.endswith(exact) for name in dense) and llm.model.fused
    completion = llm.generate([PROMPT], SamplingParams(max_new_tokens=4, ignore_eos=True))[0]
    assert len(completion.token_ids) == 4


def test_matrices_in_other_types_and_layouts_stay_dense(write, draw_tiny, tmp_path):
    llm = check(write("Q4_0", kinds={"ffn_down": "F16", "attn_v": "Q5_1", "token_embd": "BF16"}), 1e-3)
    kept = {name for name, weight_format in formats(llm).items() if weight_format is not None}
    assert kept == {"head", *(f"layers.{i}.{name}" for i in range(3) for name in ("attention.out", "mlp.gate_up"))}
    path = convert(draw_tiny("gpt2", hidden_size=96).folder, tmp_path / "gpt2.gguf", "Q8_0")
    kept = {name for name, weight_format in formats(LLM.load(path, "cpu")).items() if weight_format is not None}
    assert "embed" in kept and not any("attention" in name for name in kept)


def test_the_file_and_the_machine_decide_what_auto_is(write, tmp_path, draw_tiny, monkeypatch):
    path = write()
    assert open_model(path).quant == open_model(path, quant="gguf").quant == "gguf"
    assert open_model(path, quant="int8").quant == "int8" and open_model(path, quant="none").quant == "none"
    assert open_model(path, device=torch.device("cuda")).quant == "none"
    with pytest.raises(UsageError, match=r"--quant gguf is for a CPU, not cuda; leave out --quant"):
        open_model(path, quant="gguf", device=torch.device("cuda"))
    plain = draw_tiny("llama", **SIZES).folder
    for other in (plain, convert(plain, tmp_path / "plain.gguf", "F16")):
        assert open_model(other).quant == "none"
        with pytest.raises(UsageError, match=r"keeps the blocks of a GGUF file, and this model has none"):
            open_model(other, quant="gguf")
    expected = LLM.load(path, "cpu", "float32", "none").logits(PROMPT)
    monkeypatch.setattr(kernels, "available", lambda: False)
    monkeypatch.setattr(kernels, "_active_ops", None)
    assert open_model(path).quant == "none"
    by_torch = LLM.load(path, "cpu", "float32", "gguf").logits(PROMPT)
    assert (by_torch - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_saving_is_refused_in_one_line_or_dense(write, tmp_path, capsys):
    path = write()
    with pytest.raises(BareloopError, match=r"the GGUF file itself is this model; load it in another weight format"):
        LLM.load(path, "cpu").save(tmp_path / "saved")
    with pytest.raises(UsageError, match=r"--save-quantized needs a weight format"):
        main(parser().parse_args(["-m", str(path), "--save-quantized", str(tmp_path / "saved")]))
    main(parser().parse_args(["-m", str(path), "--save", str(tmp_path / "saved"), "--dtype", "float32"]))
    expected = LLM.load(path, "cpu", "float32", "none").logits(PROMPT)
    assert torch.equal(LLM.load(tmp_path / "saved", "cpu", "float32").logits(PROMPT), expected)


def test_inspection_names_the_types_that_are_kept(write):
    path = write("Q4_K", kinds={**MIXED, "ffn_down": "F16"})
    facts = next(iter(inspect(str(path))))
    cells = list(facts.columns[1].cells)
    assert any("weights in gguf (Q8_0, Q4_K, Q6_K as in the file)" in str(cell) for cell in cells)


def test_a_truncated_file_is_one_line(write):
    path = write()
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(BareloopError, match=r"is truncated or damaged"):
        LLM.load(path, "cpu")
