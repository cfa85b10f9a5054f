"""Raw requests that a handover can take apart: which prompt is in a body of llama-server's, or why nobody can tell.

Field names follow llama-server (tools/server/README.md of llama.cpp).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trilithon.errors import EngineError
from trilithon.runtime.runner import Runner

__all__ = ["generates", "objection", "read_prompt"]

_CHAT, _INFILL = "/v1/chat/completions", "/infill"
_GENERATING = frozenset({"/completion", "/v1/completions", _CHAT, _INFILL})
_TEXTUAL = (None, "text")


def generates(path: str) -> bool:
    """Whether it takes a slot."""
    return path in _GENERATING


async def read_prompt(decoder: Runner, path: str, body: Mapping[str, Any]) -> tuple[tuple[int, ...], str]:
    """The prompt's tokens as the decoder will read them; or none, and why only the decoder can evaluate it."""
    reason = objection(path, body)
    if reason:
        return (), reason
    try:
        prompt = await decoder.rendered(body) if path == _CHAT else body["prompt"]
        return tuple(await decoder.tokenize(prompt) if isinstance(prompt, str) else prompt), ""
    except EngineError as error:  # the request itself will be refused too, in the decoder's own words
        return (), str(error)


def objection(path: str, body: Mapping[str, Any]) -> str:
    """Why only the decoder can evaluate the prompt; empty when both sides can."""
    if path == _INFILL:
        return "only the engine knows how it fills in"
    if any(_more_than_one(body.get(name)) for name in ("n", "n_cmpl")):
        return "several answers to one prompt"
    if body.get("lora"):
        return "the request chooses its own adapters"
    if path == _CHAT:
        return "" if _are_texts(body.get("messages")) else "the messages hold more than text"
    return "" if _is_one_prompt(body.get("prompt")) else "the prompt is neither a text nor a list of tokens"


def _more_than_one(value: Any) -> bool:
    return isinstance(value, int | float) and value > 1


def _are_texts(messages: Any) -> bool:
    """A part of a message that is no text may be anything, of any length in tokens."""
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
