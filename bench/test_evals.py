"""Benchmarks at Qwen2.5-0.5B's shape (random weights, bfloat16, the real tokenizer), beside lm-evaluation-harness.

pytest --benchmark-only --bench-full bench/test_evals.py, with the folder of shared material beside the project

From text to scores or answers on both sides. GSM8K is answered with up to 256 tokens, SQuAD with up to 50, 16 questions
at a time; their tokens a second count the generated tokens, and the time of the prompts too. With random weights few
answers end before the limit.
"""

from __future__ import annotations

import json
import os
import shutil
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import LLM
from engine.checkpoints import embedded
from engine.runtime.clocks import Stopwatch
from evals.harness.evaluate import BLOCK
from evals.harness.generation import generate_answers
from evals.harness.likelihood import score_questions
from evals.harness.task import BatchLimits, Item, Task
from evals.run import benchmark_program

SHARED = Path(os.environ.get("BARELOOP_SHARED", Path(__file__).parents[2] / "shared"))
TOKENIZER = SHARED / "tokenizers" / "qwen2.5-0.5b-instruct"
FLAGS = {
    "mmlu": ["--subjects", "astronomy"],
    "hellaswag": [],
    "arc": ["--subset", "challenge"],
    "gsm8k": [],
    "squad": [],
}
QUESTIONS = {"mmlu": 152, "hellaswag": 64, "arc": 128, "gsm8k": 16, "squad": 64}
PEER_QUESTIONS = {"mmlu": 16, "hellaswag": 16, "arc": 32, "gsm8k": 16, "squad": 16}  # all of ours would take it an hour
BATCH = {"mmlu": 4, "hellaswag": 4, "arc": 4, "gsm8k": 16, "squad": 16}  # requests of the harness, answers of both

pytestmark = pytest.mark.skipif(not TOKENIZER.is_dir(), reason=f"{TOKENIZER} is not here")


@pytest.fixture(autouse=True)
def only_in_full(full: bool) -> None:
    """Twenty minutes."""
    if not full:
        pytest.skip("beside lm-evaluation-harness: --bench-full")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the shape, about 1 GB, and the tokenizer."""
    folder = tmp_path_factory.mktemp("qwen") / "model"
    config = json.loads((TOKENIZER / "config.json").read_text())
    config.pop("_name_or_path")
    LLM.from_config(config, seed=0, device="cpu", dtype="bfloat16").save(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    return folder


def questions(name: str, count: int, *flags: str) -> tuple[Task, list[tuple[Any, Item]]]:
    """The first of a benchmark, with its own number of examples."""
    parser, load_tasks = benchmark_program(name)
    (task,) = load_tasks(parser.parse_args(["--data", str(SHARED / "data" / name), *(flags or FLAGS[name])]))
    (rows,) = task.questions.values()
    return task, [(row, task.make_item(row, None)) for row in rows[:count]]


def compute(llm: LLM, task: Task, asked: Sequence[tuple[Any, Item]], batch: int) -> list[dict[str, Any]]:
    """Our records, as a run computes them, but for the file."""
    blocks = [asked[first : first + BLOCK] for first in range(0, len(asked), BLOCK)]
    score = score_questions if task.generation is None else generate_answers
    limits = BatchLimits(llm.scorer().batch_tokens, batch)
    batches = score(task, llm, limits, blocks, {item.key for _, item in asked}, Stopwatch(llm.device))
    return [record for records in batches for record in records]


def compute_in_harness(model: Any, task: Task, asked: Sequence[tuple[Any, Item]]) -> list[Any]:
    """What lm-evaluation-harness's model answers to the same requests, in their order."""
    instance = pytest.importorskip("lm_eval.api.instance")
    kind = "generate_until" if task.generation else "loglikelihood"
    requests = [
        instance.Instance(kind, doc={}, arguments=(context, json.loads(end) if task.generation else end), idx=place)
        for _, item in asked
        for place, (context, end) in enumerate(item.requests)
    ]
    return list(getattr(model, kind)(requests, disable_tqdm=True))


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.benchmark(group="question of a benchmark")
def test_ours(benchmark: Any, folder: Path, name: str) -> None:
    """Our questions a second."""
    llm = LLM.load(folder)
    llm.pack()
    task, asked = questions(name, QUESTIONS[name])
    found: list[dict[str, Any]] = []

    def score() -> None:
        found[:] = compute(llm, task, asked, BATCH[name])

    benchmark.pedantic(score, rounds=1 if task.generation else 2, warmup_rounds=0)
    tell(benchmark, len(asked), sum(record.get("new_tokens", 0) for record in found))


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.benchmark(group="question of a benchmark")
def test_the_harness(benchmark: Any, folder: Path, name: str) -> None:
    """Those of its own `hf` model."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = huggingface.HFLM(str(folder), dtype="bfloat16", batch_size=BATCH[name], device=device)
    task, asked = questions(name, PEER_QUESTIONS[name])
    answers = answers_of(model)
    benchmark.pedantic(lambda: compute_in_harness(model, task, asked), rounds=1)
    stops = (*task.generation.until, model.tokenizer.eos_token) if task.generation else ()
    tell(benchmark, len(asked), sum(tokens_up_to(model.tokenizer, ids, stops) for ids in answers))


def answers_of(model: Any) -> list[list[int]]:
    """A list that receives the ids of all answers that the harness's model generates, which returns texts only."""
    generate, answers = model._model_generate, []

    def generate_and_keep(context: Any, *rest: Any, **named: Any) -> Any:
        output = generate(context, *rest, **named)
        answers.extend(output[:, context.shape[1] :].tolist())
        return output

    model._model_generate = generate_and_keep
    return answers


def tokens_up_to(tokenizer: Any, ids: Sequence[int], stops: Sequence[str]) -> int:
    """Number of tokens up to the one that completes a stop string: the rest of its batch was waited for."""
    lengths = range(1, len(ids) + 1)
    found = bisect_left(lengths, True, key=lambda length: any(stop in tokenizer.decode(ids[:length]) for stop in stops))
    return min(found + 1, len(ids))


@pytest.mark.parametrize("subject", ["astronomy", "business_ethics"])
@pytest.mark.benchmark(group="whole subject of MMLU with SmolLM2, float32")
def test_smollm2_has_the_scores_of_the_harness(benchmark: Any, tmp_path: Path, subject: str) -> None:
    """5-shot: every log-likelihood within 1e-4, and how many times as fast."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    if embedded.default_model() != embedded.SMOLLM2:
        pytest.skip("SmolLM2 is not installed: make smollm2")
    llm = LLM.load(embedded.SMOLLM2, "cpu", "float32", "none")
    llm.save(tmp_path / "model")
    model = huggingface.HFLM(str(tmp_path / "model"), dtype="float32", batch_size=BATCH["mmlu"], device="cpu")
    task, asked = questions("mmlu", 1000, "--subjects", subject)
    records = benchmark.pedantic(lambda: compute(llm, task, asked, BATCH["mmlu"]), rounds=1)
    watch = Stopwatch(llm.device)
    theirs = compute_in_harness(model, task, asked)
    benchmark.extra_info["speedup"] = watch.lap().real / benchmark.stats.stats.median
    tell(benchmark, len(asked))
    ours = {record["index"]: record["loglikelihoods"] for record in records}
    expected = [pytest.approx([value for value, _ in theirs[4 * i : 4 * i + 4]], abs=1e-4) for i in range(len(asked))]
    assert [ours[item.key[1]] for _, item in asked] == expected


def tell(benchmark: Any, count: int, tokens: int = 0) -> None:
    """Questions a second, and the tokens of answers."""
    seconds = benchmark.stats.stats.median
    benchmark.extra_info["questions_per_second"] = count / seconds
    if tokens:
        benchmark.extra_info |= {"tokens_per_second": tokens / seconds, "tokens_per_answer": tokens / count}
