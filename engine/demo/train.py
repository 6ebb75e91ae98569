"""python -m engine.demo.train: train the demo model on its textbook, with the engine's own modules."""

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
    "dtype": "float32",  # of the computation; the file has bfloat16
}
MAIN_SHARE = 0.8  # of the steps; the others are a second phase, mainly on repeating names
WARMUP_SHARE, DECAY_SHARE = 0.05, 0.20  # of the main phase's steps
PLATEAU_RATE, SECOND_RATE = 0.30, 0.30  # of the peak learning rate
# The result is a mean of the last weights and those after the main phase, which know the facts slightly better.
BLEND = 0.75  # share of the last weights
WEIGHT_DECAY, BETAS = 0.05, (0.9, 0.98)
# oneDNN compiles a kernel for every new matrix shape, so the numbers of tokens are multiples of these.
PAGE_MULTIPLE = 32  # pages are padded to it; pages of the same length are one batch in attention
LOGITS_MULTIPLE = 512  # of the positions for which logits are computed
HELD_OUT_PAGES = 60
HELD_OUT_INTERVAL = 100  # steps


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m engine.demo.train", "Train the demo model. It takes about an hour on two cores.")
    result.add_argument("--output", default="results/demo-model", metavar="FOLDER", help="default: results/demo-model")
    result.add_argument("--steps", type=int, default=6000, help="default: 6000")
    result.add_argument("--batch-tokens", type=int, default=4096, metavar="N", help="tokens per step (default: 4096)")
    result.add_argument(
        "--learning-rate", type=float, default=1e-3, metavar="RATE", help="peak learning rate (default: 0.001)"
    )
    result.add_argument("--seed", type=int, default=0, help="seed of the weights and the pages (default: 0)")
    result.add_argument(
        "--checkpoint-steps", type=int, default=100, metavar="N", help="steps between checkpoints (default: 100)"
    )
    result.add_argument("--fresh", action="store_true", help="start over instead of resuming from the checkpoint")
    return result


def main(options: Any) -> None:
    """Train the model, resuming from a checkpoint if there is one, and write the folder."""
    from engine.runtime.files import local_path

    for flag in ("steps", "batch_tokens", "checkpoint_steps"):
        if getattr(options, flag) < 1:
            raise UsageError(f"--{flag.replace('_', '-')} {getattr(options, flag)}: use 1 or more")
    output = local_path(options.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"--output {output} exists and is not empty; name a new folder")
    from engine.finetune.optimizer import NonFiniteError

    try:
        train(options, output, output.with_name(f"{output.name}.checkpoint"))
    except NonFiniteError as error:
        raise BareloopError(f"{error}; lower --learning-rate {options.learning_rate:g}, and add --fresh") from None


def train(options: Any, output: Path, checkpoint: Path) -> None:
    """Train with AdamW. The pages of a step depend only on the seed and the step, so a resumed run gives the same bits.

    Raises `BareloopError` if the checkpoint is from a run with other settings or an older version of this program, and
    for a loss that is not finite.
    """
    import torch

    from engine.checkpoints.saving import save_model
    from engine.demo import vocabulary
    from engine.finetune.checkpoint import load_checkpoint, restore, save_checkpoint, training_state
    from engine.finetune.optimizer import StepLoss, adamw, train_steps
    from engine.layers.linear import Linear
    from engine.llm import LLM

    tokenizer = vocabulary.build(options.seed)
    config = {**CONFIG, "vocab_size": tokenizer.get_vocab_size()}
    llm = LLM.from_config(config, seed=options.seed)
    init_weights(llm, options.seed)
    for module in llm.model.modules():
        if isinstance(module, Linear):
            multiply_in_bfloat16(module)
    optimizer = adamw(llm.model.parameters(), WEIGHT_DECAY, BETAS)

    settings = {name: getattr(options, name) for name in ("steps", "batch_tokens", "learning_rate", "seed")}
    done, main_weights = 0, {}
    if checkpoint.exists() and not options.fresh:
        saved = load_checkpoint(checkpoint, settings, "add --fresh", "main")
        done, main_weights = restore(llm.model, optimizer, saved), saved.pop("main")

    def gradient(step: int) -> StepLoss:
        pages = step_pages(tokenizer, options.seed, step, options.steps, options.batch_tokens)
        loss, _ = loss_and_accuracy(llm, pages)
        loss.backward()
        return StepLoss(loss.item())

    def learning_rate(step: int) -> float:
        return float(options.learning_rate * schedule(step, options.steps))

    parameters, test_pages = list(llm.model.parameters()), held_out_pages(tokenizer, options.seed)
    evaluation = ""
    with Progress("training", options.steps, done) as progress:
        for result in train_steps(optimizer, parameters, range(done, options.steps), gradient, learning_rate, clip=1.0):
            done = result.step
            if done == main_steps(options.steps):
                main_weights = {name: tensor.clone() for name, tensor in llm.model.state_dict().items()}
            if done % HELD_OUT_INTERVAL == 0 or done == options.steps:
                with torch.no_grad():
                    test_loss, accuracy = loss_and_accuracy(llm, test_pages)
                evaluation = f"held-out loss {test_loss:.3f}, letter accuracy {accuracy:.0%}"
            if done % options.checkpoint_steps == 0 or done == options.steps:
                state = training_state(llm.model, optimizer, done) | {"main": main_weights, "settings": settings}
                save_checkpoint(state, checkpoint)
            progress.advance(1, f"loss {result.loss:.3f}, {evaluation}".rstrip(", "))

    with torch.no_grad():
        for name, tensor in llm.model.state_dict().items():
            tensor.lerp_(main_weights[name], 1 - BLEND)
    files = vocabulary.files(tokenizer, WINDOW)
    save_model(llm.model.to(torch.bfloat16), llm.family, config, output, files)
    print(output)


def init_weights(llm: LLM, seed: int) -> None:
    """Initialize the weights: large embeddings, and residual branches that add nothing.

    At first, the embedding of each token passes unchanged through all layers, so that the model learns at once which
    token follows which.
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
    """Return the learning rate of a step, as a share of its peak.

    Main phase: linear warm-up, cosine, plateau, linear decay to 0. Second phase: linear decay from `SECOND_RATE` to 0.
    """
    main = main_steps(steps)
    if step >= main:
        return SECOND_RATE * (steps - step) / (steps - main)
    steps = main
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    cosine = 0.02 + 0.98 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
    return min(max(cosine, PLATEAU_RATE), PLATEAU_RATE * (steps - step) / (DECAY_SHARE * steps))


def main_steps(steps: int) -> int:
    """Return the number of steps of the main phase."""
    return max(1, round(MAIN_SHARE * steps))


def encode(tokenizer: tokenizers.Tokenizer, page: Page) -> tuple[list[int], list[float]]:
    """Return a page's token ids and their weights. A token has the weight of the piece that it ends in."""
    from engine.demo.pages import text_of

    encoding = tokenizer.encode(text_of(page), add_special_tokens=False)
    weights = [weight for text, weight in page for _ in text]
    return encoding.ids, [weights[end - 1] for _, end in encoding.offsets]


EncodedPages = list[tuple[list[int], list[float]]]  # (ids, weights) of each page


def mix_at(progress: float) -> Mix:
    """Return the composition of the pages. `progress`: steps so far / steps of the main phase; 1 or more in the second.

    A curriculum: first repeating words, on which all else depends; then almost only letter drills without a separator,
    because finding a letter takes minutes to learn alone, but hours among other pages; then letter drills with
    separators; then quizzes with lookup questions; then facts, and finally facts with nonsense questions.
    """
    from engine.demo.textbook import Mix

    if progress < 0.40:
        easy = 0.50 - 0.44 * progress / 0.60
        return Mix(easy, lookups=easy)
    if progress < 0.44:
        return Mix(0.90, repetitions=0.1, separators=("",), lookups=0.90)
    if progress < 0.52:
        return Mix(0.60, repetitions=0.1, lookups=0.60)
    if progress < 0.552:
        easy = 0.82 - progress
        return Mix(easy, repetitions=0.2, lookups=easy)
    if progress < 0.5937:
        return Mix(0.05, repetitions=0.2, quizzes=0.8, lookups=0.8)
    if progress < 0.6457:
        return Mix(0.50, repetitions=0.05, relisted=0.8, quizzes=0.8, lookups=0.8)
    if progress < 0.70:
        return Mix(0.50, repetitions=0.05, mini_quizzes=0.6, relisted=0.5, quizzes=0.8, lookups=0.6)
    if progress < 0.7395:
        return Mix(0.10, repetitions=0.2, mini_quizzes=0.3, relisted=0.3, quizzes=0.6, lookups=0.1)
    if progress < 1:
        return Mix(0.06, repetitions=0.4, mini_quizzes=0.3, relisted=0.3, quizzes=0.6, lookups=0.05, nonsense=0.6)
    return Mix(0.30, repetitions=0.9, quizzes=0.35, lookups=0.05, nonsense=0.6)


def step_pages(tokenizer: tokenizers.Tokenizer, seed: int, step: int, steps: int, tokens: int) -> EncodedPages:
    """Return the pages of one step: `tokens` tokens in total, after padding."""
    from engine.demo.textbook import pages

    found: EncodedPages = []
    room = tokens
    for _, page in pages(Random(f"{seed} {step}"), mix_at(step / main_steps(steps))):
        ids, weights = encode(tokenizer, page)
        size = len(ids) + -len(ids) % PAGE_MULTIPLE
        if size > room:
            return [*found, ([1] * room, [0.0] * room)] if room else found
        if size <= WINDOW:
            found.append((ids, weights))
            room -= size
    raise AssertionError("pages() yields without end")


def held_out_pages(tokenizer: tokenizers.Tokenizer, seed: int) -> EncodedPages:
    """Return pages that are not used for training."""
    from itertools import islice

    from engine.demo.textbook import Mix, pages

    found = pages(Random(f"{seed} held out"), Mix(0.01, lookups=0.01))
    return [encode(tokenizer, page) for _, page in islice(found, HELD_OUT_PAGES)]


def loss_and_accuracy(llm: LLM, pages: EncodedPages) -> tuple[Any, float]:
    """Return the weighted mean cross-entropy per token, and the share of correct letters in quiz answers."""
    import torch

    from engine.cache.state import Step
    from engine.demo.textbook import LETTER

    padded = []
    for ids, weights in sorted(pages, key=lambda page: -(-len(page[0]) // PAGE_MULTIPLE)):
        padding = -len(ids) % PAGE_MULTIPLE
        padded.append((ids + [1] * padding, weights + [0.0] * padding))
    step = Step.pack([ids for ids, _ in padded])
    targets = step.tokens.roll(-1)
    weight = torch.tensor([w for _, weights in padded for w in (*weights[1:], 0.0)])
    selected = weight.argsort(descending=True, stable=True)
    count = int((weight > 0).sum()) // LOGITS_MULTIPLE * LOGITS_MULTIPLE + LOGITS_MULTIPLE
    selected = selected[:count]  # all positions with a weight; those that fill up the multiple have none
    logits = llm.model.logits(llm.model(step)[selected])
    targets, weight = targets[selected], weight[selected]
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    letters = weight == LETTER
    accuracy = (logits[letters].argmax(-1) == targets[letters]).float().mean().item()
    return (losses * weight).sum() / weight.sum(), accuracy


def multiply_in_bfloat16(layer: Any) -> None:
    """Make a linear layer multiply in bfloat16. All else stays in float32, in which torch's CPU attention is faster."""
    import torch

    forward = layer.forward

    def mixed(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(x).float()

    layer.forward = mixed


if __name__ == "__main__":
    run(parser(), main)
