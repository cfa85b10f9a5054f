"""The slot of the RKLLM server. The runtime blocks, so it runs in a thread; a request is cancelled within one token."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from trilithon.engines.rkllm.child.answering import Answering, RkllmRequest
from trilithon.engines.rkllm.child.log import Reason
from trilithon.engines.rkllm.child.runtime import RkllmRuntime, RuntimeFailed
from trilithon.engines.rkllm.child.template import ModelText
from trilithon.engines.wire.bodies import Totals
from trilithon.engines.wire.generation import GeneratedToken, GenerationStep
from trilithon.engines.wire.slot import WireSlot

__all__ = ["RkllmSlot"]

_T = TypeVar("_T")

# The runtime ignores an abort before the run has begun, so it is repeated.
_ABORT_SECONDS = 0.02


class RkllmSlot(WireSlot[RkllmRequest]):
    """`ends` are the tokens that end an answer."""

    def __init__(self, runtime: RkllmRuntime, text: ModelText, ends: frozenset[int]):
        super().__init__(runtime.context, Totals())
        self.runtime = runtime
        self._text = text
        self._ends = ends
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rkllm")
        self._vocabulary = text.vocabulary

    @asynccontextmanager
    async def _exclusive(self) -> AsyncIterator[None]:
        async with super()._exclusive():
            self.runtime.renew()
            yield

    async def generate(self, request: RkllmRequest) -> AsyncGenerator[GenerationStep]:
        async with self._exclusive():
            loop, queue = asyncio.get_running_loop(), asyncio.Queue[GeneratedToken | None]()

            def put(token: GeneratedToken) -> None:
                loop.call_soon_threadsafe(queue.put_nowait, token)

            kept, self.tokens = self.tokens, []  # unknown until the request has ended without an error
            answering = Answering(self.runtime, self._text, self._ends, request, put, kept)
            self._count_request()
            async with self._in_thread(answering.run) as work:
                work.add_done_callback(lambda _: queue.put_nowait(None))
                while (token := await queue.get()) is not None:
                    self._count_token()
                    yield token
                end = work.result()
            self._keep(answering)
            self.totals.add(end.timings)
            yield end

    def _keep(self, answering: Answering) -> None:
        """The last token was sampled, but not evaluated."""
        self.tokens = (answering.tokens or [])[:-1]

    @asynccontextmanager
    async def _in_thread(self, work: Callable[[], _T]) -> AsyncIterator[asyncio.Future[_T]]:
        """The work has ended when the block is left: if it had not, it is cancelled, and its errors are ignored."""

        def trusted() -> _T:
            with self.runtime.trusted():
                return work()

        future = asyncio.get_running_loop().run_in_executor(self._thread, trusted)
        try:
            yield future
        finally:
            while not future.done():
                self.runtime.cancel()
                await asyncio.wait([future], timeout=_ABORT_SECONDS)
            future.exception()

    async def _in_turn(self, work: Callable[[], _T]) -> _T:
        async with self._exclusive(), self._in_thread(work) as future:
            return await asyncio.shield(future)

    async def embed(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        """One unit vector for each input: the last layer's state at the last token, as embedding models are trained
        (Qwen3-Embedding)."""
        vectors = []
        for tokens in inputs:
            state = (await self._in_turn(lambda tokens=tokens: self.runtime.hidden(tokens)))[-1].astype(np.float64)  # type: ignore[misc]
            length = float(np.linalg.norm(state))
            vectors.append((state / length if length else state).tolist())
            self.tokens = []
            self.totals.prompt_tokens += len(tokens)
        return vectors

    async def vocabulary(self) -> int:
        """The number of token ids: of the tokenizer, or the length of the runtime's scores. Raises RuntimeFailed where
        there is neither."""
        if self._vocabulary is None:
            if not self.runtime.abi.has_logits:
                raise RuntimeFailed(
                    Reason(f"the number of tokens is not known; {self._text.note}", 501, "not_supported_error")
                )
            scores, _ = await self._in_turn(lambda: self.runtime.logits([0]))
            self.tokens, self._vocabulary = [], len(scores)
        return self._vocabulary

    async def save(self, path: Path) -> tuple[int, int]:
        """The runtime saves only during a run, so the last token is evaluated again."""
        if not self.tokens:
            raise ValueError("there is no evaluated prompt with known tokens; send one first")
        tokens = list(self.tokens)
        await self._in_turn(lambda: self.runtime.generate(tokens, limit=1, on_step=lambda _: True, save=path))
        self.tokens = tokens  # another request may have run before
        _token_file(path).write_text(json.dumps(tokens))
        return len(tokens), path.stat().st_size

    async def restore(self, path: Path) -> tuple[int, int]:
        tokens = json.loads(_token_file(path).read_text())
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise ValueError(f"{_token_file(path).name} is not a list of tokens; save it again")
        size_bytes = path.stat().st_size
        await self._in_turn(lambda: self.runtime.load_cache(path))
        self.tokens = tokens
        return len(tokens), size_bytes

    async def erase(self) -> int:
        await self._in_turn(self.runtime.clear)
        erased, self.tokens = len(self.tokens), []
        return erased


def _token_file(path: Path) -> Path:
    """The tokens of a saved cache, which are not in the runtime's file."""
    return path.with_name(f"{path.name}.tokens")
