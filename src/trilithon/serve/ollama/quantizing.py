"""Weights in fewer bits for a model that is created over the network, with its steps in Ollama's words."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from trilithon.engines.llamacpp.quantize import find_quantizer
from trilithon.engines.llamacpp.quantized import Quantizing, plan_quantized, quantized
from trilithon.errors import ModelError, NoRoom, UserError
from trilithon.models.store.manifest import Manifest
from trilithon.models.store.model_store import ModelStore
from trilithon.serve.http.errors import ApiError
from trilithon.serve.ollama.progress_stream import ProgressStream
from trilithon.serve.validation import wrong
from trilithon.settings import Configuration

__all__ = ["quantized_for"]

_RETRY_SECONDS: Final = 60.0
# Ollama's own, by which its command line finds the bar that it draws; it cuts letters 7 to 19 out of it.
_NO_DIGEST: Final = "0" * 19

_TURN = threading.Lock()


def quantized_for(
    client: ProgressStream, manifest: Manifest, kind: str, store: ModelStore, configuration: Configuration
) -> Manifest:
    """The manifest with other weights, which are in the store. Raises Problem, before the client is told anything, for
    what cannot be done here, and Interrupted when the client leaves before the weights are in the store."""
    plan = _plan(manifest, kind, store, configuration)
    with _turn():
        telling = _QuantiseReport(client, plan)
        steps = (telling.step, telling.keeping)
        return quantized(plan, store, configuration, *steps, check=client.require, low_priority=True)


def _plan(manifest: Manifest, kind: str, store: ModelStore, configuration: Configuration) -> Quantizing:
    try:
        plan = plan_quantized(manifest, kind, store, configuration)
    except NoRoom:
        raise
    except ModelError as error:  # of a file that is here, and does not fit
        raise wrong("quantize", str(error)) from error
    try:
        find_quantizer(configuration, plan.kind)
    except UserError as error:
        raise ApiError(str(error), status=501, field="quantize") from error
    return plan


@contextmanager
def _turn() -> Iterator[None]:
    """Each takes every core for minutes. Whoever waited for that would hold one of the few threads in which models are
    fetched: so they are told to come again."""
    if not _TURN.acquire(blocking=False):
        raise ApiError(
            "another model is being quantised; wait until it is finished",
            status=503,
            kind="overloaded_error",
            retry_after_seconds=_RETRY_SECONDS,
        )
    try:
        yield
    finally:
        _TURN.release()


class _QuantiseReport:
    def __init__(self, client: ProgressStream, plan: Quantizing):
        self._client = client
        self._status = f"quantizing {plan.weights.quantization} model to {plan.kind}"
        self._size_bytes = plan.weights.size_bytes
        self._kept = False

    def step(self, _: str, fraction: float | None) -> None:
        """The figures are of the file that is read, as Ollama's are."""
        completed = int((fraction or 0.0) * self._size_bytes)
        self._client.tell(
            {"status": self._status, "digest": _NO_DIGEST, "total": self._size_bytes, "completed": completed}
        )

    def keeping(self, done: int, total: int) -> None:
        self._client.require()
        if not self._kept:
            self._kept = True
            self._client.tell({"status": "verifying conversion"})
