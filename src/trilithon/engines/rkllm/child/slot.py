"""The one slot of the RKLLM server: requests first come first served, one at a time, and cancelled within one token.

The runtime blocks, so it has a thread of its own; the event loop passes on what that tells."""

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

# An abort that comes before the run has begun is lost on the runtime, so it is repeated.
_ABORT_SECONDS = 0.02


class RkllmSlot(WireSlot[RkllmRequest]):
    """`tokens` are those that the runtime holds keys and values of, as far as that is known."""

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

            kept, self.tokens = self.tokens, []  # not known again before it has ended well
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
        """The last token was given, but nothing was evaluated after it."""
        self.tokens = (answering.tokens or [])[:-1]

    @asynccontextmanager
    async def _in_thread(self, work: Callable[[], _T]) -> AsyncIterator[asyncio.Future[_T]]:
        """On the way out it is over: what was not, is cancelled, and its failure is nobody's any more."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            yield future
        finally:
            while not future.done():
                self.runtime.cancel()
                await asyncio.wait([future], timeout=_ABORT_SECONDS)
            future.exception()

    async def _do(self, work: Callable[[], _T]) -> _T:
        async with self._exclusive(), self._in_thread(work) as future:
            return await asyncio.shield(future)

    async def embed(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        """A unit vector for each: the last layer's state at the last token, as models made for embeddings are
        trained (Qwen3-Embedding)."""
        vectors = []
        for tokens in inputs:
            state = (await self._do(lambda tokens=tokens: self.runtime.hidden(tokens)))[-1].astype(np.float64)  # type: ignore[misc]
            length = float(np.linalg.norm(state))
            vectors.append((state / length if length else state).tolist())
            self.tokens = []
            self.totals.prompt_tokens += len(tokens)
        return vectors

    async def vocabulary(self) -> int:
        """How many token ids there are: the tokenizer's, or the length of the runtime's scores. Raises RuntimeFailed
        where neither is to be had."""
        if self._vocabulary is None:
            if not self.runtime.abi.has_logits:
                raise RuntimeFailed(
                    Reason(f"the number of tokens is not known; {self._text.note}", 501, "not_supported_error")
                )
            scores, _ = await self._do(lambda: self.runtime.logits([0]))
            self.tokens, self._vocabulary = [], len(scores)
        return self._vocabulary

    async def save(self, path: Path) -> tuple[int, int]:
        """Tokens and bytes written. The runtime saves only along with a run, so the last token is evaluated anew."""
        if not self.tokens:
            raise ValueError("there is no evaluated prompt of which the tokens are known; send one first")
        tokens = list(self.tokens)
        await self._do(lambda: self.runtime.generate(tokens, limit=1, on_step=lambda _: True, save=path))
        self.tokens = tokens  # another request may have come before
        _beside(path).write_text(json.dumps(tokens))
        return len(tokens), path.stat().st_size

    async def restore(self, path: Path) -> tuple[int, int]:
        """Tokens and bytes read. Raises OSError, ValueError or RuntimeFailed where there is no such cache."""
        tokens = json.loads(_beside(path).read_text())
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise ValueError(f"{_beside(path).name} is no list of tokens; save it again")
        size_bytes = path.stat().st_size
        await self._do(lambda: self.runtime.load_cache(path))
        self.tokens = tokens
        return len(tokens), size_bytes

    async def erase(self) -> int:
        await self._do(self.runtime.clear)
        erased, self.tokens = len(self.tokens), []
        return erased


def _beside(path: Path) -> Path:
    """The runtime's file does not say which tokens it holds."""
    return path.with_name(f"{path.name}.tokens")
