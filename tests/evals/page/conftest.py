"""A report of two benchmarks and three models, whose saved texts contain what could break a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.report import page
from evals.runs.collection import load_runs
from tests.evals.synthetic import write_runs

MODELS = {"one/small": 0.4, "one/large": 0.7, "other": 0.55}
DANGEROUS_TEXTS = [
    "</script><b>bold</b><script>alert(1)</script>",
    "<!-- <script> never closed",
    "\"quotes\", 'quotes' & &lt;entities&gt; \\u003c \\n {{ 7 * 7 }} {% raw %} ${1}",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 🎉 \u2028 ما هي عاصمة فرنسا؟",
    r"$\frac{1}{2}$ \[ \sum_i x_i \]",
    "a long passage " * 700,
    "one line\nanother\n\tindented",
]


@pytest.fixture(scope="session")
def dangerous_texts():
    return DANGEROUS_TEXTS


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """The runs and their page: MMLU with dangerous texts, GSM8K without saved texts."""
    folder = tmp_path_factory.mktemp("report")
    for path in write_runs(folder, MODELS, "mmlu", questions=True):
        replace_texts(path)
    write_runs(folder, MODELS, "gsm8k")
    runs = load_runs([str(folder)])
    return runs, page(runs)


def replace_texts(path: Path) -> None:
    """Replace the saved texts of the first questions of a run file."""
    file = path.with_name(path.name.replace(".run.jsonl", "_questions.json"))
    rows = json.loads(file.read_text())
    for row, text in zip(rows, DANGEROUS_TEXTS, strict=False):
        row |= {"question": text, "choices": [f"{choice} {text}" for choice in range(4)]}
    file.write_text(json.dumps(rows))
