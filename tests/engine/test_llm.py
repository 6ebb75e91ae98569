"""The `LLM` class: real checkpoints, goldens, text in and out, and one line for every bad input."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch

from engine import LLM, SamplingParams
from engine.checkpoints.mapping import parameter_sources
from engine.runtime.errors import BareloopError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def stories(shared) -> LLM:
    return LLM.load(shared / "checkpoints" / "llama-tinystories-656k", device="cpu")


@pytest.fixture(scope="module")
def story_goldens(shared) -> list[dict]:  # type: ignore[type-arg]
    path = shared / "checkpoints" / "llama-tinystories-656k" / "golden" / "transformers_fp32_greedy.json"
    return json.loads(path.read_text())["cases"]


@pytest.mark.parametrize("family", json.loads((GOLDEN / "families.json").read_text()))
def test_logits_equal_the_goldens_of_every_family(family):
    """Needs neither transformers nor the shared folder."""
    golden = json.loads((GOLDEN / "families.json").read_text())[family]
    formula = runpy.run_path(str(GOLDEN / "make.py"))["formula"]
    llm = LLM.from_config(golden["config"], device="cpu")
    with torch.no_grad():
        for name, sources in parameter_sources(llm.model, llm.family).items():
            for source in sources:
                value = formula(source.name, source.shape)
                rows = llm.model.get_parameter(name)[source.rows]
                rows.copy_(value if source.layout is None else source.layout.load(value, llm.config))
    expected = torch.tensor(golden["last_logits"])
    assert (llm.logits(golden["ids"])[-1] - expected).abs().max() <= 2e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("name", ["llama-tinystories-656k", "gpt2-capp-235k"])
def test_real_checkpoints_reproduce_their_goldens(shared, name):
    folder = shared / "checkpoints" / name
    cases = json.loads((folder / "golden" / "transformers_fp32_greedy.json").read_text())["cases"]
    llm = LLM.load(folder, device="cpu")
    params = SamplingParams(max_new_tokens=48, ignore_eos=True)
    for case in cases:
        assert llm.encode(case["prompt"]) == case["prompt_ids"]
        assert llm.generate([case["prompt_ids"]], params)[0].token_ids == case["greedy_48_ids_no_eos_stop"]
        logits = llm.logits(case["prompt_ids"])
        assert logits.shape == (len(case["prompt_ids"]), llm.config.vocab_size)
        top = logits[-1].topk(5)
        assert top.indices.tolist() == case["last_prompt_position"]["top5_ids"]
        assert torch.allclose(top.values, torch.tensor(case["last_prompt_position"]["top5_logits"]), atol=1e-4)
        assert abs(float(logits[-1].sum()) - case["last_prompt_position"]["sum"]) < 1e-2
    together = llm.generate([case["prompt"] for case in cases], params)
    assert [completion.token_ids for completion in together] == [case["greedy_48_ids_no_eos_stop"] for case in cases]


def test_a_real_checkpoint_tells_its_story(stories):
    text = stories.generate(["Once upon a time"], SamplingParams(max_new_tokens=48))[0].text
    assert text.startswith(", a little girl named Lily lived in a small house")


def test_one_seed_gives_one_text_alone_in_a_batch_and_after_a_restart(stories, story_goldens, shared):
    params = SamplingParams(temperature=1.0, top_p=0.95, seed=11, max_new_tokens=40)
    prompts = [case["prompt"] for case in story_goldens] + ["The cat", "Once upon a time"]
    together = stories.generate(prompts, params)
    assert [stories.generate([prompt], params)[0] for prompt in prompts] == together
    again = LLM.load(shared / "checkpoints" / "llama-tinystories-656k", device="cpu")
    assert again.generate(prompts, params) == together
    assert together[0] == together[4]
    assert together[0] != stories.generate(prompts[:1], SamplingParams(temperature=1.0, top_p=0.95, seed=12))[0]


def test_each_prompt_may_have_its_own_parameters(stories):
    prompts = ["Once upon a time", "Tom had a big red ball.", "The cat", "Once upon a time"]
    params = [
        SamplingParams(max_new_tokens=9),
        SamplingParams(max_new_tokens=30, temperature=1.0, seed=3, logprobs=2),
        SamplingParams(max_new_tokens=20, stop=["."], repetition_penalty=1.2),
        SamplingParams(max_new_tokens=40, temperature=0.8, top_p=0.9, seed=4, stop_token_ids=[13]),
    ]
    alone = [stories.generate([prompt], each)[0] for prompt, each in zip(prompts, params, strict=True)]
    assert stories.generate(prompts, params) == stories.generate(tuple(prompts), tuple(params)) == alone
    assert [completion.logprobs is not None for completion in alone] == [False, True, False, False]
    for number in (0, 1, 3, 5):
        with pytest.raises(BareloopError, match=f"4 prompts and {number} params; give one for all, or one for each"):
            stories.generate(prompts, [SamplingParams()] * number)
    assert stories.generate([], []) == stories.generate([]) == []


def test_stop_strings_end_a_text_and_are_not_part_of_it(stories):
    full = stories.generate(["Once upon a time"], SamplingParams(max_new_tokens=60))[0]
    assert full.text is not None
    for stop in (" girl", "tle gi", "named", ", a", "little girl named Lily lived"):
        completion = stories.generate(["Once upon a time"], SamplingParams(max_new_tokens=60, stop=["zzz", stop]))[0]
        assert completion.finish_reason == "stop"
        assert completion.text == full.text[: full.text.index(stop)]
        assert completion.token_ids == full.token_ids[: len(completion.token_ids)]


def test_streamed_events_add_up_to_the_completion(stories):
    params = SamplingParams(max_new_tokens=30, logprobs=3, stop=["dog"])
    completion = stories.generate(["Once upon a time"], params)[0]
    events = list(stories.stream("Once upon a time", params))
    assert "".join(event.text for event in events) == completion.text
    assert [event.token_id for event in events] == completion.token_ids
    assert [event.logprob for event in events] == completion.logprobs
    assert events[-1].finish_reason == completion.finish_reason
    assert all(event.top_logprobs and event.top_logprobs[0] == (event.token_id, event.logprob) for event in events)
    assert completion.usage.completion_tokens == len(events)


def test_generated_text_begins_with_a_space_or_punctuation(stories):
    text = stories.generate(["Once upon a time there"], SamplingParams(max_new_tokens=5))[0].text
    assert text is not None
    assert text.startswith((" ", ",", "."))


def test_greedy_text_equals_transformers_generate_for_200_tokens(stories, shared):
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(
        shared / "checkpoints" / "llama-tinystories-656k", dtype=torch.float32
    )
    for prompt in ("Once upon a time", "Tom had a big red ball."):
        ids = stories.encode(prompt)
        expected = reference.generate(torch.tensor([ids]), max_new_tokens=200, do_sample=False)[0, len(ids) :]
        ours = stories.generate([prompt], SamplingParams(max_new_tokens=200))[0].token_ids
        assert ours == expected.tolist()


def test_invalid_prompts_are_one_line(tiny_llama):
    llm = LLM.load(tiny_llama.folder, device="cpu")
    with pytest.raises(BareloopError, match="at least 1 token"):
        llm.logits([])
    for prompts, message in (("text", "a list of prompts"), ([{"a": 1}], "not dict"), ([["a"]], "contain 'a'")):
        with pytest.raises(BareloopError, match=message):
            llm.generate(prompts)


def test_a_folder_without_a_tokenizer_takes_ids_and_refuses_text(tiny_llama, tmp_path, prompt):
    shutil.copytree(tiny_llama.folder, tmp_path / "model")
    llm = LLM.load(tmp_path / "model", device="cpu")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):  # useless without tokenizer.json
        (tmp_path / "model" / name).write_text("{}")
    completion = llm.generate([prompt(5)], SamplingParams(max_new_tokens=3, ignore_eos=True))[0]
    assert len(completion.token_ids) == 3
    assert completion.text is None
    with pytest.raises(BareloopError, match=r"has no tokenizer.json.*token ids"):
        llm.generate(["text"])


def test_end_of_sequence_ids_come_from_both_configs(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama.folder, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": [127, 5], "temperature": 0.7}')
    llm = LLM.load(tmp_path / "model", device="cpu")
    assert llm.eos_token_ids == (127, 5)
    assert llm.default_params["temperature"] == 0.7
    llm.save(tmp_path / "saved")
    assert LLM.load(tmp_path / "saved", device="cpu").eos_token_ids == (127, 5)


def test_a_model_loaded_in_bfloat16_is_saved_in_bfloat16(tiny_llama, tmp_path):
    llm = LLM.load(tiny_llama.folder, device="cpu", dtype="bfloat16")
    llm.save(tmp_path / "half")
    again = LLM.load(tmp_path / "half", device="cpu")
    assert again.dtype == torch.bfloat16
    assert torch.equal(again.logits([1, 2, 3]), llm.logits([1, 2, 3]))


@pytest.mark.parametrize(
    "change", ["no folder", "no user", "no config", "cut config", "a file", "bad dtype", "bad device", "bad quant"]
)
def test_bad_input_is_one_line(tiny_llama, tmp_path, change):
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama.folder, folder)
    call = {"name": folder, "device": "cpu"}
    match change:
        case "no folder":
            call["name"], message = "./nowhere", "no such folder: ./nowhere"
        case "no config":
            (folder / "config.json").unlink()
            message = "no config.json"
        case "cut config":
            (folder / "config.json").write_text('{"model_type": "lla')
            message = "is not JSON"
        case "no user":
            call["name"], message = "~nobody-of-this-name/model", "no such folder: ~nobody"
        case "a file":
            call["name"], message = folder / "config.json", "is a file"
        case "bad dtype":
            call["dtype"], message = "float8", "unknown dtype 'float8'; use auto, float32"
        case "bad device":
            call["device"], message = "tpu", "tpu"
        case "bad quant":
            call["quant"], message = "int3", "unknown weight format 'int3'"
    with pytest.raises(BareloopError, match=message) as caught:
        LLM.load(**call)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_a_device_is_one_line(tiny_llama):
    with pytest.raises(BareloopError, match="device cuda: no CUDA device is available here; use --device cpu or auto"):
        LLM.load(tiny_llama.folder, device="cuda")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_equals_the_reference(tiny, prompt):
    llm = LLM.load(tiny.folder, device="cuda", dtype="float32")
    ids = prompt(40)
    tolerance = tiny.tolerance * max(1, tiny.logits(ids).abs().max())
    assert (llm.logits(ids).double() - tiny.logits(ids)).abs().max() <= tolerance
    sequence = llm.sequence()
    sequence.feed(ids[:20])
    forks = sequence.fork(3)
    for fork in forks:
        logits = fork.feed_with_logits(ids, last=20).double().cpu()
        assert (logits - tiny.logits(ids)[20:]).abs().max() <= tolerance
    prompts = [prompt(length, length) for length in (5, 23, 40)]
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    for completion, ids in zip(llm.generate(prompts, params), prompts, strict=True):
        assert completion.token_ids == tiny.greedy(ids, 12)
