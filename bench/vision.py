"""python -m bench.vision: time to the first token about an image, and of the next question, beside transformers."""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from engine.cli.parser import Parser, require_at_least, run
from engine.cli.progress import Progress
from engine.runtime.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from engine.llm import LLM

QUESTIONS = "What is in this picture?", "And which colours does it have?"
PROCESSOR = "preprocessor_config.json"
Times = tuple[float, float]  # seconds to the first token of the first and the second question


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m bench.vision", "Measure the time to the first token about an image.")
    result.add_argument(
        "--model", "-m", default="smolvlm-256m", help="a shape or a model's path (default: smolvlm-256m)"
    )
    result.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    result.add_argument("--rounds", type=int, default=3, help="images of each kind; medians are shown (default: 3)")
    result.add_argument("--side", type=int, default=1024, metavar="PIXELS", help="of a square image (default: 1024)")
    result.add_argument("--no-peer", dest="peer", action="store_false", help="without transformers")
    result.add_argument("--output", default="results/vision.json", metavar="FILE", help="default: results/vision.json")
    return result


@dataclass
class Result:
    """Medians for images that are split into tiles, or not. Seconds of the first question and of the next one."""

    image: str
    tiles: int
    prompt_tokens: int
    seconds: float
    next_seconds: float
    peer_seconds: float | None = None
    peer_next_seconds: float | None = None


def main(options: Any) -> None:
    """Measure, print the table, write it."""
    from rich.console import Console

    from bench.shapes import checkpoint
    from engine.runtime.files import local_path, write_atomic

    require_at_least(1, options, "rounds", "side")
    results = measure(checkpoint(options.model), options)
    Console().print(table(results))
    path = local_path(options.output)
    write_atomic(path, json.dumps([asdict(result) for result in results], indent=2) + "\n")
    Console(stderr=True).print(str(path), style="dim", soft_wrap=True)


def measure(folder: Path, options: Any) -> list[Result]:
    """Both programs in turns, with a new image in every round; the first round warms up."""
    from bench.image_files import picture

    results = []
    with Progress("images", 2 * (options.rounds + 1)) as progress, tempfile.TemporaryDirectory() as temporary:
        for name, place in (("split", folder), ("not split", unsplit(folder, Path(temporary)))):
            llm, ask = engine(place, options.device)
            peer = transformers_model(place, llm.device, llm.config.tokens_per_tile) if options.peer else None
            ours: list[Times] = []
            theirs: list[Times] = []
            for number in range(options.rounds + 1):
                data = picture(options.side, number)
                ours.append(ask(data))
                theirs += [peer(data)] if peer is not None else []
                progress.advance(1, f"{name}: {ours[-1][0]:.2f} s")
            ids = llm.chat_template.encode(conversation(data, 1))
            vectors = sum(token >= llm.config.vocab_size for token in ids)
            first, second = middle(ours)
            results.append(Result(name, vectors // llm.config.tokens_per_tile, len(ids), first, second))
            if theirs:
                results[-1].peer_seconds, results[-1].peer_next_seconds = middle(theirs)
    return results


def unsplit(folder: Path, target: Path) -> Path:
    """The same checkpoint in `target`, with an image processor that makes one tile of every image."""
    if not (folder / PROCESSOR).exists():
        raise UsageError(f"{folder} has no {PROCESSOR}; use the folder of a vision-language model such as SmolVLM")
    for path in folder.iterdir():
        (target / path.name).symlink_to(path.resolve())
    settings = json.loads((folder / PROCESSOR).read_text(encoding="utf-8")) | {"do_image_splitting": False}
    (target / PROCESSOR).unlink()
    (target / PROCESSOR).write_text(json.dumps(settings), encoding="utf-8")
    return target


def conversation(image: Any, questions: int) -> list[dict[str, Any]]:
    """A conversation that ends with the first or the second question. `image`: its source."""
    first = [{"type": "image", "image": image}, {"type": "text", "text": QUESTIONS[0]}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": first}]
    for question in QUESTIONS[1:questions]:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": "Waves."}]})
        messages.append({"role": "user", "content": [{"type": "text", "text": question}]})
    return messages


def engine(folder: Path, device: str) -> tuple[LLM, Callable[[bytes], Times]]:
    """The loaded model, and a function that measures both questions about an image file."""
    from engine import LLM, SamplingParams, kernels
    from engine.decoding.loop import decode

    llm = LLM.load(folder, device=device)
    llm.model.pack(1)
    kernels.wait()
    one = SamplingParams(max_new_tokens=1, ignore_eos=True)

    def ask(data: bytes) -> Times:
        sequence, seconds = llm.sequence(), []
        for questions in (1, 2):
            start = time.perf_counter()
            sequence.feed(llm.chat_template.encode(conversation(data, questions)))
            next(decode([sequence], one))
            seconds.append(time.perf_counter() - start)
        sequence.close()
        return seconds[0], seconds[1]

    return llm, ask


def transformers_model(folder: Path, device: Any, tokens_per_tile: int) -> Callable[[bytes], Times]:
    """The same for transformers, which computes an image again with every question."""
    try:
        import torch
        from PIL import Image
        from transformers import AutoModelForImageTextToText, Idefics3Processor, PreTrainedTokenizerFast
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    except ImportError as error:
        raise UsageError(f"transformers with Pillow is not installed ({error}); add --no-peer") from None
    from engine.text.chat_template import ChatTemplate
    from engine.text.tokenizer import Tokenizer

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").to(device).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    images = Idefics3ImageProcessorPil.from_pretrained(folder)
    template = ChatTemplate.load(folder, Tokenizer.load(folder)).source
    processor = Idefics3Processor(images, tokenizer, tokens_per_tile, chat_template=template)

    def ask(data: bytes) -> Times:
        seconds = []
        for questions in (1, 2):
            start = time.perf_counter()
            text = processor.apply_chat_template(conversation(None, questions), add_generation_prompt=True)
            image = Image.open(io.BytesIO(data))
            inputs = processor(text=text, images=[image], return_tensors="pt").to(device)
            with torch.inference_mode():
                model.generate(**inputs, max_new_tokens=1, do_sample=False, pad_token_id=0).cpu()
            seconds.append(time.perf_counter() - start)
        return seconds[0], seconds[1]

    return ask


def middle(times: list[Times]) -> Times:
    """Medians, without the first round."""
    return median(first for first, _ in times[1:]), median(second for _, second in times[1:])


def table(results: list[Result]) -> Table:
    """One row for each kind of image."""
    from rich.table import Table

    result = Table(title="time to the first token about an image, and of the next question", title_justify="left")
    for name in ("image", "tiles", "prompt tokens", "bareloop", "transformers", "ratio", "next", "transformers"):
        result.add_column(name, justify="left" if name == "image" else "right")
    for each in results:
        peer, peer_next = each.peer_seconds, each.peer_next_seconds
        result.add_row(
            each.image,
            str(each.tiles),
            f"{each.prompt_tokens:,}",
            f"{each.seconds:.3f} s",
            f"{peer:.3f} s" if peer else "",
            f"{peer / each.seconds:.2f}" if peer else "",
            f"{each.next_seconds:.3f} s",
            f"{peer_next:.3f} s" if peer_next else "",
        )
    return result


if __name__ == "__main__":
    run(parser(), main)
