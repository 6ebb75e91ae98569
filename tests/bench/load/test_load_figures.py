"""Percentiles, rates and goodput beside numpy, on made-up times."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.load.figures import Figures, percentile
from bench.load.records import Record, Setting


@settings(max_examples=40)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 100))
def test_percentiles_are_numpys(values, percent):
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent), rel=1e-9, abs=1e-9)


def test_a_percentile_of_nothing_is_not_a_number():
    assert math.isnan(percentile([], 50))


def made_up(seed: int, count: int = 200) -> Setting:
    """Requests with random times, lengths and errors."""
    random = np.random.default_rng(seed)
    setting = Setting("rate", 4.0)
    for number in range(count):
        sent = float(random.uniform(0, 60))
        tokens = int(random.integers(1, 20))
        chunks = (sent + np.cumsum(random.exponential(0.1, tokens))).tolist()
        record = Record(sent, sent, chunks, chunks[-1], "ok", "", int(random.integers(5, 90)), tokens)
        record.cached_tokens = int(random.integers(0, record.prompt_tokens)) if number % 3 else None
        record.status = str(random.choice(["ok", "ok", "ok", "429", "timeout"]))
        setting.records.append(record)
    return setting


@pytest.mark.parametrize("seed", range(3))
def test_rates_and_goodput_are_those_of_a_plain_loop(seed):
    setting = made_up(seed)
    figures = Figures.of(setting, ttft_target=0.1, tpot_target=0.09)
    seconds = max(r.ended for r in setting.records) - min(r.sent for r in setting.records)
    good = [r for r in setting.records if r.status == "ok"]
    ttft = np.array([r.chunks[0] - r.sent for r in good])
    tpot = np.array(
        [(r.ended - r.chunks[0]) / (r.completion_tokens - 1) if r.completion_tokens > 1 else 0 for r in good]
    )
    assert figures.goodput == pytest.approx(np.sum((ttft <= 0.1) & (tpot <= 0.09)) / seconds)
    assert 0 < figures.goodput < figures.request_rate == pytest.approx(len(good) / seconds)
    assert figures.output_rate == pytest.approx(sum(r.completion_tokens for r in good) / seconds)
    assert figures.input_rate == pytest.approx(sum(r.prompt_tokens for r in good) / seconds)
    assert figures.ttft == pytest.approx(ttft)
    assert figures.gaps == pytest.approx(np.concatenate([np.diff(r.chunks) for r in good]))
    assert figures.latency == pytest.approx([r.ended - r.sent for r in good])
    known = [r for r in good if r.cached_tokens is not None]
    share = sum(r.cached_tokens for r in known) / sum(r.prompt_tokens for r in known)
    assert figures.cached_share == pytest.approx(share)
    assert figures.requests == 200 and sum(figures.errors.values()) == 200 - len(good)


def test_a_setting_without_answers_has_rates_of_zero():
    setting = Setting("concurrency", 1, [Record(0, 0, status="500", ended=0.0)])
    figures = Figures.of(setting, 1, 1)
    assert figures.output_rate == figures.goodput == 0 and figures.errors == {"500": 1}
    assert figures.cached_share is None and Figures.of(Setting("rate", 1.0), 1, 1).requests == 0
