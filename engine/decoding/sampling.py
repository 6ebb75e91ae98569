"""Choose the next token from its logits: pure functions on [R, V], one row per sequence.

    logits -> penalties, bias -> temperature -> top-k, top-p, min-p -> one draw

Each filter is a cutoff: the lowest logit that is kept. A draw depends only on (seed, position), so it is the same on
every device, in any batch and after a restart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine import kernels
from engine.runtime.errors import BareloopError, UsageError, quote

MAX_STOPS = 64  # stop strings, each searched after every token
INVALID = -1  # in place of a token: the logits of the row are not finite numbers


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop. The default is greedy: temperature 0."""

    temperature: float = 0.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # for tokens of the prompt and the reply (Keskar et al. 2019)
    presence_penalty: float = 0.0  # once for each token that occurs in the reply
    frequency_penalty: float = 0.0  # for each occurrence of a token in the reply
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None  # None: a new random seed per reply
    logprobs: int = 0  # number of alternatives to report with each token; 0: no log-probabilities
    max_new_tokens: int = 256
    stop: Sequence[str] = ()  # strings that end the reply; they are not part of it
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        ranges = (
            ("temperature", 0.0, math.inf),
            ("top_k", 0, math.inf),
            ("min_p", 0.0, 1.0),
            ("presence_penalty", -math.inf, math.inf),
            ("frequency_penalty", -math.inf, math.inf),
            ("logprobs", 0, math.inf),
            ("max_new_tokens", 1, math.inf),
        )
        for name, low, high in ranges:
            value = getattr(self, name)
            if not low <= value <= high or not math.isfinite(value):
                span = f"from {low:g} to {high:g}" if math.isfinite(high) else f"{low:g} or more"
                raise UsageError(f"{name} = {value}: use {span if math.isfinite(low) else 'a finite number'}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p = {self.top_p}: use more than 0, up to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise UsageError(f"repetition_penalty = {self.repetition_penalty}: use more than 0 (1 is none)")
        if isinstance(self.stop, str):
            raise UsageError("stop is a list of strings, not one string")
        if len(self.stop) > MAX_STOPS or not all(self.stop):
            raise UsageError(f"stop has {len(self.stop)} strings: use up to {MAX_STOPS}, none of them empty")
        for token, bias in (self.logit_bias or {}).items():
            if math.isnan(bias) or bias == math.inf:
                raise UsageError(
                    f"logit_bias of token {token} is {bias}: use a finite number, or -inf to exclude the token"
                )


def defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling parameters of a checkpoint's generation_config.json, as fields of `SamplingParams`.

    Raises `BareloopError` for a value that is not a number.
    """
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    values = {name: generation_config[name] for name in names if generation_config.get(name) is not None}
    for name, value in values.items():
        kind, types = ("an integer", int) if name == "top_k" else ("a number", int | float)
        if isinstance(value, bool) or not isinstance(value, types):
            raise BareloopError(f"generation_config.json: {name} = {quote(value)} is not {kind}; correct or remove it")
    if generation_config.get("do_sample") is not True:
        return {name: value for name, value in values.items() if name == "repetition_penalty"}
    return {"temperature": 1.0, "top_k": 50} | values  # transformers' defaults with do_sample


def choose(
    logits: Tensor, params: SamplingParams, texts: Sequence[Sequence[int]], starts: Sequence[int], seeds: Sequence[int]
) -> Tensor:
    """logits [R, V] -> the next token of every row [R], or `INVALID` if the largest logit is NaN or infinite.

    `texts` are the ids so far, of which the reply begins at `starts`. Greedy needs no softmax; the lowest id wins a
    tie. The check for invalid rows uses the maximum or the sum, which are computed anyway and which any NaN reaches;
    the result travels with the ids, without another synchronization of the device.
    """
    logits = penalize(logits, params, texts, starts)
    if params.temperature == 0:
        ops = kernels.for_input(logits)
        if ops is not None:
            return ops.argmax(logits)
        largest, tokens = logits.max(dim=-1)
        return torch.where(largest.isfinite(), tokens, INVALID)
    logits = logits.float()
    logits = (logits - logits.amax(-1, keepdim=True)) / max(params.temperature, 1e-30)  # stays within float32
    if params.top_k > 0 or params.top_p < 1 or params.min_p > 0:
        logits.masked_fill_(logits < cutoff(logits, params), -math.inf)
    return draw(logits, uniform(seeds, [len(ids) for ids in texts]))


def penalize(logits: Tensor, params: SamplingParams, texts: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
    """Apply penalties and bias to logits [R, V]; returns the same tensor if there are none."""
    repeats = params.repetition_penalty != 1
    counts_matter = params.presence_penalty != 0 or params.frequency_penalty != 0
    if repeats or counts_matter or params.logit_bias:
        logits = logits.float().clone()
    for row, (ids, start) in enumerate(zip(texts, starts, strict=True)):
        if repeats:
            present = torch.tensor(sorted(set(ids)), device=logits.device, dtype=torch.long)
            values = logits[row, present]
            scale = params.repetition_penalty
            logits[row, present] = torch.where(values > 0, values / scale, values * scale)
        if counts_matter and len(ids) > start:
            counts = Counter(ids[start:])
            tokens = torch.tensor([*counts], device=logits.device)
            occurrences = torch.tensor([*counts.values()], device=logits.device)
            logits[row, tokens] -= params.presence_penalty + params.frequency_penalty * occurrences
    for token, bias in (params.logit_bias or {}).items():
        if not 0 <= token < logits.shape[1]:
            raise UsageError(f"logit_bias has token {token}; the model's tokens are 0 to {logits.shape[1] - 1}")
        logits[:, token] += bias
    return logits


def cutoff(logits: Tensor, params: SamplingParams) -> Tensor:
    """The lowest logit that is kept [R, 1]: within the top k, then within their top p, and not below min p."""
    lowest = logits.new_full((len(logits), 1), -math.inf)
    if 0 < params.top_k < logits.shape[1]:
        lowest = logits.topk(params.top_k).values[:, -1:]
    if params.top_p < 1:
        kept = logits if params.top_k == 0 else logits.masked_fill(logits < lowest, -math.inf)
        top_p = top_p_by_histogram if logits.device.type == "cpu" else top_p_by_sorting
        lowest = top_p(kept, params.top_p)
    if params.min_p > 0:
        lowest = lowest.maximum(logits.amax(-1, keepdim=True) + math.log(params.min_p))
    return lowest


BINS, DEPTH = 4096, 40.0  # of a histogram of the logits, from the highest to 40 below it (e^-40 of its mass)


def top_p_by_sorting(logits: Tensor, top_p: float) -> Tensor:
    """The lowest logit of the nucleus [R, 1] (Holtzman et al. 2020): the likeliest tokens that reach top_p together."""
    values = logits.sort(descending=True).values
    mass = values.softmax(-1).cumsum(-1)
    return values.gather(1, (mass < top_p).sum(-1, keepdim=True).clamp(max=logits.shape[1] - 1))


def top_p_by_histogram(logits: Tensor, top_p: float) -> Tensor:
    """The same on a CPU, where sorting 152,000 logits would take longer than everything else here.

    A histogram finds the bin in which the nucleus ends, and only that bin is sorted.
    """
    lowest = []
    for row in logits:
        top = row.max()
        if math.isnan(float(top)):  # an invalid row, which `draw` marks
            lowest.append(top)
            continue
        below = row - top
        bins = (below * (-(BINS - 1) / DEPTH)).clamp_(max=BINS - 1).int()
        mass = torch.bincount(bins, below.exp_(), minlength=BINS).cumsum(0, dtype=torch.float64)
        target = top_p * mass[-1]
        edge = int((mass < target).sum())
        inside = row[bins == edge].sort(descending=True).values
        mass_before = mass[edge - 1] if edge else 0.0
        reached = mass_before + (inside - top).double().exp().cumsum(0)
        lowest.append(inside[min(int((reached < target).sum()), len(inside) - 1)])
    return torch.stack(lowest)[:, None]


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token per row [R]: invert the cumulative distribution of softmax(logits) at `uniforms` [R].

    `INVALID` if the sum is NaN, as it is if a logit is NaN or the largest one is infinite.
    """
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    cumulative = (logits - logits.amax(-1, keepdim=True)).exp_().cumsum(-1, dtype=wide)
    total = cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, uniforms.to(cumulative)[:, None] * total, right=True)
    return tokens.clamp_(max=logits.shape[1] - 1).masked_fill_(total.isnan(), INVALID)[:, 0]


def uniform(seeds: Sequence[int], positions: Sequence[int]) -> Tensor:
    """Numbers in [0, 1) [R], float64 on the CPU; each depends only on its (seed, position)."""
    mixed = [_mix(_mix(seed) + position) for seed, position in zip(seeds, positions, strict=True)]
    return torch.tensor([(bits >> 11) / 2**53 for bits in mixed], dtype=torch.float64)


def _mix(value: int) -> int:
    """One output of SplitMix64 (Steele et al. 2014): a 64-bit hash of `value`."""
    mask = 2**64 - 1
    value = (value + 1) * 0x9E3779B97F4A7C15 & mask
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & mask
    value = (value ^ value >> 27) * 0x94D049BB133111EB & mask
    return value ^ value >> 31


def top_logprobs(logits: Tensor, tokens: Tensor, count: int) -> tuple[list[float], list[list[tuple[int, float]]]]:
    """Natural log-probabilities of the model, before penalties and temperature.

    -> those of the chosen `tokens` [R]; and the `count` likeliest tokens of each row, as (id, log-probability).
    """
    logprobs = logits.float().log_softmax(-1)
    chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
    best = logprobs.topk(min(count, logits.shape[1]))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return chosen, [list(zip(ids, values, strict=True)) for ids, values in pairs]
