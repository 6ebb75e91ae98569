"""5-shot MMLU at Qwen2.5-0.5B's shape (random weights, bfloat16, the real tokenizer), beside lm-evaluation-harness.

pytest --benchmark-only --bench-full bench/test_mmlu.py, with the folder of shared material beside the project
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import LLM
from evals.mmlu import load_task, parser
from evals.prompts import encode_pairs, encoder

SHARED = Path(os.environ.get("BARELOOP_SHARED", Path(__file__).parents[2] / "shared"))
TOKENIZER = SHARED / "tokenizers" / "qwen2.5-0.5b-instruct"
PEER_QUESTIONS = 16  # of the 152, which would take it ten minutes

pytestmark = pytest.mark.skipif(not TOKENIZER.is_dir(), reason=f"{TOKENIZER} is not here")


@pytest.fixture(autouse=True)
def only_in_full(full: bool) -> None:
    """Four minutes."""
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


@pytest.fixture(scope="module")
def requests() -> list[list[tuple[str, str]]]:
    """Of each of astronomy's questions its four."""
    flags = ["--data", str(SHARED / "data" / "mmlu"), "--subjects", "astronomy"]
    task = load_task(parser().parse_args(flags))
    return [task.item(row, None).requests for row in task.questions["astronomy"]]


@pytest.mark.benchmark(group="MMLU question")
def test_mmlu(benchmark: Any, folder: Path, requests: list[list[tuple[str, str]]]) -> None:
    """All of them, from text to log-likelihoods."""
    llm = LLM.load(folder)
    llm.pack()

    def score() -> None:
        encode_all = encoder(llm.tokenizer)
        llm.score([pair for own in requests for pair in encode_pairs(encode_all, own)])

    benchmark.pedantic(score, rounds=2, warmup_rounds=0)
    benchmark.extra_info["questions_per_second"] = len(requests) / benchmark.stats.stats.median


@pytest.mark.benchmark(group="MMLU question")
def test_mmlu_by_the_harness(benchmark: Any, folder: Path, requests: list[list[tuple[str, str]]]) -> None:
    """The first of them by its own `hf` model, four at a time."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = huggingface.HFLM(str(folder), dtype="bfloat16", batch_size=4, device=device)
    asked = [
        instance.Instance("loglikelihood", doc={}, arguments=request, idx=place)
        for own in requests[:PEER_QUESTIONS]
        for place, request in enumerate(own)
    ]
    benchmark.pedantic(lambda: model.loglikelihood(asked, disable_tqdm=True), rounds=1)
    benchmark.extra_info["questions_per_second"] = PEER_QUESTIONS / benchmark.stats.stats.median
