"""A question put to the service as every client's is, and what is known of the answer: how fast it came, and from
where."""

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from trilithon.serve.generation import Generation, Piece
from trilithon.serve.openai.bodies import chat_body
from trilithon.serve.service import Answer, Service
from trilithon.serve.validation import require_sound
from trilithon.web.chat.energy import EnergyMeter
from trilithon.web.chat.tree import ChatMessage, ChatSettings

__all__ = ["Question", "generation_of"]


def generation_of(model: str, wishes: ChatSettings, messages: Sequence[ChatMessage], placement: str = "") -> Generation:
    """Raises Problem for what the API would refuse too."""
    told: list[dict[str, Any]] = [{"role": "system", "content": wishes.system}] if wishes.system.strip() else []
    told += [{"role": message.role, "content": _content(message)} for message in messages]
    body: dict[str, Any] = {"messages": told, "stream": True, "cache_prompt": True}
    sampling = {"temperature": wishes.temperature, "top_p": wishes.top_p, "seed": wishes.seed}
    body |= {name: value for name, value in sampling.items() if value is not None}
    if wishes.max_tokens is not None:
        body["max_tokens"] = wishes.max_tokens
    require_sound(body)  # the API's bodies are checked as they are read
    admitted, needs = chat_body(body)
    return Generation(
        model=model,
        path="/v1/chat/completions",
        body=admitted.body,
        needs=needs,
        context=wishes.context,
        placement=placement,
    )


def _content(message: ChatMessage) -> str | list[dict[str, Any]]:
    if not message.images:
        return message.text
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in message.images]
    return [{"type": "text", "text": message.text}, *pictures]


@dataclass
class Question:
    """One answer under way. `figures`, once it is over: `first_seconds` to the first piece, `load_seconds` of them for
    the model, the engine's own `prefill_rate` and `decode_rate` (tokens per second), counts of tokens, which unit did
    what, whether it was `cut` at the most tokens allowed, and `joules_per_token` of the decode where `metered`: not
    for one of two at once, since a meter does not tell them apart."""

    service: Service
    caller: str
    generation: Generation
    figures: dict[str, Any] = field(default_factory=dict)
    metered: bool = True

    async def pieces(self) -> AsyncIterator[Piece]:
        """Closing it cancels the request. Raises TrilithonError."""
        began_ns, first_ns = time.monotonic_ns(), 0
        async with contextlib.AsyncExitStack() as around:
            meter = await around.enter_async_context(EnergyMeter()) if self.metered else None
            async with self.service.answer(self.generation, self.caller) as answer:
                self.figures |= {"placement": answer.placement.name, "load_seconds": answer.load_seconds}
                try:
                    async for event in answer.events():
                        if isinstance(event, Piece):
                            first_ns = first_ns or time.monotonic_ns()
                            self.figures["first_seconds"] = (first_ns - began_ns) / 1e9
                            yield event
                finally:
                    self._add(answer)
        joules = meter.joules_since(first_ns) if meter is not None and first_ns else None
        if joules is not None and self.figures.get("answer_tokens", 0) > 1:
            self.figures["joules_per_token"] = joules / (self.figures["answer_tokens"] - 1)

    def _add(self, answer: Answer) -> None:
        """Of an answer that was stopped: only where it came from."""
        ran = answer.provenance()
        self.figures |= {name: ran[name] for name in ("engine", "prefill_unit", "decode_unit")}
        if answer.end is not None and answer.end.reason == "length":
            self.figures["cut"] = True
        timings = answer.end.timings if answer.end else None
        if timings is None:
            return
        self.figures |= {"prompt_tokens": timings.prompt_n, "cached_tokens": timings.cache_n}
        self.figures["answer_tokens"] = timings.predicted_n
        if timings.prompt_n and timings.prompt_ms > 0:
            self.figures["prefill_rate"] = timings.prompt_n / timings.prompt_ms * 1e3
        if timings.predicted_n > 1 and timings.predicted_ms > 0:
            self.figures["decode_rate"] = timings.predicted_n / timings.predicted_ms * 1e3
