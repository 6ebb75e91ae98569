"""A report whose saved texts contain what could break a page, and a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from evals.report import page
from evals.runs.collection import load_runs
from tests.evals.synthetic import write_runs

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--dump-dom"),
]
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


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Open a page in a headless browser and return its DOM."""
    browsers = [path for name in BROWSERS if (path := shutil.which(name))]
    if not browsers:
        pytest.skip("needs Chromium")
    folder = tmp_path_factory.mktemp("browser")

    def open_page(html: str, fragment: str = "", *flags: str) -> str:
        (folder / "report.html").write_text(html, encoding="utf-8")
        command = [browsers[0], *BROWSER_FLAGS, f"--user-data-dir={folder / 'profile'}", *flags]
        address = f"{(folder / 'report.html').as_uri()}{fragment}"
        done = subprocess.run([*command, address], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return open_page


def replace_texts(path: Path) -> None:
    """Replace the saved texts of the first questions of a run file."""
    file = path.with_name(path.name.replace(".run.jsonl", "_questions.json"))
    rows = json.loads(file.read_text())
    for row, text in zip(rows, DANGEROUS_TEXTS, strict=False):
        row |= {"question": text, "choices": [f"{choice} {text}" for choice in range(4)]}
    file.write_text(json.dumps(rows))
