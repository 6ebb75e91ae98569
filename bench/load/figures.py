"""Figures of a setting: rates, percentiles of times, goodput. Loads without torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.load.records import OK, Record, Setting


def percentile(values: Sequence[float], percent: float) -> float:
    """A percentile, interpolated linearly between the two values beside it, as numpy does. NaN without values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


@dataclass(frozen=True)
class Figures:
    """What a setting comes to. Times in seconds, rates per second; only successful requests count."""

    requests: int
    errors: dict[str, int]  # by status
    input_rate: float  # tokens
    output_rate: float  # tokens
    request_rate: float
    goodput: float  # requests that meet all targets
    cached_share: float | None  # of the prompt tokens; None: the server does not say
    mean_input: float  # tokens of a request
    mean_output: float
    ttft: list[float]
    tpot: list[float]
    gaps: list[float]
    latency: list[float]

    @classmethod
    def of(cls, setting: Setting, ttft_target: float, tpot_target: float) -> Figures:
        """The figures of a setting; `goodput` counts the requests within the targets."""
        good: list[Record] = setting.good
        seconds = setting.seconds or math.inf
        prompt_tokens = sum(record.prompt_tokens for record in good)
        completion_tokens = sum(record.completion_tokens for record in good)
        known = [record for record in good if record.cached_tokens is not None]
        known_tokens = sum(record.prompt_tokens for record in known)
        return cls(
            requests=len(setting.records),
            errors=dict(Counter(record.status for record in setting.records if record.status != OK)),
            input_rate=prompt_tokens / seconds,
            output_rate=completion_tokens / seconds,
            request_rate=len(good) / seconds,
            goodput=sum(record.meets(ttft_target, tpot_target) for record in good) / seconds,
            cached_share=sum(record.cached_tokens or 0 for record in known) / known_tokens if known_tokens else None,
            mean_input=prompt_tokens / max(len(good), 1),
            mean_output=completion_tokens / max(len(good), 1),
            ttft=[record.ttft for record in good if record.ttft is not None],
            tpot=[record.tpot for record in good if record.tpot is not None],
            gaps=[gap for record in good for gap in record.gaps],
            latency=[record.latency for record in good],
        )
