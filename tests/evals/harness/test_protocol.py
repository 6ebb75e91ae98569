"""Declared benchmarks end to end: against plain transformers, resumed, exported; bad rows and flags are named."""

from __future__ import annotations

import json
import shutil
import sys
from argparse import Namespace

import pytest
import torch

from engine import LLM
from engine.runtime.cycles import CycleCounter
from engine.runtime.errors import BareloopError, UsageError
from evals import squad
from evals.harness import protocol
from evals.harness.evaluate import evaluate
from evals.harness.program import choose_data, conclude, run_program
from evals.harness.prompts import encode_pairs, encoder
from evals.runs.run_file import read
from tests.evals import lm_harness

STORIES = "llama-tinystories-656k"
CHOICES, WRITTEN = ("hellaswag", "arc", "truthfulqa"), ("gsm8k", "squad")


def options_of(shared, program: str, output, *more: str) -> Namespace:
    words = ["-m", str(shared / "checkpoints" / STORIES), "--data", str(shared / "data" / program), "--device", "cpu"]
    return protocol.parser(lm_harness.PROTOCOLS[program]).parse_args([*words, "--output-dir", str(output), *more])


def scored(shared, program: str, output, *more: str):
    """The task, its run file's path, its records."""
    options = options_of(shared, program, output, *more)
    task = protocol.load_task(lm_harness.PROTOCOLS[program], options)
    path = evaluate(task, options, options.model[-1], CycleCounter())
    return task, path, read(path)[1], options


@pytest.fixture(scope="module")
def reference(shared):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(shared / "checkpoints" / STORIES, dtype=torch.float32)


@pytest.mark.parametrize("program", CHOICES)
def test_every_loglikelihood_equals_a_plain_transformers_loop(shared, reference, tmp_path, program):
    task, _, records, _ = scored(shared, program, tmp_path, "--limit", "6")
    assert records.keys() >= task.wanted
    encode_all = encoder(LLM.load(shared / "checkpoints" / STORIES, device="cpu").tokenizer)
    for (subject, index), record in records.items():
        requests = task.item(task.questions[subject][index], None).requests
        for (start, end), found in zip(encode_pairs(encode_all, requests), record["loglikelihoods"], strict=True):
            with torch.no_grad():
                logits = reference(torch.tensor([(start + end)[:-1]])).logits[0, -len(end) :]
            own = logits.double().log_softmax(-1).gather(1, torch.tensor(end)[:, None]).sum()
            assert found == pytest.approx(float(own), abs=1e-4)


@pytest.mark.parametrize("program", WRITTEN)
def test_every_answer_is_what_transformers_writes(shared, reference, tmp_path, program):
    """Greedy, cut at the first text that ends it; with shots the prompts outgrow the window of 512."""
    flags = ["--shots", "2"] if program == "gsm8k" else ["--shots", "0"]
    task, _, records, _ = scored(shared, program, tmp_path, "--limit", "10", "--batch-size", "4", *flags)
    tokenizer = LLM.load(shared / "checkpoints" / STORIES, device="cpu").tokenizer
    assert len(records) == 10
    for (subject, index), record in records.items():
        ids = tokenizer.encode(task.item(task.questions[subject][index], None).requests[0][0])
        ids = ids[-(512 - task.writing.max_new_tokens) :]
        given = torch.tensor([ids])
        most = task.writing.max_new_tokens
        own = reference.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=most, do_sample=False)
        text = tokenizer.decode([*ids, *own[0, len(ids) :].tolist()])[len(tokenizer.decode(ids)) :]
        for end in (*task.writing.until, tokenizer.special_tokens["eos_token"]):
            text = text.partition(end)[0]
        assert record["response"] == text
        assert record["tokens"] == len(ids)
        assert record["new_tokens"] <= task.writing.max_new_tokens


@pytest.mark.parametrize("program", [*CHOICES, *WRITTEN])
def test_a_run_in_pieces_has_the_same_bits(shared, tmp_path, program):
    whole = scored(shared, program, tmp_path / "whole", "--limit", "20")[2]
    for limit in ("3", "20"):
        pieces = scored(shared, program, tmp_path / "pieces", "--limit", limit)[2]
    strip = [{key: {**own, "times": None} for key, own in records.items()} for records in (whole, pieces)]
    assert strip[0] == strip[1]


def test_the_exports_have_the_harness_s_shapes(shared, tmp_path):
    examples = shared / "data" / "lm_eval_golden" / "example_output" / "org__model"
    task, path, _, options = scored(shared, "gsm8k", tmp_path, "--limit", "2", "--shots", "5")
    options.save_question_data = True
    conclude(task, options, path)
    ours, theirs = (
        [json.loads(line) for line in next(folder.glob("samples_gsm8k_*")).open()] for folder in (path.parent, examples)
    )
    assert len(ours) == len(theirs) == 4
    ours, theirs = (sorted(lines, key=lambda line: (line["doc_id"], line["filter"])) for lines in (ours, theirs))
    for own, example in zip(ours, theirs, strict=True):
        assert list(own) == list(example)
        for name in ("doc_id", "doc", "target", "filter", "metrics", "doc_hash", "prompt_hash", "target_hash"):
            assert own[name] == example[name], name
        assert own["arguments"]["gen_args_0"]["arg_0"] == example["arguments"]["gen_args_0"]["arg_0"]
    results, example = (json.loads(next(f.glob("results_*")).read_text()) for f in (path.parent, examples))
    assert set(results["results"]["gsm8k"]) == set(example["results"]["gsm8k"])
    assert results["n-samples"]["gsm8k"] == {"original": 660, "effective": 2}
    assert results["versions"]["gsm8k"] == example["versions"]["gsm8k"]
    assert results["configs"]["gsm8k"]["doc_to_text"] == example["configs"]["gsm8k"]["doc_to_text"]
    (question, _) = json.loads((path.parent / "gsm8k_5shot_cpu_float32_none_questions.json").read_text())
    assert question["question"].startswith("Janet")
    assert {"response", "metrics", "prediction", "solution"} <= set(question)


def test_truthfulqa_has_no_mean_over_both_its_parts(shared, tmp_path, capsys):
    task, path, _, options = scored(shared, "truthfulqa", tmp_path, "--limit", "4")
    conclude(task, options, path)
    told = capsys.readouterr().out
    assert "mc1 (4)" in told
    assert "overall" not in told
    exported = json.loads(next(path.parent.glob("results_*")).read_text())
    assert set(exported["results"]) == {"truthfulqa_mc1", "truthfulqa_mc2"}


def test_squad_compares_models_and_shots_in_one_table(shared, tmp_path, capsys):
    shutil.copytree(shared / "checkpoints" / STORIES, tmp_path / "second")
    words = [
        "-m",
        str(shared / "checkpoints" / STORIES),
        str(tmp_path / "second"),
        "--shots",
        "0",
        "3",
        "--device",
        "cpu",
    ]
    words += ["--data", str(shared / "data" / "squad"), "--limit", "4", "--output-dir", str(tmp_path)]
    squad.squad(protocol.parser(squad.PROTOCOL, several_shots=True).parse_args(words))
    told = capsys.readouterr().out
    table = told[told.index("SQuAD: contains") :]
    for expected in ("0-shot", "3-shot", "accuracy", "tokens/s", STORIES, "second"):
        assert expected in table
    assert len(list((tmp_path / "second").glob("squad_*shot_cpu_float32_none.run.jsonl"))) == 2


def test_squads_examples_are_found_in_the_hub_s_train_split(shared, monkeypatch):
    local = squad.source.table(str(shared / "data" / "squad"), squad.EXAMPLES)
    shuffled = [{"question": "another"}, *reversed(local)]
    monkeypatch.setattr(squad.source, "table", lambda *_: shuffled)
    assert squad.read("rajpurkar/squad", squad.EXAMPLES, "plain_text", True) == local


def test_exact_rows_are_a_run_of_their_own(shared, tmp_path):
    _, every, records, _ = scored(shared, "hellaswag", tmp_path, "--limit", "3")
    task, exact, others, _ = scored(shared, "hellaswag", tmp_path, "--limit", "3", "--exact-rows")
    assert (every.name, exact.name) == (
        "hellaswag_0shot_cpu_float32_none.run.jsonl",
        "hellaswag_exact_0shot_cpu_float32_none.run.jsonl",
    )
    assert len(task.questions["hellaswag"]) == 2006
    assert len(records) == len(others) == 3


ANSWERS = {"choices": ["a"], "labels": [0]}
SCENE = {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["x"], "label": "7"}


@pytest.mark.parametrize(
    ("program", "row", "line"),
    [
        ("arc", {"question": "?"}, "needs question, choices with text and label, and an answerKey"),
        ("arc", {"question": "?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}, "needs question"),
        ("hellaswag", SCENE, "needs activity_label"),
        ("truthfulqa", {"question": "?", "mc1_targets": ANSWERS}, "needs question, mc1_targets"),
        ("gsm8k", {"question": "?", "answer": None}, "needs question and answer"),
        ("squad", {"title": "t", "context": "c", "question": "?", "answers": {"text": []}}, "needs title, context"),
        ("gsm8k", "hello", "row 1 is no question"),
    ],
)
def test_a_row_that_is_no_question_is_named(shared, tmp_path, program, row, line):
    spec = lm_harness.PROTOCOLS[program]
    for config in spec.subjects.values():
        for name in (f"{config}/{spec.benchmark.split}.jsonl", f"{spec.benchmark.split}.jsonl"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(json.dumps(row) + "\n")
    shots = [] if spec.examples is None else ["--shots", "0"]
    options = options_of(shared, program, tmp_path, "--data", str(tmp_path), *shots)
    with pytest.raises(BareloopError, match=line) as error:
        protocol.load_task(spec, options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("program", "flags", "line"),
    [
        ("gsm8k", ["--shots", "7474"], "the train split has 7473 examples; use 0 to 7473"),
        ("arc", ["--shots", "-1"], "--shots -1"),
        ("squad", ["--shots", "6"], "has 5 examples"),
        ("gsm8k", ["--batch-size", "0"], "--batch-size 0: use 1 or more"),
    ],
)
def test_wrong_flags_are_refused(shared, tmp_path, program, flags, line):
    spec = lm_harness.PROTOCOLS[program]
    with pytest.raises(UsageError, match=line):
        run_program(options_of(shared, program, tmp_path, *flags), lambda own: protocol.load_task(spec, own), program)


def test_a_split_without_its_file_is_named(shared, tmp_path):
    with pytest.raises(BareloopError, match="has no train split"):
        protocol.load_task(lm_harness.PROTOCOLS["hellaswag"], options_of(shared, "hellaswag", tmp_path, "--shots", "1"))
    with pytest.raises(BareloopError, match=r"row 1 is no question: it needs .*, exact"):
        (tmp_path / "validation.jsonl").write_text(json.dumps({"ind": 1}) + "\n")
        options = options_of(shared, "hellaswag", tmp_path, "--data", str(tmp_path), "--exact-rows")
        protocol.load_task(lm_harness.PROTOCOLS["hellaswag"], options)


def test_a_window_without_room_for_an_answer_is_refused(shared, tmp_path):
    shutil.copytree(shared / "checkpoints" / STORIES, tmp_path / "short")
    config = json.loads((tmp_path / "short" / "config.json").read_text()) | {"max_position_embeddings": 270}
    (tmp_path / "short" / "config.json").unlink()
    (tmp_path / "short" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BareloopError, match=r"window holds 270 tokens, .* its answer up to 256"):
        scored(shared, "gsm8k", tmp_path, "--shots", "0", "-m", str(tmp_path / "short"), "--limit", "1")


def test_the_data_of_the_hub_is_the_default(shared, tmp_path):
    options = options_of(shared, "squad", tmp_path)
    options.data = None
    choose_data(options, "squad")
    assert options.data == "rajpurkar/squad"
    assert "torch" in sys.modules  # the tests' own; the programs' --help needs none
