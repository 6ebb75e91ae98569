"""The wheel has all files, and works in another folder and without a network."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "evals", "chat", "bench")
DATA = {".cpp", ".h", ".safetensors", ".json", ".jsonl", ".jinja", ".css", ".js", ".mjs", ".html", ".svg", ".txt"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from the files that git tracks."""
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
    (path,) = tmp_path.glob("bareloop-*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """A folder with the content of the wheel."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def tracked() -> list[str]:
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def test_the_wheel_has_every_source_and_data_file(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        name
        for name in tracked()
        if name.split("/")[0] in PACKAGES and (Path(name).suffix == ".py" or Path(name).suffix in DATA)
    }
    assert names == expected


@pytest.mark.parametrize(
    ("arguments", "expected_text"),
    [
        (("engine", "-m", "demo", "Who are you?"), "demo model of bareloop"),
        (("evals.mmlu", "--limit", "4"), "business ethics"),
    ],
)
def test_the_wheel_works_elsewhere_without_a_network(site, tmp_path, arguments, expected_text):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site), "HOME": str(tmp_path)}
    for variable in ("HF_ENDPOINT", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        environment[variable] = "http://127.0.0.1:9"
    environment["BARELOOP_ISA"] = "torch"  # do not build kernels in an empty cache
    done = subprocess.run(
        [sys.executable, "-P", "-m", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert expected_text in done.stdout.replace("_", " ")
