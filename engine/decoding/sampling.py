"""Choose the next token from its logits: pure functions on [R, V], one row per token, each with its own parameters.

    logits -> penalties, bias, grammar -> temperature -> top-k, top-p, min-p -> one draw

Each filter is a cutoff: the lowest logit that is kept. A draw depends only on (seed, position), so it is the same on
every device, in any batch and after a restart. What follows the penalties on a GPU is in device_sampling.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine import kernels
from engine.decoding.device_sampling import DeviceParams, allow_only, change_logits, sample_on_device
from engine.decoding.draws import draw, most_likely, uniform
from engine.decoding.params import SamplingParams
from engine.kernels import gpu
from engine.runtime.device import upload


class Context(NamedTuple):
    """What the choice of a token depends on, besides its logits."""

    params: SamplingParams
    ids: Sequence[int]  # the text so far: prompt and reply
    start: int  # index in `ids` at which the reply begins
    seed: int
    allowed: Tensor | None = None  # [V], bool on the CPU: the tokens that a grammar allows


def choose(logits: Tensor, contexts: Sequence[Context]) -> Tensor:
    """logits [R, V] -> the next token of every row [R], or `INVALID` if the largest logit is NaN or infinite.

    A row's token does not depend on the other rows.
    """
    with kernels.few_threads(logits):
        return _choose(adjust(logits, contexts), contexts)


def device_params(contexts: Sequence[Context], device: torch.device) -> DeviceParams:
    """The parameters of all rows for `sample_on_device`. Penalties, bias and grammar are left to `adjust`."""
    reals = [(params.temperature, params.top_p, params.min_p) for params, *_ in contexts]
    return DeviceParams.upload(reals, [(each.params.top_k, each.seed) for each in contexts], device)


def _is_for_gpu(logits: Tensor) -> bool:
    return logits.device.type != "cpu" or gpu.for_rows(logits) is not None


def _choose(logits: Tensor, contexts: Sequence[Context]) -> Tensor:
    is_sampled = [context.params.temperature > 0 for context in contexts]
    if not any(is_sampled):
        return most_likely(logits)
    if _is_for_gpu(logits):
        positions = upload([len(context.ids) for context in contexts], torch.int64, logits.device)
        return sample_on_device(logits, device_params(contexts, logits.device), positions)
    if all(is_sampled):
        return sample(logits, contexts)
    sampled = torch.tensor(is_sampled)
    tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    tokens[~sampled] = most_likely(logits[~sampled])
    tokens[sampled] = sample(logits[sampled], [context for context in contexts if context.params.temperature > 0])
    return tokens


def sample(logits: Tensor, contexts: Sequence[Context]) -> Tensor:
    """Draw a token for every row [R], whose temperature is above 0, from the tokens that its filters keep."""
    params = [context.params for context in contexts]
    logits = logits.float()
    temperatures = _column([max(each.temperature, 1e-30) for each in params], logits)
    logits = (logits - logits.amax(-1, keepdim=True)) / temperatures  # stays within float32
    if any(each.top_k > 0 or each.top_p < 1 or each.min_p > 0 for each in params):
        logits.masked_fill_(logits < cutoff(logits, params), -math.inf)
    return draw(logits, uniform([context.seed for context in contexts], [len(context.ids) for context in contexts]))


def adjust(logits: Tensor, contexts: Sequence[Context]) -> Tensor:
    """Apply penalties, bias and grammar to logits [R, V]. Returns the same tensor if there are none."""
    changed = [row for row, context in enumerate(contexts) if _adjusts(context)]
    if not changed:
        return logits
    if _is_for_gpu(logits):
        return _adjust_on_device(logits, contexts)
    logits = logits.float().clone()
    for row in changed:
        params, ids, start, _, allowed = contexts[row]
        values = logits[row]
        if params.repetition_penalty != 1:
            present = torch.tensor([token for token in set(ids) if token < len(values)])  # not the images'
            old, scale = values[present], params.repetition_penalty
            values[present] = torch.where(old > 0, old / scale, old * scale)
        if (params.presence_penalty or params.frequency_penalty) and len(ids) > start:
            counts = Counter(ids[start:])
            penalties = params.presence_penalty + params.frequency_penalty * torch.tensor([*counts.values()])
            values[torch.tensor([*counts])] -= penalties
        if params.logit_bias:
            tokens = torch.tensor([*params.logit_bias])
            values[tokens] += torch.tensor([*params.logit_bias.values()], dtype=values.dtype)
        if allowed is not None:
            values.masked_fill_(~allowed, -math.inf)
    return logits


def _adjust_on_device(logits: Tensor, contexts: Sequence[Context]) -> Tensor:
    """The same for all rows at once: what to change is listed here, each token of a row once, and then uploaded."""
    vocab_size = logits.shape[1]
    changes: list[tuple[int, float, float, float]] = []
    for row, (params, ids, start, *_) in enumerate(contexts):
        repetition, presence, frequency = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
        repeated = {token for token in set(ids) if token < vocab_size} if repetition != 1 else set()
        counts = Counter(ids[start:]) if presence or frequency else {}
        bias = params.logit_bias or {}
        for token in {*repeated, *counts, *bias}:
            penalty = presence + frequency * counts[token] if token in counts else 0.0
            factor = repetition if token in repeated else 1.0
            changes.append((row * vocab_size + token, factor, penalty, bias.get(token, 0.0)))
    logits = logits.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if changes:
        change_logits(logits, changes)
    allowed = {row: context.allowed for row, context in enumerate(contexts) if context.allowed is not None}
    if allowed:
        allow_only(logits, [*allowed], [*allowed.values()])
    return logits


def _adjusts(context: Context) -> bool:
    """Whether penalties, bias or a grammar may change the logits."""
    params = context.params
    penalties = params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
    return penalties or bool(params.logit_bias) or context.allowed is not None


def cutoff(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """The lowest logit of each row that is kept [R, 1]: within its top k, then within their top p, and not below min p.

    For a CPU. A row's cutoff does not depend on the other rows.
    """
    vocab_size = logits.shape[1]
    lowest = logits.new_full((len(logits), 1), -math.inf)
    ranks = [each.top_k if each.top_k < vocab_size else 0 for each in params]
    if any(ranks):
        rows = [row for row, rank in enumerate(ranks) if rank]
        best = (logits if len(rows) == len(ranks) else logits[rows]).topk(max(ranks)).values
        lowest[rows] = best.gather(1, torch.tensor([[ranks[row] - 1] for row in rows]))
    rows = [row for row, each in enumerate(params) if each.top_p < 1]
    if rows:
        selected, edges = (logits, lowest) if len(rows) == len(params) else (logits[rows], lowest[rows])
        kept = selected if not any(ranks) else selected.masked_fill(selected < edges, -math.inf)
        lowest[rows] = top_p_by_histogram(kept, [params[row].top_p for row in rows])
    if any(each.min_p > 0 for each in params):
        offsets = _column([math.log(each.min_p) if each.min_p > 0 else -math.inf for each in params], logits)
        lowest = lowest.maximum(logits.amax(-1, keepdim=True) + offsets)
    return lowest


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """One value per row [R, 1], of the dtype of `like`."""
    return torch.tensor(values, dtype=like.dtype)[:, None]


BINS, DEPTH = 4096, 40.0  # of a histogram of the logits, from the highest to 40 below it (e^-40 of its mass)


def top_p_by_histogram(logits: Tensor, top_p: Sequence[float]) -> Tensor:
    """The lowest logit of the nucleus [R, 1] (Holtzman et al. 2020): the likeliest tokens that reach top_p together.

    Sorting 152,000 logits would take longer than everything else here: a histogram finds the bin in which the nucleus
    ends, and only that bin is sorted.
    """
    lowest = []
    for row, share in zip(logits, top_p, strict=True):
        top = row.max()
        if math.isnan(float(top)):  # an invalid row, which `draw` marks
            lowest.append(top)
            continue
        below = row - top
        bins = (below * (-(BINS - 1) / DEPTH)).clamp_(max=BINS - 1).int()
        mass = torch.bincount(bins, below.exp_(), minlength=BINS).cumsum(0, dtype=torch.float64)
        target = share * mass[-1]
        edge = int((mass < target).sum())
        inside = row[bins == edge].sort(descending=True).values
        mass_before = mass[edge - 1] if edge else 0.0
        reached = mass_before + (inside - top).double().exp().cumsum(0)
        lowest.append(inside[min(int((reached < target).sum()), len(inside) - 1)])
    return torch.stack(lowest)[:, None]


def top_logprobs(logits: Tensor, tokens: Tensor, count: int) -> Tensor:
    """Natural log-probabilities of the model, before penalties and temperature; `unpack_logprobs` reads them.

    -> [R, 1 + 2 count]: those of the chosen `tokens` [R]; those of the likeliest tokens of each row; and their ids,
    which float32 has exactly.
    """
    logprobs = logits.float().log_softmax(-1)
    best = logprobs.topk(min(count, logits.shape[1]))
    return torch.cat((logprobs.gather(1, tokens[:, None]), best.values, best.indices.float()), 1)


def unpack_logprobs(packed: Sequence[Sequence[float]]) -> list[tuple[float, list[tuple[int, float]]]]:
    """For each row the log-probability of its token, and the likeliest tokens as (id, log-probability)."""
    halves = ((row[0], row[1 : len(row) // 2 + 1], row[len(row) // 2 + 1 :]) for row in packed)
    return [(chosen, [*zip(map(int, ids), values, strict=True)]) for chosen, values, ids in halves]
