"""The wheel: what it carries, and that it works without a network."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "evals", "chat", "bench")
DATA = {".cpp", ".h", ".safetensors", ".json", ".jsonl", ".jinja", ".css", ".js"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of the files that git knows."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    tmp_path = tmp_path_factory.mktemp("wheel")
    copy = tmp_path / "source"
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)],
        cwd=copy, check=True, capture_output=True,
    )  # fmt: skip
    (made,) = tmp_path.glob("bareloop-*.whl")
    return made


def tracked() -> list[str]:
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def test_the_wheel_holds_the_tree(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        name
        for name in tracked()
        if name.split("/")[0] in PACKAGES and (Path(name).suffix == ".py" or Path(name).suffix in DATA)
    }
    assert held == expected


@pytest.mark.parametrize(
    ("words", "shown"),
    [(("engine", "Who are you?"), "demo model of bareloop"), (("evals.mmlu", "--limit", "4"), "business ethics")],
)
def test_the_wheel_works_elsewhere_without_a_network(wheel, tmp_path, words, shown):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    nowhere = dict.fromkeys(
        ("HF_ENDPOINT", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "site"), "HOME": str(tmp_path), **nowhere}
    environment["BARELOOP_ISA"] = "torch"  # nothing is built that nobody will use
    done = subprocess.run(
        [sys.executable, "-P", "-m", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout.replace("_", " ")
