"""The request bodies of llama-server, read once for all servers that are written in Python."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from trilithon.engines.wire.bodies import field_of
from trilithon.engines.wire.generation import GenerationRequest
from trilithon.engines.wire.http import WireError

__all__ = ["RenderedPrompt", "RequestReader", "TextCodec", "chat_messages", "offered_tools"]

R = TypeVar("R", bound=GenerationRequest)

_ANY_TOKEN = 1 << 31


class TextCodec(Protocol):
    """Text to token ids and back. The methods raise UserError where there is no tokenizer or an id is out of range."""

    @property
    def note(self) -> str: ...

    @property
    def has_tokenizer(self) -> bool: ...

    @property
    def vocabulary(self) -> int | None: ...

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]: ...

    def detokenize(self, tokens: Sequence[int]) -> str: ...

    def bytes_of(self, token: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A conversation after the chat template. `tokens` is None where only the engine can tokenize `text`, and then
    applies its own template. `reasoning_opened`: the answer begins inside a thinking block."""

    text: str
    tokens: tuple[int, ...] | None
    reasoning_opened: bool


class RequestReader(ABC, Generic[R]):
    """Reads bodies for one model with a context of `context` tokens. Every method raises WireError or UserError."""

    def __init__(self, text: TextCodec, context: int):
        self.text = text
        self.context = context

    @abstractmethod
    def rendered(self, body: Mapping[str, Any]) -> RenderedPrompt:
        """The chat template applied to the conversation in `body`."""

    @abstractmethod
    def request(self, body: Mapping[str, Any], common: GenerationRequest) -> R:
        """`common` with what only this engine reads from `body`."""

    def completion(self, body: Mapping[str, Any]) -> R:
        if "prompt" not in body:
            raise WireError(400, "key 'prompt' not found")
        limit = field_of(body, "n_predict", int, field_of(body, "max_tokens", int, -1))
        candidates = max(field_of(body, "n_probs", int, 0), 0)
        return self.request(body, self._common(body, self._prompt(body["prompt"]), limit, candidates))

    def chat(self, body: Mapping[str, Any]) -> R:
        return self.chat_of(body, self.rendered(body))

    def chat_of(self, body: Mapping[str, Any], rendered: RenderedPrompt) -> R:
        """The chat in `body`, of which the template gave `rendered`."""
        prompt = rendered.text if rendered.tokens is None else self._fitting(list(rendered.tokens))
        common = self._common(
            body,
            prompt,
            *_chat_limits(body),
            split_reasoning=body.get("reasoning_format") != "none",
            reasoning_opened=rendered.reasoning_opened,
            tools=_names(offered_tools(body)),
        )
        return self.request(body, common)

    def inputs(self, body: Mapping[str, Any]) -> list[list[int]]:
        """The inputs of an embeddings request: one text, one list of tokens, or a list of either."""
        inputs = body.get("input", body.get("content"))
        if inputs is None:
            raise WireError(400, '"input" or "content" must be provided')
        if not isinstance(inputs, list) or not all(isinstance(part, str | list) for part in inputs):
            inputs = [inputs]
        if not inputs:
            raise WireError(400, '"input" must not be empty')
        return [self.tokens(part) for part in inputs]

    def tokens(self, prompt: Any) -> list[int]:
        """A prompt as text (with the special tokens of the tokenizer), token ids, or a list of both."""
        if isinstance(prompt, str):
            return self._fitting(self.text.tokenize(prompt, add_special=True))
        if not isinstance(prompt, list):
            raise WireError(400, '"prompt" must be a string or a list of tokens and strings')
        if len(prompt) > 1 and all(isinstance(part, str | list) for part in prompt):
            raise WireError(501, "several prompts in one request: send them one by one", "not_supported_error")
        return self._fitting([token for place, part in enumerate(prompt) for token in self._part(part, place)])

    def _part(self, part: Any, place: int) -> Sequence[int]:
        if isinstance(part, str):
            return self.text.tokenize(part, add_special=place == 0)
        if type(part) is not int or not 0 <= part < (self.text.vocabulary or _ANY_TOKEN):
            raise WireError(400, "Prompt contains invalid tokens")
        return (part,)

    def _prompt(self, prompt: Any) -> str | list[int]:
        if isinstance(prompt, str) and not self.text.has_tokenizer:
            return prompt if prompt else self._fitting([])
        return self.tokens(prompt)

    def _fitting(self, tokens: list[int]) -> list[int]:
        """`tokens`, where there is at least one and room for an answer after them."""
        if not tokens:
            raise WireError(400, '"prompt" must not be empty')
        if len(tokens) >= self.context:
            message = f"request ({len(tokens)} tokens) exceeds the available context size ({self.context} tokens)"
            kind = "exceed_context_size_error"
            raise WireError(400, message, kind, n_prompt_tokens=len(tokens), n_ctx=self.context)
        return tokens

    def _common(
        self, body: Mapping[str, Any], prompt: str | list[int], limit: int, candidates: int, **chat: Any
    ) -> GenerationRequest:
        room = self.context - (0 if isinstance(prompt, str) else len(prompt))
        return GenerationRequest(
            prompt=prompt,
            limit=max(min(limit, room) if limit >= 0 else room, 1),  # llama-server samples one token even for limit 0
            candidates=candidates,
            cache=field_of(body, "cache_prompt", bool, True),
            ignore_eos=field_of(body, "ignore_eos", bool, False),
            stop=_stop_words(body),
            slot=field_of(body, "id_slot", int, -1),
            **chat,
        )


def _stop_words(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop") or []
    words = [stop] if isinstance(stop, str) else stop
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise WireError(400, '"stop" must be a string or a list of strings')
    return tuple(word for word in words if word)


def _chat_limits(body: Mapping[str, Any]) -> tuple[int, int]:
    """The maximum number of tokens, -1 for no limit, and the number of candidates per token."""
    limits = [body[name] for name in ("max_completion_tokens", "max_tokens", "n_predict") if body.get(name) is not None]
    limit = field_of({"max_tokens": limits[0]} if limits else {}, "max_tokens", int, -1)
    logprobs = field_of(body, "logprobs", bool, False)
    return limit, max(field_of(body, "top_logprobs", int, 0), 1) if logprobs else 0


def chat_messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a chat: objects with text, or parts of the types text and image_url, as their content."""
    messages = body.get("messages")
    if messages is None:
        raise WireError(400, "'messages' is required")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise WireError(400, "'messages' must be an array of objects, and not empty")
    for message in messages:
        _check_content(message.get("content"))
        _check_calls(message.get("tool_calls") or [])
    return messages


def _check_content(content: Any) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise WireError(400, "'content' must be a string or an array of parts")
    for part in content:
        if part.get("type") not in ("text", "image_url"):
            raise WireError(400, f"content of the type {part.get('type')} is not supported; use text or image_url")


def _check_calls(calls: Any) -> None:
    if not isinstance(calls, list) or not all(
        isinstance(call, dict) and isinstance(call.get("function"), dict) for call in calls
    ):
        raise WireError(400, "'tool_calls' must be an array of objects with a function")


def offered_tools(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    tools = body.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise WireError(400, '"tools" must be a list of objects')
    return [] if body.get("tool_choice") == "none" else tools


def _names(tools: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    functions = (tool.get("function") for tool in tools)
    return frozenset(str(entry["name"]) for entry in functions if isinstance(entry, dict) and "name" in entry)
