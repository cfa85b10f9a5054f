"""What Prometheus may ask: requests, tokens, times, the pool, and what the board's sensors say at that moment.

No label ever holds what a client made up: models have the names that they bear here, routes are patterns."""

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from trilithon.serve.monitoring.board_readings import BoardReadings
from trilithon.serve.monitoring.scrape import PoolFigures, Scrape
from trilithon.serve.request_record import Generated, RequestRecord
from trilithon.serve.service import Service

__all__ = ["Metrics", "router"]

router = APIRouter()

_MOST_MODELS = 64
_OTHER = "other"
# A small model on a PC answers in milliseconds, a long prompt on a board in minutes.
_FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2)
_REQUEST_SECONDS = (0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """A registry of its own for each application, so that two in one process do not share counts."""

    def __init__(self, readings: BoardReadings | None = None, *, most_models: int = _MOST_MODELS):
        disable_created_metrics()  # type: ignore[no-untyped-call] # a series more for each
        self.registry = CollectorRegistry()
        self.readings = readings or BoardReadings()
        self._most_models = most_models
        self._models: set[str] = set()
        self._requests = self._counter("trilithon_requests", "Answered requests", "dialect", "route", "status")
        self._retried = self._counter(
            "trilithon_retried", "Requests retried after an engine died before the first token", "dialect"
        )
        self._seconds = self._histogram(
            "trilithon_request_seconds", "Request duration", _REQUEST_SECONDS, "dialect", "route"
        )
        self.in_flight = Gauge("trilithon_requests_in_flight", "Running requests", registry=self.registry)
        self._prompt = self._counter("trilithon_prompt_tokens", "Prompt tokens evaluated", "model", "unit")
        self._cached = self._counter("trilithon_cached_tokens", "Prompt tokens from the KV cache", "model", "unit")
        self._generated = self._counter("trilithon_generated_tokens", "Tokens generated", "model", "unit")
        self._guessed = self._counter("trilithon_guessed_tokens", "Drafted tokens", "model", "unit")
        self._right = self._counter("trilithon_guessed_right_tokens", "Accepted drafted tokens", "model", "unit")
        self._prefill = self._counter("trilithon_prefill_seconds", "Prefill time", "model", "unit")
        self._decode = self._counter("trilithon_decode_seconds", "Decode time", "model", "unit")
        self._first = self._histogram(
            "trilithon_first_token_seconds", "Time to first token", _FIRST_TOKEN_SECONDS, "model", "unit"
        )
        self._token = self._histogram(
            "trilithon_token_seconds", "Time between tokens, mean per answer", _TOKEN_SECONDS, "model", "unit"
        )
        ProcessCollector(registry=self.registry)

    def count(self, record: RequestRecord) -> None:
        route = record.route or "none"
        self._requests.labels(record.dialect, route, str(record.told_status or record.status)).inc()
        self._seconds.labels(record.dialect, route).observe(record.seconds)
        if record.retried:
            self._retried.labels(record.dialect).inc(record.retried)
        for generation in record.generated:
            self._count_answer(generation)
        if record.generated and record.first_token_seconds is not None:
            first = record.generated[0]
            self._first.labels(self._model(first.model), first.prefill_unit).observe(record.first_token_seconds)

    async def text(self, pool: PoolFigures | None, *, openmetrics_wanted: bool = False) -> tuple[bytes, str]:
        """The body and its media type."""
        scrape = Scrape(self.registry, pool, await self.readings.now(), self._model)
        if openmetrics_wanted:
            body: bytes = openmetrics.generate_latest(scrape)  # type: ignore[no-untyped-call] # it has no hints
            return body, openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(scrape), CONTENT_TYPE_PLAIN_0_0_4

    def _count_answer(self, answer: Generated) -> None:
        model, timings = self._model(answer.model), answer.timings
        self._prompt.labels(model, answer.prefill_unit).inc(max(timings.prompt_n, 0))
        self._cached.labels(model, answer.prefill_unit).inc(max(timings.cache_n, 0))
        self._prefill.labels(model, answer.prefill_unit).inc(max(timings.prompt_ms, 0.0) / 1e3)
        self._generated.labels(model, answer.decode_unit).inc(max(timings.predicted_n, 0))
        if timings.draft_n > 0:
            self._guessed.labels(model, answer.decode_unit).inc(timings.draft_n)
            self._right.labels(model, answer.decode_unit).inc(max(timings.draft_accepted, 0))
        self._decode.labels(model, answer.decode_unit).inc(max(timings.predicted_ms, 0.0) / 1e3)
        if answer.token_seconds is not None:
            self._token.labels(model, answer.decode_unit).observe(answer.token_seconds)

    def _model(self, name: str) -> str:
        """The first so many have a name of their own: each label costs memory here and in every store of metrics."""
        if name not in self._models and len(self._models) >= self._most_models:
            return _OTHER
        self._models.add(name)
        return name

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, help_text, labels, buckets=buckets, registry=self.registry)


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Figures in Prometheus' text format, or OpenMetrics where that is asked for."""
    registry = request.app.state.metrics
    assert isinstance(registry, Metrics)
    service: Service | None = getattr(request.app.state, "service", None)
    wanted = "application/openmetrics-text" in request.headers.get("accept", "")
    body, media_type = await registry.text(service.pool if service else None, openmetrics_wanted=wanted)
    return Response(body, media_type=media_type)
