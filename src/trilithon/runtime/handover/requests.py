"""The prompt in the body of a llama-server request, or why only the decoder can evaluate it.

Field names follow llama-server (tools/server/README.md of llama.cpp)."""

from collections.abc import Mapping, Sequence
from typing import Any

from trilithon.errors import EngineError
from trilithon.runtime.runner import Runner

__all__ = ["generates", "objection", "read_prompt"]

_CHAT, _INFILL = "/v1/chat/completions", "/infill"
_GENERATING = frozenset({"/completion", "/v1/completions", _CHAT, _INFILL})
_TEXTUAL = (None, "text")


def generates(path: str) -> bool:
    """Whether requests to this path use a slot."""
    return path in _GENERATING


async def read_prompt(decoder: Runner, path: str, body: Mapping[str, Any]) -> tuple[tuple[int, ...], str]:
    """The tokens of the prompt as the decoder reads them; or none, and why only the decoder can evaluate it."""
    reason = objection(path, body)
    if reason:
        return (), reason
    try:
        prompt = await decoder.apply_template(body) if path == _CHAT else body["prompt"]
        return tuple(await decoder.tokenize(prompt) if isinstance(prompt, str) else prompt), ""
    except EngineError as error:  # the decoder will refuse the request too, with the same message
        return (), str(error)


def objection(path: str, body: Mapping[str, Any]) -> str:
    """Why only the decoder can evaluate the prompt; empty when both halves can."""
    if path == _INFILL:
        return "the prompt of an infill request is built by the engine"
    if any(_more_than_one(body.get(name)) for name in ("n", "n_cmpl")):
        return "the request asks for several answers"
    if body.get("lora"):
        return "the request selects its own LoRA adapters"
    if path == _CHAT:
        return "" if _are_texts(body.get("messages")) else "the messages contain more than text"
    return "" if _is_one_prompt(body.get("prompt")) else "the prompt is neither a string nor a list of tokens"


def _more_than_one(value: Any) -> bool:
    return isinstance(value, int | float) and value > 1


def _are_texts(messages: Any) -> bool:
    """A part of a message that is not text has an unknown number of tokens."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        return False
    return all(isinstance(message, Mapping) and _is_text(message.get("content")) for message in messages)


def _is_text(content: Any) -> bool:
    if content is None or isinstance(content, str):
        return True
    return isinstance(content, Sequence) and all(
        isinstance(part, Mapping) and part.get("type") in _TEXTUAL for part in content
    )


def _is_one_prompt(prompt: Any) -> bool:
    return isinstance(prompt, str) or (
        isinstance(prompt, Sequence) and bool(prompt) and all(type(token) is int for token in prompt)
    )
