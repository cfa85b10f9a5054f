"""What every API needs: a model's answer, from the placement that suits, loaded when it must be."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from trilithon.engines.base import Feature, Placement, Task
from trilithon.errors import ContextExceeded, ModelError
from trilithon.models.files.model_file import ModelFile
from trilithon.models.store.resolve import model_name
from trilithon.runtime.pool.pool import Lease, Pool
from trilithon.runtime.relay import DirectWriter
from trilithon.runtime.runner import NO_WORK, Runner
from trilithon.runtime.trials.grammar import is_tried
from trilithon.serve.catalog.catalog import Catalog, CatalogEntry
from trilithon.serve.catalog.pulls import Pulls
from trilithon.serve.forms.answer_form import AnswerForm
from trilithon.serve.forms.constraint import Constrained, constrained, is_free
from trilithon.serve.generation import AnswerReader, End, Generation, Piece
from trilithon.serve.http.errors import ApiError
from trilithon.serve.http.keep_alive import EVENTS
from trilithon.serve.monitoring.handover_log import HandoverLog
from trilithon.serve.no_tokens import one_token, without_token
from trilithon.serve.request_defaults import fitted, require_kind
from trilithon.serve.request_record import note_first_token, note_generated, note_placed
from trilithon.serve.retry import RetriedRequest

__all__ = ["Answer", "Service", "placed_for", "pool_key", "task_of"]


@dataclass(slots=True)
class Answer:
    """One request at work. Read it once, by `chunks` or `read` (the engine's bytes as they are) or by `events`; closing
    what gave it cancels the request."""

    entry: CatalogEntry
    placement: Placement
    started_ns: int
    _asking: RetriedRequest
    _wants_no_token: bool = False
    form: AnswerForm | None = None
    ignored: tuple[str, ...] = ()
    end: End | None = field(default=None)
    _counts: Sequence["asyncio.Task[int]"] = ()

    @property
    def load_seconds(self) -> float:
        """What this request waited for the model to be loaded."""
        return self._asking.lease.load_seconds

    async def chunks(self, writer: DirectWriter | None = None) -> AsyncIterator[bytes]:
        """The body's bytes, except those that went to the direct writer. Returns once the body has begun."""
        if self._wants_no_token:
            return _one_chunk(without_token(b"".join([chunk async for chunk in await self._asking.chunks()])))
        if self.form is None:
            return await self._asking.chunks(writer)
        return self.form.streamed(await self._asking.chunks())

    async def read(self) -> bytes:
        """Of an answer that is not streamed."""
        if self.form is None or self._wants_no_token:
            return b"".join([chunk async for chunk in await self.chunks()])
        return await self.form.whole(b"".join([chunk async for chunk in await self._asking.chunks()]))

    async def events(self) -> AsyncIterator[Piece | End]:
        """Pieces of a streamed answer, `End` last."""
        reader = AnswerReader()
        async for chunk in await self.chunks():
            for piece in reader.feed(chunk):
                yield piece
        end = reader.end()
        # Of a handover the stream tells the second half alone; these are of the request as a whole.
        whole = None if self._wants_no_token else self._asking.relayed.timings
        self.end = replace(end, timings=whole or end.timings)
        yield self.end

    async def prompt_tokens(self) -> int:
        """Where the generation said what to count. Raises RunError."""
        return await self._counts[-1]

    def note(self) -> None:
        """For the log and the metrics of the request that this task works for."""
        if self._asking.relayed.timings is None:
            return
        if self._asking.relayed.content_type.startswith(EVENTS):
            note_first_token(self._asking.relayed.first_ns)
        ran = self.provenance()
        note_generated(
            model=self.entry.name,
            placement=ran["placement"],
            prefill_unit=ran["prefill_unit"],
            decode_unit=ran["decode_unit"],
            timings=self._asking.relayed.timings,
        )

    def provenance(self) -> dict[str, Any]:
        """Which engine and unit did what, for the answer's `timings`; seconds and bytes."""
        placement, result = self.placement, self._asking.relayed.handover
        prefill = placement.prefill if result is not None and result.prefill_tokens else None
        fields: dict[str, Any] = {
            "placement": placement.name,
            "engine": placement.build.engine,
            "build": placement.build.name,
            "prefill_unit": (prefill or placement).unit,
            "decode_unit": placement.unit,
        }
        if result is not None:
            fields |= {
                "prefill_seconds": result.prefill_ms / 1e3,
                "transfer_seconds": result.transfer_ms / 1e3,
                "transfer_bytes": result.transfer_bytes,
            }
            if result.reason:
                fields["reason"] = result.reason
        if state := self._asking.lease.runner.handover:
            fields["handover"] = asdict(state)
        return fields


class Service:
    """`caller` tells clients apart, so that they are served in turn."""

    def __init__(self, shelf: Catalog, pool: Pool):
        self.shelf = shelf
        self.pool = pool
        self.pulls = Pulls(shelf)
        self._handover_log = HandoverLog()

    @contextlib.asynccontextmanager
    async def answer(self, generation: Generation, caller: str) -> AsyncIterator[Answer]:
        """Raises ModelError, PlacementError, Busy, RunError, Problem."""
        started_ns = time.monotonic_ns()
        entry, key, placement = await self._placed(
            generation.model, generation.context, _task(generation), generation.path, generation.placement
        )
        _require(generation, placement)
        for_one = one_token(generation.body)
        body = fitted(generation.path, for_one or generation.body, placement.file, generation.model)
        form = Constrained(body=body)
        if not is_free(generation.path, body, generation.custom_tools):  # a schema may be large
            form = await asyncio.to_thread(constrained, generation.path, body, placement, generation.custom_tools)
        note_placed(placement)
        counts: list[asyncio.Task[int]] = []

        @contextlib.asynccontextmanager
        async def take() -> AsyncIterator[Lease]:
            keep = generation.keep_alive_seconds
            needs_slot = generation.path not in NO_WORK
            load_seconds = 0.0
            if needs_slot and is_tried(generation.path, form.body):  # others have the slot meanwhile
                async with self.pool.lease(key, placement, caller=caller, needs_slot=False) as lease:
                    load_seconds = lease.load_seconds
                    await lease.runner.admit(generation.path, form.body)
            async with self.pool.lease(
                key, placement, caller=caller, keep_alive_seconds=keep, needs_slot=needs_slot
            ) as lease:
                self._handover_log.note(entry.name, lease.runner.handover)
                if generation.counted:
                    counts.append(asyncio.create_task(_count(lease.runner, generation.counted)))
                try:
                    yield replace(lease, load_seconds=load_seconds + lease.load_seconds)
                finally:
                    for count in counts:
                        count.cancel()
                    await asyncio.gather(*counts, return_exceptions=True)
                    self._handover_log.note(entry.name, lease.runner.handover)

        with _advised(placement):
            async with RetriedRequest(take, generation.path, form.body) as asking:
                answer = Answer(
                    entry, placement, started_ns, asking, for_one is not None, form.form, form.ignored, _counts=counts
                )
                yield answer
                answer.note()

    async def ask(self, generation: Generation, caller: str) -> tuple[list[Piece], Answer]:
        """All of a streamed answer at once; `answer.end` says how it ended. The body has to ask for a stream."""
        async with self.answer(generation, caller) as answer:
            pieces = [event async for event in answer.events() if isinstance(event, Piece)]
        return pieces, answer

    async def forward(self, model: str, path: str, body: Mapping[str, Any], caller: str) -> tuple[Answer, bytes]:
        """An endpoint that answers at once with JSON: /tokenize, /detokenize, /apply-template, /v1/embeddings."""
        async with self.answer(Generation(model=model, path=path, body=body), caller) as answer:
            return answer, await answer.read()

    async def load(
        self, model: str, caller: str, keep_alive_seconds: float | None, context: int | None = None
    ) -> float:
        """Seconds that it took; 0 where it was loaded."""
        _, key, placement = await self._placed(model, context)
        async with self.pool.lease(key, placement, caller=caller, keep_alive_seconds=keep_alive_seconds) as lease:
            return lease.load_seconds

    async def unload(self, model: str) -> bool:
        """As soon as it is idle; False where it was not loaded."""
        return await self.unload_entry(await asyncio.to_thread(self.shelf.find, model))

    async def unload_entry(self, entry: CatalogEntry) -> bool:
        """As `unload`, of this model: its name may also be an alias of another one."""
        keys = {loaded.key for loaded in self.pool.loaded()} | {*self.pool.pinned}
        own = [key for key in keys if key == entry.name or key.startswith(f"{entry.name} (")]
        return any([await self.pool.unload(key) for key in own])

    async def entry(self, model: str) -> CatalogEntry:
        """An empty name is the only model there is, or the only one that is loaded. Raises ModelError and Problem."""
        # A thread takes 1 to 2 ms, which the first token would come later, and to read a loaded model's manifest again
        # takes 0.15 ms.
        named = self.shelf.meant(model)
        if named and self._is_loaded(named) and (stored := self.shelf.find_stored(named)):
            return stored
        return await asyncio.to_thread(self._entry, model)

    def _is_loaded(self, name: str) -> bool:
        try:
            return str(model_name(name)) in self._loaded_names()
        except ModelError:  # an alias with wildcards may fit all the same
            return False

    def _loaded_names(self) -> set[str]:
        return {key.partition(" (")[0] for key in self.pool.placements()}

    def _entry(self, model: str) -> CatalogEntry:
        if model:
            return self.shelf.find(model)
        names = self._loaded_names()
        entries = [entry for entry in self.shelf.models() if not names or entry.name in names]
        if len(entries) != 1:
            raise ApiError(
                "model is required; name one of GET /v1/models in the field model", status=400, field="model"
            )
        return entries[0]

    async def _placed(
        self, model: str, context: int | None, task: Task = "generate", path: str = "", spelled: str = ""
    ) -> tuple[CatalogEntry, str, Placement]:
        """With the pool's key. A loaded runner with room enough is kept: clients that ask for another context each
        time must not reload it."""
        entry = await self.entry(model)
        placement = self._loaded(entry, task, context, spelled)
        file = placement.file if placement else await asyncio.to_thread(self.shelf.file, entry)
        require_kind(path, file, model or entry.name)
        if task == "rank" and file.kind != "reranker":
            raise ApiError(f"{entry.name} does not rank texts; choose a reranking model", status=400, field="model")
        # A model that generates nothing is loaded for what it does, whatever is asked: its tokens are counted there.
        task = task_of(file) if task == "generate" else task
        placement = placement or self._loaded(entry, task, context, spelled)
        if placement is None:
            placement = placed_for(task, await asyncio.to_thread(self.shelf.placement, entry, context, spelled))
        return entry, pool_key(entry, task, spelled), placement

    def _loaded(self, entry: CatalogEntry, task: Task, context: int | None, spelled: str) -> Placement | None:
        placement = self.pool.placements().get(pool_key(entry, task, spelled))
        if placement is None:
            return None
        has = placement.settings.context or 0
        return placement if has >= min(context or 0, placement.file.context_train or has) else None


@contextlib.contextmanager
def _advised(placement: Placement) -> Iterator[None]:
    """An input that is too long: the limit as it is served here, and how to raise it."""
    try:
        yield
    except ContextExceeded as error:
        served, trained = placement.settings.context, placement.file.context_train
        error.context = min((limit for limit in (error.context, served) if limit), default=None)
        if served and trained and served >= trained:
            error.advice = "shorten it, or choose a model that was trained for more"
        else:
            most = f", up to {trained}" if trained else ""
            error.advice = f"shorten it, or serve a longer context (--context, num_ctx in options{most})"
        raise


async def _count(runner: Runner, chat: Mapping[str, Any]) -> int:
    return len(await runner.tokenize(await runner.apply_template(chat)))


async def _one_chunk(content: bytes) -> AsyncIterator[bytes]:
    yield content


# A model that makes vectors is loaded apart: one that answers cannot make them.
_SUFFIXES: Mapping[Task, str] = {"generate": "", "embed": " (vectors)", "rank": " (ranks)"}
_KINDS: Mapping[str, Task] = {"embedding": "embed", "reranker": "rank"}


def _task(generation: Generation) -> Task:
    if generation.path == "/v1/rerank":
        return "rank"
    return "embed" if "embeddings" in generation.needs else "generate"


def task_of(file: ModelFile) -> Task:
    """What a model is loaded for, where no request says it."""
    return _KINDS.get(file.kind, "generate")


def placed_for(task: Task, placement: Placement) -> Placement:
    if task == "generate":
        return placement
    return replace(placement, settings=replace(placement.settings, task=task, slots=1), prefill=None)


def pool_key(entry: CatalogEntry, task: Task, spelled: str = "") -> str:
    return entry.name + _SUFFIXES[task] + (f" ({spelled})" if spelled else "")


_WORDS: Mapping[Feature, str] = {
    "logprobs": "returns no log-probabilities",
    "grammar": "does not support structured output",
    "vision": "does not support images",
    "embeddings": "returns no embeddings",
    "speculation": "does not speculate",
    "handover": "does not support handover",
    "llguidance": "has no llguidance",
}


def _require(generation: Generation, placement: Placement) -> None:
    """Raises Problem for what the placement cannot do."""
    for need in sorted(generation.needs - placement.build.features):
        raise ApiError(f"{placement.name} {_WORDS[need]}; leave that out, or choose another placement", status=400)
    if "logprobs" in generation.needs and placement.settings.speculation:
        raise ApiError(
            f"{placement.name} uses speculative decoding, which computes no probabilities for drafted tokens; leave "
            "out logprobs, or choose a placement without spec",
            status=400,
            field="logprobs",
        )
    if "vision" in generation.needs and placement.file.vision_encoder is None:
        raise ApiError(f"{generation.model} does not support images; choose a model with a vision encoder", status=400)
