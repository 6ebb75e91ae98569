"""Declared benchmarks end to end: compared with transformers, resumed, exported; error messages."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine import LLM
from engine.runtime.cycles import CycleCounter
from engine.runtime.errors import BareloopError, UsageError
from evals import squad
from evals.harness import protocol
from evals.harness.evaluate import evaluate
from evals.harness.program import choose_data, conclude
from evals.harness.prompts import encode_pairs, encoder
from evals.harness.task import Task
from evals.runs.run_file import read
from tests.evals import lm_harness

STORIES = "llama-tinystories-656k"
CHOICES, GENERATED = ("hellaswag", "arc", "truthfulqa"), ("gsm8k", "squad")


def options_for(shared, program: str, output, *more: str) -> Namespace:
    arguments = ["-m", str(shared / "checkpoints" / STORIES), "--data", str(shared / "data" / program)]
    arguments += ["--device", "cpu", "--output-dir", str(output), *more]
    return protocol.make_parser(lm_harness.PROTOCOLS[program]).parse_args(arguments)


def evaluated(shared, program: str, output, *more: str):
    """The task, the path of its run file, its records, and the options."""
    options = options_for(shared, program, output, *more)
    task = protocol.load_task(lm_harness.PROTOCOLS[program], options)
    path = evaluate(task, options, options.model[-1], CycleCounter())
    return task, path, read(path)[1], options


@pytest.fixture(scope="module", autouse=True)
def rows_read_once():
    """Rows that were read for one test are kept for the others, as none changes them or their files."""
    load, loaded = protocol.load_questions, {}

    def load_once(declaration, *where):
        key = declaration.name, *where
        if key not in loaded:
            loaded[key] = load(declaration, *where)
        return loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "load_questions", load_once)
        yield


@pytest.fixture(scope="module")
def reference(shared):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(shared / "checkpoints" / STORIES, dtype=torch.float32)


@pytest.mark.parametrize("program", CHOICES)
def test_every_loglikelihood_equals_a_plain_transformers_loop(shared, reference, tmp_path, program):
    task, _, records, _ = evaluated(shared, program, tmp_path, "--limit", "6")
    assert records.keys() >= task.wanted
    encode_all = encoder(LLM.load(shared / "checkpoints" / STORIES, device="cpu").tokenizer)
    for (subject, index), record in records.items():
        pairs = encode_pairs(encode_all, task.make_item(task.questions[subject][index], None).requests)
        for (context, continuation), loglikelihood in zip(pairs, record["loglikelihoods"], strict=True):
            with torch.no_grad():
                logits = reference(torch.tensor([(context + continuation)[:-1]])).logits[0, -len(continuation) :]
            targets = torch.tensor(continuation)[:, None]
            expected = logits.double().log_softmax(-1).gather(1, targets).sum()
            assert loglikelihood == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("program", GENERATED)
def test_every_answer_equals_the_greedy_text_of_transformers(shared, reference, tmp_path, program):
    """Up to the first stop string. With shots the prompts are longer than the window of 512."""
    limit = 48  # of tokens, lower than those of the benchmarks
    flags = ["--limit", "6", "--batch-size", "4", "--shots", "4" if program == "gsm8k" else "0"]
    options = options_for(shared, program, tmp_path, *flags)
    task = with_limit(protocol.load_task(lm_harness.PROTOCOLS[program], options), limit)
    records = read(evaluate(task, options, options.model[0], CycleCounter()))[1]
    tokenizer = LLM.load(shared / "checkpoints" / STORIES, device="cpu").tokenizer
    assert len(records) == 6
    for (subject, index), record in records.items():
        prompt = tokenizer.encode(task.make_item(task.questions[subject][index], None).requests[0][0])
        assert program != "gsm8k" or len(prompt) > 512 - limit
        ids = prompt[-(512 - limit) :]
        prompt = torch.tensor([ids])
        mask = torch.ones_like(prompt)
        output = reference.generate(prompt, attention_mask=mask, max_new_tokens=limit, do_sample=False)
        text = tokenizer.decode([*ids, *output[0, len(ids) :].tolist()])[len(tokenizer.decode(ids)) :]
        for stop in (*task.generation.until, tokenizer.special_tokens["eos_token"]):
            text = text.partition(stop)[0]
        assert record["response"] == text
        assert record["tokens"] == len(ids)
        assert record["new_tokens"] <= limit


def with_limit(task: Task, tokens: int) -> Task:
    """The task with answers of at most so many tokens."""
    return replace(task, generation=replace(task.generation, max_new_tokens=tokens))


@pytest.mark.parametrize(("program", "limit"), [*((name, 20) for name in CHOICES), *((name, 10) for name in GENERATED)])
def test_a_run_in_pieces_has_the_same_bits(shared, tmp_path, program, limit):
    """Ten answers are more than a batch."""
    whole, pieces = (options_for(shared, program, tmp_path / name) for name in ("whole", "pieces"))
    task = replace(protocol.load_task(lm_harness.PROTOCOLS[program], whole), limit=limit)
    if program in GENERATED:
        task = with_limit(task, 48)
    uninterrupted = evaluate(task, whole, whole.model[0], CycleCounter())
    evaluate(replace(task, limit=3), pieces, pieces.model[0], CycleCounter())
    resumed = evaluate(task, pieces, pieces.model[0], CycleCounter())
    assert without_times(read(uninterrupted)[1]) == without_times(read(resumed)[1])


def without_times(records):
    return {key: {**record, "times": None} for key, record in records.items()}


def test_the_exports_have_the_format_of_the_harness(shared, tmp_path):
    examples = shared / "data" / "lm_eval_golden" / "example_output" / "org__model"
    task, path, _, options = evaluated(shared, "gsm8k", tmp_path, "--limit", "2", "--shots", "5")
    options.save_question_data = True
    conclude(task, options, path)
    ours, theirs = (
        [json.loads(line) for line in next(folder.glob("samples_gsm8k_*")).open()] for folder in (path.parent, examples)
    )
    assert len(ours) == len(theirs) == 4
    ours, theirs = (sorted(lines, key=lambda line: (line["doc_id"], line["filter"])) for lines in (ours, theirs))
    for sample, example in zip(ours, theirs, strict=True):
        assert list(sample) == list(example)
        for name in ("doc_id", "doc", "target", "filter", "metrics", "doc_hash", "prompt_hash", "target_hash"):
            assert sample[name] == example[name], name
        assert sample["arguments"]["gen_args_0"]["arg_0"] == example["arguments"]["gen_args_0"]["arg_0"]
    results, example = (json.loads(next(f.glob("results_*")).read_text()) for f in (path.parent, examples))
    assert set(results["results"]["gsm8k"]) == set(example["results"]["gsm8k"])
    assert results["n-samples"]["gsm8k"] == {"original": 660, "effective": 2}
    assert results["versions"]["gsm8k"] == example["versions"]["gsm8k"]
    assert results["configs"]["gsm8k"]["doc_to_text"] == example["configs"]["gsm8k"]["doc_to_text"]
    (question, _) = json.loads((path.parent / "gsm8k_5shot_cpu_float32_none_questions.json").read_text())
    assert question["question"].startswith("Janet")
    assert {"response", "metrics", "prediction", "solution"} <= set(question)


def test_truthfulqa_has_no_mean_over_mc1_and_mc2(shared, tmp_path, capsys):
    task, path, _, options = evaluated(shared, "truthfulqa", tmp_path, "--limit", "4")
    conclude(task, options, path)
    output = capsys.readouterr().out
    assert "mc1 (4)" in output
    assert "overall" not in output
    exported = json.loads(next(path.parent.glob("results_*")).read_text())
    assert set(exported["results"]) == {"truthfulqa_mc1", "truthfulqa_mc2"}


def test_squad_compares_models_and_shots_and_loads_each_model_once(shared, tmp_path, capsys, monkeypatch):
    loaded = []
    load = LLM.load
    monkeypatch.setattr(LLM, "load", lambda name, **options: loaded.append(Path(name).name) or load(name, **options))
    shutil.copytree(shared / "checkpoints" / STORIES, tmp_path / "second")
    arguments = ["-m", str(shared / "checkpoints" / STORIES), str(tmp_path / "second"), "--shots", "0", "3"]
    arguments += ["--data", str(shared / "data" / "squad"), "--device", "cpu", "--limit", "4"]
    squad.main(squad.parser().parse_args([*arguments, "--output-dir", str(tmp_path)]))
    assert loaded == [STORIES, "second"]
    output = capsys.readouterr().out
    assert output.count("SQuAD, 2 runs") == 2
    table = output[output.index("SQuAD: responses that contain") :]
    for expected in ("0-shot", "3-shot", "accuracy", "tokens/s", STORIES, "second"):
        assert expected in table
    paths = sorted((tmp_path / "second").glob("squad_*shot_cpu_float32_none.run.jsonl"))
    assert [path.name.partition("_cpu")[0] for path in paths] == ["squad_0shot", "squad_3shot"]
    together = [without_times(read(path)[1]) for path in paths]
    for shots, records in zip(("0", "3"), together, strict=True):
        alone = evaluated(shared, "squad", tmp_path / shots, "--limit", "4", "--shots", shots)[2]
        assert without_times(alone) == records


def test_requests_of_several_numbers_of_shots_are_refused(shared, tmp_path):
    arguments = ["--shots", "0", "3", "--data", str(shared / "data" / "squad"), "--requests-only", "-"]
    with pytest.raises(UsageError, match="use one number of --shots"):
        squad.main(squad.parser().parse_args(arguments))


def test_the_examples_of_squad_are_found_in_the_train_split_of_the_hub(shared, monkeypatch):
    local = squad.source.load_rows(str(shared / "data" / "squad"), squad.EXAMPLES)
    shuffled = [{"question": "another"}, *reversed(local)]
    monkeypatch.setattr(squad.source, "load_rows", lambda *_: shuffled)
    assert squad.load_rows("rajpurkar/squad", squad.EXAMPLES, "plain_text", True) == local


def test_exact_rows_have_their_own_run_file(shared, tmp_path):
    _, all_rows, records, _ = evaluated(shared, "hellaswag", tmp_path, "--limit", "3")
    task, exact, exact_records, _ = evaluated(shared, "hellaswag", tmp_path, "--limit", "3", "--exact-rows")
    assert (all_rows.name, exact.name) == (
        "hellaswag_0shot_cpu_float32_none.run.jsonl",
        "hellaswag_exact_0shot_cpu_float32_none.run.jsonl",
    )
    assert len(task.questions["hellaswag"]) == 2006
    assert len(records) == len(exact_records) == 3


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
        ("gsm8k", "hello", "row 1 is not a question"),
    ],
)
def test_an_invalid_row_is_named(shared, tmp_path, program, row, line):
    declaration = lm_harness.PROTOCOLS[program]
    for config in declaration.subjects.values():
        for name in (f"{config}/{declaration.benchmark.split}.jsonl", f"{declaration.benchmark.split}.jsonl"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(json.dumps(row) + "\n")
    shots = [] if declaration.example_split is None else ["--shots", "0"]
    options = options_for(shared, program, tmp_path, "--data", str(tmp_path), *shots)
    with pytest.raises(BareloopError, match=line) as error:
        protocol.load_task(declaration, options)
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
    declaration = lm_harness.PROTOCOLS[program]
    with pytest.raises(UsageError, match=line):
        protocol.program(declaration)[2](options_for(shared, program, tmp_path, *flags))


def test_a_missing_split_is_named(shared, tmp_path):
    with pytest.raises(BareloopError, match="has no train split"):
        protocol.load_task(
            lm_harness.PROTOCOLS["hellaswag"], options_for(shared, "hellaswag", tmp_path, "--shots", "1")
        )
    with pytest.raises(BareloopError, match=r"row 1 is not a question: it needs .*, exact"):
        (tmp_path / "validation.jsonl").write_text(json.dumps({"ind": 1}) + "\n")
        options = options_for(shared, "hellaswag", tmp_path, "--data", str(tmp_path), "--exact-rows")
        protocol.load_task(lm_harness.PROTOCOLS["hellaswag"], options)


def test_a_window_without_room_for_an_answer_is_refused(shared, tmp_path):
    shutil.copytree(shared / "checkpoints" / STORIES, tmp_path / "short")
    config = json.loads((tmp_path / "short" / "config.json").read_text()) | {"max_position_embeddings": 270}
    (tmp_path / "short" / "config.json").unlink()
    (tmp_path / "short" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BareloopError, match=r"window holds 270 tokens, .* its answer up to 256"):
        evaluated(shared, "gsm8k", tmp_path, "--shots", "0", "-m", str(tmp_path / "short"), "--limit", "1")


def test_the_default_data_is_on_the_hub(shared, tmp_path):
    options = options_for(shared, "squad", tmp_path)
    options.data = None
    choose_data(options, "squad")
    assert options.data == "rajpurkar/squad"
