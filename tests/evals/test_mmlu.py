"""The program end to end: compared with lm-evaluation-harness; files, flags, one-line errors."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from engine import LLM
from engine.runtime.cycles import CycleCounter
from evals.harness.evaluate import ModelLoader, evaluate
from evals.harness.program import conclude
from evals.harness.prompts import encode_pairs, encoder
from evals.mmlu import load_task, parser
from evals.runs.run_file import read
from tests.evals import lm_harness

pytestmark = pytest.mark.usefixtures("mmlu_read_once")

STORIES = "llama-tinystories-656k"
QWEN = "qwen2.5-0.5b-instruct"


@pytest.fixture(scope="module")
def qwen(shared, draw_tiny, tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    """A folder `model` with a small random model of Qwen's architecture and the real tokenizer."""
    sizes = {"vocab_size": 151_936, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    tiny = draw_tiny("qwen2", max_position_embeddings=2048, **sizes)
    folder = tmp_path_factory.mktemp("qwen")
    shutil.copytree(tiny.folder, folder / "model")
    for path in (shared / "tokenizers" / QWEN).iterdir():
        if path.name not in ("config.json", "generation_config.json"):
            shutil.copyfile(path, folder / "model" / path.name)
    return folder


@pytest.fixture(scope="module")
def models(qwen):
    """The same model in lm-evaluation-harness and here."""
    options = parser().parse_args(["-m", str(qwen / "model"), "--device", "cpu", "--dtype", "float32"])
    return lm_harness.load_model(str(qwen / "model")), ModelLoader(str(qwen / "model"), options)


@pytest.mark.parametrize(
    ("flags", "chat"),
    [
        (["--shots", "0"], {}),
        (["--shots", "5"], {}),
        (["--shots", "0", "--chat-template"], {"apply_chat_template": True}),
        (["--shots", "5", "--chat-template"], {"apply_chat_template": True, "fewshot_as_multiturn": True}),
        (["--shots", "2", "--chat-template", "--single-turn"],
         {"apply_chat_template": True, "fewshot_as_multiturn": False}),
    ],
)  # fmt: skip
def test_every_loglikelihood_equals_that_of_the_harness(shared, qwen, models, tmp_path, flags, chat):
    """Prompts, chat template, tokens, model and scores: all of the harness's code against all of ours."""
    harness_model, get_model = models
    shots = int(flags[1])
    subjects, limit = ["astronomy", "business_ethics"], 1 if shots else 2
    expected = lm_harness.evaluate(harness_model, shared, qwen, subjects, shots, limit, **chat)
    options = parser().parse_args(
        ["-m", str(qwen / "model"), "--data", str(shared / "data" / "mmlu"), "--limit", str(limit), "--device", "cpu",
         "--dtype", "float32", "--output-dir", str(tmp_path), *flags]
    )  # fmt: skip
    task = load_task(options)
    path = evaluate(task, options, options.model[0], CycleCounter(), get_model)
    records = read(path)[1]
    assert len(records) == limit * len(subjects)
    lm_harness.check_records(records, expected)
    conclude(task, options, path)
    exported = [json.loads(line) for line in next(path.parent.glob("samples_mmlu_astronomy_*")).open()]
    for ours, sample in zip(exported, expected["astronomy"], strict=True):
        for name in ("doc_id", "doc", "filter", "metrics", "doc_hash", "prompt_hash", "target_hash", "acc"):
            assert ours[name] == sample[name]


@pytest.mark.parametrize(("shots", "limit"), [(0, 12), (3, 3)])
def test_every_loglikelihood_equals_a_plain_transformers_loop(shared, tmp_path, shots, limit):
    """With a trained model. With shots most prompts are longer than its window of 512."""
    from transformers import AutoModelForCausalLM

    folder = shared / "checkpoints" / STORIES
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = LLM.load(folder, device="cpu").tokenizer
    arguments = ["-m", str(folder), "--data", str(shared / "data" / "mmlu"), "--subjects", "all"]
    arguments += ["--shots", str(shots), "--limit", str(limit), "--device", "cpu", "--output-dir", str(tmp_path)]
    options = parser().parse_args(arguments)
    task = load_task(options)
    records = read(evaluate(task, options, str(folder), CycleCounter()))[1]
    assert records.keys() >= task.wanted
    truncated = 0
    for subject, index in task.wanted:
        record = records[subject, index]
        passes: dict[tuple[int, ...], torch.Tensor] = {}  # most choices share a forward pass
        expected = []
        requests = task.make_item(task.questions[subject][index], None).requests
        for context, continuation in encode_pairs(encoder(tokenizer), requests):
            inputs, targets = tuple((context + continuation)[-513:-1]), torch.tensor(continuation)
            if inputs not in passes:
                with torch.no_grad():
                    logits = reference(torch.tensor([inputs]), logits_to_keep=4).logits[0]
                passes[inputs] = logits.double().log_softmax(-1)
            expected.append(float(passes[inputs][-len(targets) :].gather(1, targets[:, None]).sum()))
        assert record["loglikelihoods"] == pytest.approx(expected, abs=1e-4)
        assert record["truncated"] == (len(context + continuation) > 513)
        truncated += record["truncated"]
    assert truncated > 0


def program(shared, *more: str, model: str | None = STORIES) -> subprocess.CompletedProcess[str]:  # type: ignore[no-untyped-def]
    """Run the whole program in this process, which saves the imports."""
    arguments = ["-m", str(shared / "checkpoints" / model)] if model else []
    return lm_harness.run_mmlu([*arguments, "--data", str(shared / "data" / "mmlu"), "--device", "cpu", *more])


def test_the_tables_are_complete_and_the_files_have_the_format_of_the_harness(shared, tmp_path):
    flags = ["--subjects", "anatomy", "econometrics", "--shots", "0", "--limit", "20", "--output-dir", str(tmp_path)]
    process = program(shared, *flags, "--verbose", "--save-question-data")
    assert process.returncode == 0, process.stderr
    for expected in (
        "MMLU, 0-shot, cpu, float32", "anatomy (20)", "econometrics (20)", "stem (20)", "social_sciences (20)",
        "overall (40)", "±", "real", "CPU", "questions/s", "peak memory", "ties", "truncated", "prompt tokens",
        "[econometrics 19]", "Answer: ",
    ):  # fmt: skip
        assert expected in process.stdout, expected
    assert process.stdout.count("(right") + process.stdout.count("(wrong") == 40
    assert "mmlu: 40/40" in process.stderr

    folder = tmp_path / STORIES
    examples = shared / "data" / "lm_eval_golden" / "example_output" / "org__model"
    sample, example = (
        json.loads(next(f.glob("samples_mmlu_*")).read_text().splitlines()[0]) for f in (folder, examples)
    )
    assert list(sample) == list(example)
    assert list(sample["arguments"]) == list(example["arguments"])
    assert [type(value) for value in sample.values()] == [type(value) for value in example.values()]
    assert [len(response) for response in sample["resps"]] == [len(response) for response in example["resps"]]
    results, example = (json.loads(next(f.glob("results_*")).read_text()) for f in (folder, examples))
    assert set(example) - set(results) <= {
        "system_instruction", "system_instruction_sha", "chat_template", "chat_template_sha",
    }  # fmt: skip
    assert set(results["results"]["mmlu_anatomy"]) == set(example["results"]["mmlu_astronomy"])
    assert results["n-samples"]["mmlu_anatomy"] == {"original": 135, "effective": 20}
    assert list(results["results"]) == [
        "mmlu",
        "mmlu_stem",
        "mmlu_social_sciences",
        "mmlu_anatomy",
        "mmlu_econometrics",
    ]
    questions = json.loads((folder / "mmlu_0shot_cpu_float32_none_questions.json").read_text())
    assert len(questions) == 40
    assert {"subject", "index", "question", "choices", "answer", "prediction", "correct"} <= set(questions[0])

    again = program(shared, *flags, "--rescore")
    assert again.returncode == 0, again.stderr
    assert again.stdout == process.stdout[process.stdout.index("MMLU, 0-shot") :]
    fewer = [flag for flag in flags if flag != "anatomy"]
    assert "overall (20)" in program(shared, *fewer, "--rescore").stdout
    other = program(shared, *flags, "--rescore", "--data", str(shared / "data" / "mmlu" / "parquet"))
    assert other.stdout == again.stdout  # the same questions from other files
    wrong = program(shared, *flags, "--rescore", "--chat-template")
    assert "mmlu_0shot_chat_*_*_*.run.jsonl" in wrong.stderr
    without = program(shared, *flags, "--rescore", "--data", "nobody/nothing")
    assert without.stdout == again.stdout
    assert "without the data only tables can be made: cannot get the data set" in without.stderr


def test_several_models_share_one_table(shared, tmp_path):
    arguments = ["--shots", "0", "--limit", "3", "--output-dir", str(tmp_path), "-m", str(tmp_path / "second")]
    shutil.copytree(shared / "checkpoints" / STORIES, tmp_path / "second")
    process = program(shared, *arguments)
    assert process.returncode == 0, process.stderr
    table = process.stdout[process.stdout.index("MMLU, 2 runs") :]
    for expected in ("overall (6)", "questions/s", "second", STORIES):
        assert expected in table


def test_requests_only_writes_the_requests_of_the_harness(shared, tmp_path):
    """Without a model."""
    process = program(shared, "--subjects", "all", "--requests-only", str(tmp_path / "requests"), model=None)
    assert process.returncode == 0, process.stderr
    digests: dict[str, object] = {}
    for line in (tmp_path / "requests").open():
        request = json.loads(line)
        digest = digests.setdefault(request["task"], hashlib.sha256())
        digest.update(f"{request['context']}\x00{request['continuation']}\x01".encode())  # type: ignore[attr-defined]
    assert {task: digest.hexdigest() for task, digest in digests.items()} == (  # type: ignore[attr-defined]
        lm_harness.golden(shared, "mmlu_5shot")["request_sha256"]
    )
    lines = program(shared, "--limit", "1", "--shots", "0", "--requests-only", "-", model=None).stdout.splitlines()
    assert len(lines) == 8
    assert json.loads(lines[7])["task"] == "mmlu_business_ethics"
    assert json.loads(lines[7])["continuation"] == " D"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--shots", "9"], "--shots 9: the dev split of astronomy has 5 examples; use 0 to 5"),
        (["--shots", "-1"], "--shots -1"),
        (["--subjects", "astronmy"], "nearest: astronomy"),
        (["--limit", "0"], "--limit 0: use 1 or more"),
        (["--batch-tokens", "-3"], "--batch-tokens -3: use 1 or more"),
        (["--single-turn"], "add --chat-template"),
        (["--fresh", "--rescore"], "use one of them"),
        (["--quant", "int3"], "unknown weight format 'int3'; use"),
    ],
)
def test_wrong_flags_are_a_usage_error_of_one_line(shared, tmp_path, flags, line):
    process = program(shared, "--output-dir", str(tmp_path), *flags)
    assert process.returncode == 2
    assert line in process.stderr
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--split", "train"], "has no train split"),
        (["--data", "nobody/nothing"], "cannot get the data set nobody/nothing from the hub"),
        (["--rescore"], "no run to rescore"),
        (["--chat-template"], "has no chat template"),
        (["-m", "./nowhere"], "no such folder: ./nowhere"),
        (["-m", "~nobody-here/model"], "no such folder: ~nobody-here/model"),
    ],
)
def test_missing_data_and_models_are_an_error_of_one_line(shared, tmp_path, flags, line):
    process = program(shared, "--shots", "0", "--output-dir", str(tmp_path), *flags)
    assert process.returncode == 1
    assert line in process.stderr
    assert process.stderr.count("\n") == 1


def test_a_window_shorter_than_any_question_is_refused(shared, tmp_path):
    model = copy_model(shared, tmp_path / "short")
    config = json.loads((model / "config.json").read_text()) | {"max_position_embeddings": 40}
    (model / "config.json").write_text(json.dumps(config))
    process = program(shared, "-m", str(model), "--output-dir", str(tmp_path), model=None)
    assert process.returncode == 1
    assert "window holds 40 tokens, and the shortest question alone has" in process.stderr


def copy_model(shared: Path, folder: Path) -> Path:
    """A writable copy of a model."""
    return Path(shutil.copytree(shared / "checkpoints" / STORIES, folder, copy_function=shutil.copyfile))


def test_rescoring_on_other_data_is_refused(shared, tmp_path):
    flags = ["--shots", "0", "--limit", "1", "--output-dir", str(tmp_path)]
    first = program(shared, *flags)
    assert first.returncode == 0, first.stderr
    verbose = program(shared, *flags, "--verbose")
    assert verbose.stdout.count("(right") + verbose.stdout.count("(wrong") == 2  # of a finished run
    for split in ("dev", "test"):
        shutil.copy(shared / "data" / "mmlu" / f"{split}.jsonl.gz", tmp_path)
    with gzip.open(tmp_path / "test.jsonl.gz", "at") as file:
        file.write(json.dumps({"question": "?", "subject": "virology", "choices": list("abcd"), "answer": 0}) + "\n")
    other = program(shared, *flags, "--rescore", "--data", str(tmp_path))
    assert other.returncode == 1
    assert "was scored on other data" in other.stderr


def test_two_models_of_one_name_are_refused_before_either_is_scored(shared, tmp_path):
    shutil.copytree(shared / "checkpoints" / STORIES, tmp_path / STORIES)
    process = program(shared, "-m", str(tmp_path / STORIES), "--output-dir", str(tmp_path / "results"))
    assert process.returncode == 2
    assert "would share one folder of results" in process.stderr
    assert not (tmp_path / "results").exists()


def test_scores_that_are_not_finite_are_refused(shared, tmp_path):
    model = copy_model(shared, tmp_path / "broken")
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:-4000] + b"\xff" * 4000)
    process = program(shared, "-m", str(model), "--shots", "0", "--output-dir", str(tmp_path), model=None)
    assert process.returncode == 1
    assert "broken: log-likelihoods are NaN; with float16 use --dtype bfloat16 or float32" in process.stderr
    assert not [*tmp_path.rglob("*.run.jsonl")]
