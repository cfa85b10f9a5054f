"""The request bodies of llama-server, as far as the scripted engine takes them, turned into its own requests."""

from collections.abc import Mapping, Sequence
from typing import Any

from trilithon.engines.scripted.child.model import BOS, VOCABULARY
from trilithon.engines.scripted.child.slot import ScriptedJob
from trilithon.engines.wire.bodies import chat_limits, field_of, fitting, inputs_of, stop_words
from trilithon.engines.wire.http import WireError

__all__ = ["IMAGE", "chat_prompt", "read_chat", "read_completion", "read_inputs", "read_tokens"]

IMAGE = "<image>"


def read_tokens(prompt: Any, *, context: int) -> list[int]:
    """A prompt as text (which gets the begin token), token ids, or a list of both."""
    if isinstance(prompt, str):
        tokens = [BOS, *VOCABULARY.tokenize(prompt)]
    elif not isinstance(prompt, list):
        raise WireError(400, '"prompt" must be a string or a list of tokens and strings')
    elif len(prompt) > 1 and all(isinstance(part, str | list) for part in prompt):
        raise WireError(501, "several prompts in one request: send them one by one", "not_supported_error")
    else:
        tokens = _mixed(prompt)
    return fitting(tokens, context)


def _mixed(parts: Sequence[Any]) -> list[int]:
    tokens: list[int] = [BOS] if parts and isinstance(parts[0], str) else []
    for part in parts:
        if isinstance(part, str):
            tokens += VOCABULARY.tokenize(part)
        elif type(part) is int and 0 <= part < len(VOCABULARY):
            tokens.append(part)
        else:
            raise WireError(400, "Prompt contains invalid tokens")
    return tokens


def _generate(body: Mapping[str, Any], prompt: list[int], limit: int, candidates: int) -> ScriptedJob:
    return ScriptedJob(
        prompt=prompt,
        limit=None if limit < 0 else limit,
        cache=field_of(body, "cache_prompt", bool, True),
        ignore_eos=field_of(body, "ignore_eos", bool, False),
        stop=stop_words(body),
        candidates=candidates,
        slot=field_of(body, "id_slot", int, -1),
    )


def read_completion(body: Mapping[str, Any], *, context: int) -> ScriptedJob:
    if "prompt" not in body:
        raise WireError(400, "key 'prompt' not found")
    limit = field_of(body, "n_predict", int, field_of(body, "max_tokens", int, -1))
    prompt = read_tokens(body["prompt"], context=context)
    return _generate(body, prompt, limit, max(field_of(body, "n_probs", int, 0), 0))


def read_chat(body: Mapping[str, Any], *, context: int) -> ScriptedJob:
    limit, candidates = chat_limits(body)
    return _generate(body, read_tokens(chat_prompt(body), context=context), limit, candidates)


def chat_prompt(body: Mapping[str, Any]) -> str:
    messages = body.get("messages")
    if messages is None:
        raise WireError(400, "'messages' is required")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise WireError(400, "'messages' must be an array of objects")
    turns = (f"<|{message.get('role', 'user')}|>\n{_content(message.get('content'))}\n" for message in messages)
    return "".join(turns) + "<|assistant|>\n"


def _content(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise WireError(400, "'content' must be a string or an array of parts")
    return "".join(str(part.get("text", "")) if part.get("type") == "text" else IMAGE for part in content)


def read_inputs(body: Mapping[str, Any], *, context: int) -> list[list[int]]:
    """The inputs of an embeddings request: one text, one list of tokens, or a list of either."""
    return [read_tokens(part, context=context) for part in inputs_of(body)]
