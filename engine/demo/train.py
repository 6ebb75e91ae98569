"""python -m engine.demo.train: make the demo model anew, from its textbook, with the engine's own modules."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from engine.cli.parser import Parser, run
from engine.cli.progress import Progress
from engine.runtime.errors import BareloopError, UsageError

if TYPE_CHECKING:
    import tokenizers
    import torch

    from engine.demo.pages import Page
    from engine.demo.textbook import Mix
    from engine.llm import LLM

WINDOW = 1024  # tokens
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": WINDOW,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "initializer_range": 0.0625,  # 1 / sqrt(hidden_size)
    "bos_token_id": 0,
    "eos_token_id": 1,
    "dtype": "float32",  # what it computes in; the file holds bfloat16
}
MAIN = 0.8  # of the steps; the rest is a short second course, for names above all
WARMUP, FALL = 0.05, 0.20  # of the main course's steps
PLATEAU, SECOND = 0.30, 0.30  # of the peak learning rate
BLEND = 0.75  # of the last weights; the rest is those at the main course's end, which know the facts a little better
# Products of new shapes cost oneDNN a new kernel each: so tokens come in few numbers.
GRAIN = 32  # tokens: pages are padded to a multiple, and those of one length attend in one batch
HEADS = 512  # tokens: so many get logits, or a multiple
HELD_OUT = 60  # pages
HELD_OUT_INTERVAL = 100  # steps


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m engine.demo.train", "Train the demo model: about an hour on two cores.")
    result.add_argument("--output", default="results/demo-model", metavar="FOLDER", help="default: results/demo-model")
    result.add_argument("--steps", type=int, default=6000, help="default: 6000")
    result.add_argument(
        "--batch-tokens", type=int, default=4096, metavar="N", help="tokens of one step (default: 4096)"
    )
    result.add_argument(
        "--learning-rate", type=float, default=1e-3, metavar="RATE", help="at its peak (default: 0.001)"
    )
    result.add_argument("--seed", type=int, default=0, help="of weights and pages (default: 0)")
    result.add_argument("--checkpoint-steps", type=int, default=100, metavar="N", help="steps between (default: 100)")
    result.add_argument("--fresh", action="store_true", help="begin anew instead of going on from the checkpoint")
    return result


def main(options: Any) -> None:
    """Train, from the checkpoint where there is one, and write the folder."""
    from engine.runtime.files import local_path

    for flag in ("steps", "batch_tokens", "checkpoint_steps"):
        if getattr(options, flag) < 1:
            raise UsageError(f"--{flag.replace('_', '-')} {getattr(options, flag)}: use 1 or more")
    output = local_path(options.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"--output {output} exists and is not empty; name a new folder")
    train(options, output, output.with_name(f"{output.name}.checkpoint"))


def train(options: Any, output: Path, checkpoint: Path) -> None:
    """AdamW with a cosine; a step's pages follow from the seed and its number, so a resumed run is the same run."""
    import torch

    from engine.checkpoints.saving import save_model
    from engine.demo import vocabulary
    from engine.layers.linear import Linear
    from engine.llm import LLM

    tokenizer = vocabulary.build(options.seed)
    config = {**CONFIG, "vocab_size": tokenizer.get_vocab_size()}
    llm = LLM.from_config(config, seed=options.seed)
    begin(llm, options.seed)
    for module in llm.model.modules():
        if isinstance(module, Linear):
            in_bfloat16(module)
    optimizer = adamw(llm)

    settings = {name: getattr(options, name) for name in ("steps", "batch_tokens", "learning_rate", "seed")}
    done, main = 0, {}
    if checkpoint.exists() and not options.fresh:
        saved = torch.load(checkpoint, weights_only=True)
        if saved["settings"] != settings:
            raise BareloopError(f"{checkpoint} is of a run with other settings, {saved['settings']}; add --fresh")
        llm.model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done, main = saved["step"], saved["main"]

    test = held_out(tokenizer, options.seed)
    told = ""
    with Progress("training", options.steps, done) as progress:
        for step in range(done, options.steps):
            if step == main_steps(options.steps):
                main = {name: tensor.clone() for name, tensor in llm.model.state_dict().items()}
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * schedule(step, options.steps)
            pages = step_pages(tokenizer, options.seed, step, options.steps, options.batch_tokens)
            loss, _ = loss_and_letters(llm, pages)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(llm.model.parameters(), 1.0)
            optimizer.step()
            last = step + 1 == options.steps
            if (step + 1) % HELD_OUT_INTERVAL == 0 or last:
                with torch.no_grad():
                    value, letters = loss_and_letters(llm, test)
                told = f"held-out loss {value:.3f}, letters {letters:.0%}"
            if (step + 1) % options.checkpoint_steps == 0 or last:
                state = {"model": llm.model.state_dict(), "main": main, "optimizer": optimizer.state_dict()}
                keep({**state, "step": step + 1, "settings": settings}, checkpoint)
            progress.advance(1, f"loss {loss.item():.3f}, {told}".rstrip(", "))

    with torch.no_grad():
        for name, tensor in llm.model.state_dict().items():
            if name in main:
                tensor.lerp_(main[name], 1 - BLEND)
    files = vocabulary.files(tokenizer, WINDOW)
    save_model(llm.model.to(torch.bfloat16), llm.family, config, output, files)
    print(output)


def adamw(llm: LLM) -> torch.optim.AdamW:
    """The optimizer; only matrices decay."""
    import torch

    matrices = [parameter for parameter in llm.model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in llm.model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def begin(llm: LLM, seed: int) -> None:
    """Weights to begin with: loud embeddings, and branches that say nothing yet.

    So what a token is stays audible through all layers, and which token follows which is learned at once.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in llm.model.named_parameters():
            if name == "embed.weight":
                parameter.normal_(0.0, 1.0, generator=generator)
            elif name == "head.weight":
                parameter.normal_(0.0, 0.02, generator=generator)
            elif name.endswith(("attention.out.weight", "mlp.down.weight")):
                parameter.zero_()


def schedule(step: int, steps: int) -> float:
    """The share of the peak learning rate: a rise, a cosine, a plateau, a fall to nothing; then a small fall again."""
    main = main_steps(steps)
    if step >= main:
        return SECOND * (steps - step) / (steps - main)
    steps = main
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    cosine = 0.02 + 0.98 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
    return min(max(cosine, PLATEAU), PLATEAU * (steps - step) / (FALL * steps))


def main_steps(steps: int) -> int:
    """How many of the steps are of the main course."""
    return max(1, round(MAIN * steps))


def encode(tokenizer: tokenizers.Tokenizer, page: Page) -> tuple[list[int], list[float]]:
    """The ids of a page, and the weight of each: that of the piece in which the token ends."""
    from engine.demo.pages import text_of

    encoding = tokenizer.encode(text_of(page), add_special_tokens=False)
    weights = [weight for text, weight in page for _ in text]
    return encoding.ids, [weights[end - 1] for _, end in encoding.offsets]


Encoded = list[tuple[list[int], list[float]]]


def mix(progress: float) -> Mix:
    """What pages there are after this share of the main course.

    First to say things again, which all else rests on; then, with little beside it, to find a choice's letter where
    it follows at once, which takes minutes alone and hours among other pages; then across `Answer:`; then in quizzes
    whose answers stand in the question; then the facts, at last in all sorts of words.
    """
    from engine.demo.textbook import Mix

    if progress < 0.40:
        easy = 0.50 - 0.44 * progress / 0.60
        return Mix(easy, finding=easy)
    if progress < 0.44:
        return Mix(0.90, repeating=0.1, bridges=("",), finding=0.90)
    if progress < 0.52:
        return Mix(0.60, repeating=0.1, finding=0.60)
    if progress < 0.552:
        easy = 0.82 - progress
        return Mix(easy, repeating=0.2, finding=easy)
    if progress < 0.5937:
        return Mix(0.05, repeating=0.2, quizzes=0.8, finding=0.8)
    if progress < 0.6457:
        return Mix(0.50, repeating=0.05, relisting=0.8, quizzes=0.8, finding=0.8)
    if progress < 0.70:
        return Mix(0.50, repeating=0.05, asking=0.6, relisting=0.5, quizzes=0.8, finding=0.6)
    if progress < 0.7395:
        return Mix(0.10, repeating=0.2, asking=0.3, relisting=0.3, quizzes=0.6, finding=0.1)
    if progress < 1:
        return Mix(0.06, repeating=0.4, asking=0.3, relisting=0.3, quizzes=0.6, finding=0.05, rewording=0.6)
    return Mix(0.30, repeating=0.9, quizzes=0.35, finding=0.05, rewording=0.6)


def step_pages(tokenizer: tokenizers.Tokenizer, seed: int, step: int, steps: int, tokens: int) -> Encoded:
    """The pages of one step."""
    from engine.demo.textbook import pages

    found: Encoded = []
    room = tokens
    for _, page in pages(Random(f"{seed} {step}"), mix(step / main_steps(steps))):
        ids, weights = encode(tokenizer, page)
        size = len(ids) + -len(ids) % GRAIN
        if size > room:
            return [*found, ([1] * room, [0.0] * room)] if room else found
        if size <= WINDOW:
            found.append((ids, weights))
            room -= size
    raise AssertionError("pages never end")


def held_out(tokenizer: tokenizers.Tokenizer, seed: int) -> Encoded:
    """Pages that no step is made of."""
    from itertools import islice

    from engine.demo.textbook import Mix, pages

    found = pages(Random(f"{seed} held out"), Mix(0.01, finding=0.01))
    return [encode(tokenizer, page) for _, page in islice(found, HELD_OUT)]


def loss_and_letters(llm: LLM, pages: Encoded) -> tuple[Any, float]:
    """The weighted mean cross-entropy of the next token, and the share of answers' letters that are right."""
    import torch

    from engine.cache.state import Step
    from engine.demo.textbook import LETTER

    padded = [(ids + [1] * (-len(ids) % GRAIN), weights + [0.0] * (-len(ids) % GRAIN)) for ids, weights in pages]
    padded.sort(key=lambda page: len(page[0]))
    step = Step.pack([ids for ids, _ in padded])
    targets = step.tokens.roll(-1)
    weight = torch.tensor([w for _, weights in padded for w in (*weights[1:], 0.0)])
    counted = weight.argsort(descending=True, stable=True)
    counted = counted[: int((weight > 0).sum()) // HEADS * HEADS + HEADS]  # the last ones weigh nothing
    logits = llm.model.logits(llm.model(step)[counted])
    targets, weight = targets[counted], weight[counted]
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    letters = weight == LETTER
    right = (logits[letters].argmax(-1) == targets[letters]).float().mean().item()
    return (losses * weight).sum() / weight.sum(), right


def in_bfloat16(layer: Any) -> None:
    """Multiply matrices in bfloat16 and keep all else in float32, which torch's attention on CPUs is faster in."""
    import torch

    forward = layer.forward

    def mixed(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(x).float()

    layer.forward = mixed


def keep(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint, so that there is the old one or the new one at any moment."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    torch.save(state, draft)
    draft.replace(path)


if __name__ == "__main__":
    run(parser(), main)
