"""GGUF models are found by file, folder, shard and name in Ollama, and described as Hugging Face folders."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch

from engine import LLM, SamplingParams
from engine.checkpoints.gguf import source
from engine.checkpoints.hub import find_model
from engine.cli.inspection import inspect
from engine.runtime.errors import BareloopError

gguf = pytest.importorskip("gguf")
from tests.engine.checkpoints.gguf.converter import convert  # noqa: E402


@pytest.fixture(scope="module")
def file(tiny_llama, tmp_path_factory):
    """A valid GGUF file."""
    return convert(tiny_llama.folder, tmp_path_factory.mktemp("gguf") / "model.gguf")


@pytest.fixture(scope="module")
def expected(tiny_llama, prompt_ids):
    return LLM.load(tiny_llama.folder, "cpu", "float32").logits(prompt_ids)


@pytest.fixture(scope="module")
def prompt_ids():
    return [5, 9, 33, 60, 2, 17]


def test_a_file_is_recognised_without_its_suffix_and_in_a_folder(file, tmp_path, cache, prompt_ids, expected):
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (tmp_path / "sha256-abc", folder / "model.gguf"):
        shutil.copy(file, path)
    for name in ("mmproj-model.gguf", "llava-mmproj-f16.gguf"):  # projectors for images, which are not the model
        shutil.copy(file, folder / name)
    (folder / "config.json").write_text('{"model_type": "llama"}')  # as some repositories of GGUF files have
    for name in (file, str(file), tmp_path / "sha256-abc", folder):
        assert (LLM.load(name, "cpu", "float32").logits(prompt_ids) - expected).abs().max() < 1e-5


def test_the_description_is_made_once_and_again_after_a_change(file, tmp_path, cache):
    path = tmp_path / "model.gguf"
    shutil.copy(file, path)
    first = find_model(path)
    assert find_model(path) == first and len(list(cache.iterdir())) == 1
    path.write_bytes(file.read_bytes() + bytes(32))
    assert find_model(path) != first


def test_several_models_in_a_folder_are_refused_with_their_names(file, tmp_path, cache):
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(file, tmp_path / name)
    with pytest.raises(BareloopError, match=r"has 2 GGUF models; name one of them: a.gguf, b.gguf"):
        find_model(tmp_path)


def test_shards_are_read_together_and_missing_ones_are_named(file, tmp_path, cache, prompt_ids, expected):
    split(file, tmp_path)
    for name in (tmp_path, tmp_path / "model-00002-of-00002.gguf", tmp_path / "model-00001-of-00002.gguf"):
        assert (LLM.load(name, "cpu", "float32").logits(prompt_ids) - expected).abs().max() < 1e-5
    (tmp_path / "model-00002-of-00002.gguf").unlink()
    with pytest.raises(BareloopError, match=r"1 of 2 shards are missing beside .*: model-00002-of-00002.gguf"):
        find_model(tmp_path)
    (tmp_path / "model-00001-of-00002.gguf").rename(tmp_path / "model-00002-of-00002.gguf")
    with pytest.raises(BareloopError, match=r"1 of 2 shards are missing beside .*: model-00001-of-00002.gguf"):
        find_model(tmp_path)


def split(file, folder) -> None:
    """Write a file as two shards: the metadata is in the first one."""
    reader = gguf.GGUFReader(file)
    half = len(reader.tensors) // 2
    for number, tensors in enumerate((reader.tensors[:half], reader.tensors[half:]), 1):
        writer = gguf.GGUFWriter(folder / f"model-{number:05}-of-00002.gguf", "llama")
        for key, field in reader.fields.items() if number == 1 else ():
            if not key.startswith("GGUF.") and key != "general.architecture":
                writer.add_key_value(key, field.contents(), field.types[0], field.types[-1])
        writer.add_uint16("split.no", number - 1)
        writer.add_uint16("split.count", 2)
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def test_a_model_of_ollama_is_found_by_its_name(file, tmp_path, cache, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    blob = tmp_path / "models" / "blobs" / "sha256-abc"
    manifest = tmp_path / "models" / "manifests" / "registry.ollama.ai" / "library" / "llama3.2" / "1b"
    for path in (blob, manifest):
        path.parent.mkdir(parents=True)
    shutil.copy(file, blob)
    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:abc"}]
    manifest.write_text(json.dumps({"layers": [{"mediaType": "application/vnd.ollama.image.params"}, *layers]}))
    assert find_model("ollama:llama3.2:1b") == find_model(blob)
    with pytest.raises(BareloopError, match=r"Ollama has no model llama3.2 in .*; run: ollama pull llama3.2"):
        find_model("ollama:llama3.2")
    manifest.write_text(json.dumps({"layers": [{"mediaType": "application/vnd.ollama.image.adapter"}, *layers]}))
    with pytest.raises(BareloopError, match=r"is a model with an adapter, which is not implemented"):
        find_model("ollama:llama3.2:1b")
    manifest.write_text(json.dumps({"layers": layers}))
    for name in ("ollama:", "ollama:../../x", "ollama:a/b/c/d"):
        with pytest.raises(BareloopError, match=r"is not a name in Ollama; for example: ollama:llama3.2:1b"):
            find_model(name)
    blob.unlink()
    with pytest.raises(BareloopError, match=r"names no GGUF file that exists; run: ollama pull llama3.2"):
        find_model("ollama:llama3.2:1b")


def test_models_of_ollamas_service_are_found_too(tmp_path, monkeypatch):
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setattr(source, "OLLAMA_SERVICE", tmp_path)
    manifest = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "no-such-model" / "latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    with pytest.raises(BareloopError, match=rf"{manifest} names no GGUF file"):
        find_model("ollama:no-such-model")


def test_a_file_of_the_pointers_name_in_another_folder_means_nothing(tiny_llama, tmp_path, prompt_ids, expected):
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama.folder, folder)
    (folder / source.POINTER).write_text('{"files": ["/etc/passwd"]}')
    assert torch.equal(LLM.load(folder, "cpu", "float32").logits(prompt_ids), expected)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_a_quantized_file_computes_with_its_dequantized_values(draw_tiny, tmp_path, cache, prompt_ids, kind):
    tiny = draw_tiny("llama", hidden_size=96, intermediate_size=160)
    llm = LLM.load(convert(tiny.folder, tmp_path / "model.gguf", kind), "cpu", "float32", "none")
    quantization = gguf.GGMLQuantizationType[kind]
    weight = LLM.load(tiny.folder, "cpu", "float32").model.layers[1].mlp.down.weight.numpy()
    values = gguf.quants.dequantize(gguf.quants.quantize(weight, quantization), quantization)
    assert torch.equal(llm.model.layers[1].mlp.down.weight, torch.from_numpy(values))
    exact = tiny.logits(prompt_ids)
    assert (llm.logits(prompt_ids) - exact).abs().max() < 0.6 * exact.abs().max()


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_a_gguf_file_is_requantized_and_saved(file, tmp_path, cache, prompt_ids, expected, quant):
    llm = LLM.load(file, "cpu", quant=quant)
    assert llm.quant == quant and llm.dtype == torch.bfloat16
    assert (llm.logits(prompt_ids) - expected).abs().max() < 0.8 * expected.abs().max()
    llm.save(tmp_path / "saved")
    assert torch.equal(LLM.load(tmp_path / "saved", "cpu").logits(prompt_ids), llm.logits(prompt_ids))


def test_the_saved_folder_is_a_hugging_face_model(file, tmp_path, cache, prompt_ids, expected):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llm = LLM.load(file, "cpu", "float32")
    llm.save(tmp_path / "saved")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float64)
    with torch.no_grad():
        assert (reference(torch.tensor([prompt_ids])).logits[0] - expected).abs().max() < 1e-4
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").encode("ab") == llm.encode("ab")
    assert llm.generate(["ab"], SamplingParams(max_new_tokens=3, ignore_eos=True))[0].text is not None


def test_inspection_shows_metadata_and_tensor_types(file, cache):
    titles = [table.title for table in inspect(str(file))]
    assert str(titles[0]) == str(file) and titles[1:3] == ["metadata", "tensor types"]


def test_without_the_package_one_line_names_the_extra(file, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(BareloopError, match=r"needs the package gguf: pip install 'bareloop\[gguf\]'"):
        LLM.load(file)


def test_an_unknown_tensor_is_named(tiny_llama, tmp_path, cache):
    path = convert(tiny_llama.folder, tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_no.weight"))
    with pytest.raises(BareloopError, match=r"1 missing .*1 unexpected \(blk.1.ffn_no.weight\)"):
        LLM.load(path, "cpu")
