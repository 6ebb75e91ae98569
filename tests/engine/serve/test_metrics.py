"""Metrics under vLLM's names, as Prometheus reads them."""

from __future__ import annotations

import io
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from engine.serve.metrics import CONTENT_TYPE, Metrics
from engine.serve.request_log import Observer, Served

GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
COUNTERS = ("prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits", "num_preemptions")
HISTOGRAMS = (
    *("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"),
    *(f"request_{phase}_time_seconds" for phase in ("queue", "prefill", "decode", "inference")),
    *("request_prompt_tokens", "request_generation_tokens", "iteration_tokens_total"),
)


@dataclass
class Loaded:
    name: str
    running: int = 3
    waiting: int = 2

    def cache_usage(self) -> float:
        return 0.25


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """(name, label values…) -> value"""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name.removeprefix("bareloop:"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def served(metrics: Metrics, **fields: object) -> Served:
    result = Observer(metrics, output=io.StringIO()).started("POST", "/v1/completions", "a")
    for name, value in fields.items():
        setattr(result, name, value)
    return result


def test_every_metric_of_every_model_is_there_before_the_first_request():
    found = samples(Metrics(["a", "b/c"]))
    for model in ("a", "b/c"):
        for name in (*GAUGES, *(f"{name}_total" for name in COUNTERS), *(f"{name}_count" for name in HISTOGRAMS)):
            assert found[name, model] == 0, name
        for reason in ("stop", "length", "tool_calls", "abort", "error"):
            matching = [key for key in found if key[0] == "request_success_total" and {model, reason} <= {*key}]
            assert [found[key] for key in matching] == [0]


def test_gauges_are_read_from_the_loaded_models_when_they_are_asked_for():
    metrics, loaded = Metrics(["a", "b"]), [Loaded("b")]
    metrics.watch(lambda: loaded)
    first = samples(metrics)
    assert [first[name, "b"] for name in GAUGES] == [3, 2, 0.25]
    assert [first[name, "a"] for name in GAUGES] == [0, 0, 0]
    loaded[0].running = 7
    assert samples(metrics)["num_requests_running", "b"] == 7


def test_a_finished_request_is_counted_once_in_every_metric():
    metrics = Metrics(["a"])
    times = {"ttft": 0.03, "queue_seconds": 0.1, "prefill_seconds": 0.4, "decode_seconds": 2.0, "seconds": 2.5}
    counts = {"prompt_tokens": 77, "cached_tokens": 51, "completion_tokens": 12}
    metrics.finished(served(metrics, **times, **counts, finish_reasons=["stop", "length"]))
    found = samples(metrics)
    assert [found[f"{name}_total", "a"] for name in COUNTERS] == [77, 12, 77, 51, 0]
    sums = {"time_to_first_token_seconds": 0.03, "e2e_request_latency_seconds": 2.5}
    sums |= {f"request_{name}_time_seconds": times[f"{name}_seconds"] for name in ("queue", "prefill", "decode")}
    sums |= {"request_inference_time_seconds": 2.4, "request_prompt_tokens": 77, "request_generation_tokens": 12}
    for name, total in sums.items():
        assert found[f"{name}_count", "a"] == 1, name
        assert abs(found[f"{name}_sum", "a"] - total) < 1e-9, name
    counted = {key[1:]: value for key, value in found.items() if key[0] == "request_success_total" and value}
    assert sorted(counted.values()) == [1, 1]
    assert {"stop", "length"} <= {label for labels in counted for label in labels}


def test_a_request_that_was_refused_is_not_counted():
    metrics = Metrics(["a"])
    before = metrics.render()
    metrics.finished(served(metrics, status=404, model="nobody"))
    assert metrics.render() == before


def test_buckets_are_those_of_vllm():
    found = samples(Metrics(["a"]))
    borders = {
        name: [float(key[1 if key[1] != "a" else 2]) for key in found if key[0] == f"{name}_bucket"]
        for name in HISTOGRAMS
    }
    expected = {
        "time_to_first_token_seconds": (0.001, 2560.0, 22),
        "inter_token_latency_seconds": (0.01, 80.0, 19),
        "e2e_request_latency_seconds": (0.3, 7680.0, 21),
        "iteration_tokens_total": (1.0, 16384.0, 13),
    }
    for name, (first, last, count) in expected.items():
        assert (borders[name][0], borders[name][-2], len(borders[name]) - 1) == (first, last, count), name


def test_a_step_is_counted_with_the_gaps_of_its_replies():
    metrics = Metrics(["a"])
    metrics.step("a", 128, [])
    metrics.step("a", 2, [0.02, 0.03])
    found = samples(metrics)
    assert (found["iteration_tokens_total_count", "a"], found["iteration_tokens_total_sum", "a"]) == (2, 130)
    assert found["inter_token_latency_seconds_count", "a"] == 2


def test_two_servers_in_one_process_do_not_share_metrics():
    one, other = Metrics(["a"]), Metrics(["a"])
    one.step("a", 5, [])
    assert samples(other)["iteration_tokens_total_count", "a"] == 0
    assert CONTENT_TYPE.startswith("text/plain")
