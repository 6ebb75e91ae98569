"""Counters, histograms and gauges for Prometheus, under vLLM's names with `bareloop:` in place of `vllm:`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PREFIX = "bareloop:"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LABEL = "model_name"
REASONS = ("stop", "length", "tool_calls", "abort", "error")

# vLLM's buckets, so that its dashboards fit.
TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    *(80.0, 160.0, 640.0, 2560.0),
)
GAP_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
LATENCY_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0),
    *(960.0, 1920.0, 7680.0),
)
TOKEN_BUCKETS = tuple(mantissa * 10**exponent for exponent in range(6) for mantissa in (1, 2, 5))
STEP_BUCKETS = (1, 8, *(2**exponent for exponent in range(4, 15)))


class Gauges(Protocol):
    """What is read of a loaded model when the metrics are."""

    @property
    def name(self) -> str: ...
    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    def cache_usage(self) -> float: ...


class Finished(Protocol):
    """What is read of a request that has ended. Times in seconds."""

    model: str
    status: int
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    ttft: float
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    finish_reasons: list[str]


class _GaugeCollector(Collector):
    """Reads the models' state when it is asked for."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.loaded: Callable[[], Iterable[Gauges]] = tuple

    def collect(self) -> Iterator[Metric]:
        """One sample for each model; zero for one that is not loaded."""
        running = GaugeMetricFamily(f"{PREFIX}num_requests_running", "Requests that have a row.", labels=[LABEL])
        waiting = GaugeMetricFamily(f"{PREFIX}num_requests_waiting", "Requests in the queue.", labels=[LABEL])
        usage = GaugeMetricFamily(f"{PREFIX}kv_cache_usage_perc", "Cache in use, from 0 to 1.", labels=[LABEL])
        loaded = {gauges.name: gauges for gauges in self.loaded()}
        for name in self.names:
            gauges = loaded.get(name)
            running.add_metric([name], gauges.running if gauges else 0)
            waiting.add_metric([name], gauges.waiting if gauges else 0)
            usage.add_metric([name], gauges.cache_usage() if gauges else 0)
        yield from (running, waiting, usage)


class Metrics:
    """The metrics of one server, in a registry of its own. Safe in several threads."""

    def __init__(self, names: Sequence[str]) -> None:
        """`names`: of all models, whose counters begin at zero."""
        self.registry = CollectorRegistry()
        self._gauges = _GaugeCollector(names)
        self.registry.register(self._gauges)
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self._generation_tokens = self._counter("generation_tokens", "Generated tokens.")
        self._queries = self._counter("prefix_cache_queries", "Tokens that were looked for in the prefix cache.")
        self._hits = self._counter("prefix_cache_hits", "Tokens that were found in the prefix cache.")
        self._preemptions = self._counter("num_preemptions", "Requests that lost their row: none ever does.")
        self._success = self._counter("request_success", "Requests that have ended.", "finished_reason")
        self._ttft = self._histogram("time_to_first_token_seconds", "From a request to its first token.", TTFT_BUCKETS)
        self._gap = self._histogram("inter_token_latency_seconds", "Between a reply's tokens.", GAP_BUCKETS)
        self._e2e = self._histogram("e2e_request_latency_seconds", "From a request to its end.", LATENCY_BUCKETS)
        self._queue = self._histogram("request_queue_time_seconds", "Time in the queue.", LATENCY_BUCKETS)
        self._prefill = self._histogram("request_prefill_time_seconds", "Time of the prompt.", LATENCY_BUCKETS)
        self._decode = self._histogram("request_decode_time_seconds", "Time of the reply.", LATENCY_BUCKETS)
        self._inference = self._histogram("request_inference_time_seconds", "Prompt and reply.", LATENCY_BUCKETS)
        self._prompts = self._histogram("request_prompt_tokens", "Tokens of a prompt.", TOKEN_BUCKETS)
        self._replies = self._histogram("request_generation_tokens", "Tokens of a reply.", TOKEN_BUCKETS)
        self._steps = self._histogram("iteration_tokens_total", "Tokens that a step computed.", STEP_BUCKETS)
        plain = (self._prompt_tokens, self._generation_tokens, self._queries, self._hits, self._preemptions)
        histograms = (self._ttft, self._gap, self._e2e, self._queue, self._prefill, self._decode, self._inference)
        for name in names:
            for metric in (*plain, *histograms, self._prompts, self._replies, self._steps):
                metric.labels(name)
            for reason in REASONS:
                self._success.labels(name, reason)

    def watch(self, loaded: Callable[[], Iterable[Gauges]]) -> None:
        """Set where the loaded models are found."""
        self._gauges.loaded = loaded

    def step(self, model: str, tokens: int, gaps: Sequence[float]) -> None:
        """Count a step: the tokens that it computed, and for each reply the seconds since its last token."""
        self._steps.labels(model).observe(tokens)
        gap = self._gap.labels(model)
        for seconds in gaps:
            gap.observe(seconds)

    def finished(self, served: Finished) -> None:
        """Count a request that has ended. One that was refused before its prompt was computed is not counted."""
        if not served.prompt_tokens:
            return
        model = served.model
        self._prompt_tokens.labels(model).inc(served.prompt_tokens)
        self._generation_tokens.labels(model).inc(served.completion_tokens)
        self._queries.labels(model).inc(served.prompt_tokens)
        self._hits.labels(model).inc(served.cached_tokens)
        for reason in served.finish_reasons:
            self._success.labels(model, reason if reason in REASONS else "abort").inc()
        if served.ttft:
            self._ttft.labels(model).observe(served.ttft)
        self._e2e.labels(model).observe(served.seconds)
        self._queue.labels(model).observe(served.queue_seconds)
        self._prefill.labels(model).observe(served.prefill_seconds)
        self._decode.labels(model).observe(served.decode_seconds)
        self._inference.labels(model).observe(served.prefill_seconds + served.decode_seconds)
        self._prompts.labels(model).observe(served.prompt_tokens)
        self._replies.labels(model).observe(served.completion_tokens)

    def render(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}{name}", about, (LABEL, *labels), registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"{PREFIX}{name}", about, (LABEL,), registry=self.registry, buckets=buckets)
