"""The request bodies of llama-server, turned into what the RKLLM runtime can do; what it cannot is refused by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from trilithon.engines.rkllm.child.answering import GenerationJob
from trilithon.engines.rkllm.child.structs import GREEDY, Picture, Prompt, RkllmSampling
from trilithon.engines.rkllm.child.template import ModelText
from trilithon.engines.rkllm.child.template import Prompt as RenderedPrompt
from trilithon.engines.rkllm.child.vision import VisionEncoder, images_in
from trilithon.engines.wire.bodies import NUMBER_LIMIT, chat_limits, field_of, fitting, inputs_of, stop_words
from trilithon.engines.wire.http import WireError
from trilithon.errors import UserError

__all__ = ["ChatRequest", "Vision", "chat_prompt", "read_chat", "read_completion", "read_inputs", "read_tokens"]

_T = TypeVar("_T")

Vision = tuple[VisionEncoder | None, str]
"""What looks at pictures, or why nothing does."""

_UNSUPPORTED = "not_supported_error"

# What the runtime has no word for: the value with which it means nothing, as some clients send it with every request.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (0, 1),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "echo": (False,),
    "grammar": ("",),
    "image_data": ([],),
    "json_schema": ({},),
    "lora": ([],),
    "min_p": (0,),
    "n": (1,),
    "n_indent": (0,),
    "response_fields": ([],),
    "response_format": ({"type": "text"},),
    "samplers": ([],),
    "suffix": ("",),
    "t_max_predict_ms": (0, -1),
    "tfs_z": (1,),
    "tool_choice": ("auto", "none"),
    "top_n_sigma": (-1,),
    "typ_p": (1,),
    "typical_p": (1,),
    "xtc_probability": (0,),
}
_RANDOM_SEEDS = (-1, 2**32 - 1)
_WINDOWS = (64, -1)  # llama-server's, and "the whole context"; how far the runtime looks back is not documented

# The runtime's defaults, from its guide (1.3.0), for requests that want other than the most probable token.
_DEFAULT = RkllmSampling(top_k=40, top_p=0.9, temperature=0.8, repeat_penalty=1.1)
_LEAST_TEMPERATURE, _MOST_TEMPERATURE = 1e-3, 10.0
_ALL_TOKENS = 100_000
_MOST_DIGITS = 11
_GREEDY_WORDS = ("n_probs", "logprobs", "logit_bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A chat as the slot takes it, and what the answer must know: the names of the offered tools."""

    generate: GenerationJob
    tools: frozenset[str]


def _refuse_what_is_not_there(body: Mapping[str, Any], *, greedy: bool) -> None:
    for name, neutral in _NEUTRAL.items():
        if body.get(name) is not None and body[name] not in neutral:
            raise WireError(400, f'"{name}" is nothing that the RKLLM runtime can do; leave it out', _UNSUPPORTED)
    if not greedy and body.get("seed") is not None and body["seed"] not in _RANDOM_SEEDS:
        message = '"seed" is nothing that the RKLLM runtime can do; leave it out, or set "temperature" to 0'
        raise WireError(400, message, _UNSUPPORTED)
    if body.get("repeat_last_n") is not None and body["repeat_last_n"] not in _WINDOWS:
        raise WireError(400, '"repeat_last_n" cannot be set in the RKLLM runtime; leave it out', _UNSUPPORTED)


def _sampling(body: Mapping[str, Any]) -> RkllmSampling:
    temperature = _within(body, "temperature", _DEFAULT.temperature, 0, _MOST_TEMPERATURE)
    top_k = field_of(body, "top_k", int, _DEFAULT.top_k)
    plain = RkllmSampling(
        repeat_penalty=_within(body, "repeat_penalty", _DEFAULT.repeat_penalty, 0.1, 10),
        frequency_penalty=_within(body, "frequency_penalty", 0.0, -2, 2),
        presence_penalty=_within(body, "presence_penalty", 0.0, -2, 2),
    )
    if temperature < _LEAST_TEMPERATURE or top_k == 1:
        return plain
    return replace(
        plain,
        top_k=min(top_k, _ALL_TOKENS) if top_k > 0 else _ALL_TOKENS,
        top_p=_within(body, "top_p", _DEFAULT.top_p, 0, 1),
        temperature=temperature,
        mirostat=int(_within(body, "mirostat", 0, 0, 2)),
        mirostat_tau=_within(body, "mirostat_tau", GREEDY.mirostat_tau, 0.01, 100),
        mirostat_eta=_within(body, "mirostat_eta", GREEDY.mirostat_eta, 0.001, 10),
    )


def _within(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = field_of(body, name, float, float(default))
    if not low <= value <= high:
        raise WireError(400, f'"{name}" must be from {low:g} to {high:g}')
    return value


def _bias(body: Mapping[str, Any], text: ModelText) -> dict[int, float]:
    """llama-server's pairs, or OpenAI's object; a text stands for its token, False for never."""
    given = body.get("logit_bias") or []
    pairs = list(given.items()) if isinstance(given, dict) else given
    bias = {}
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[1], int | float):
            raise WireError(400, '"logit_bias" must be a list of pairs of a token and a number')
        named = str(pair[0])
        token = int(named) if named.isdecimal() and len(named) < _MOST_DIGITS else text.token(named)
        if token is None:
            raise WireError(400, f'"logit_bias" names {named[:99]!r}, which is no token of this model')
        if not abs(pair[1]) <= NUMBER_LIMIT:
            raise WireError(400, f'"logit_bias" must have numbers up to {NUMBER_LIMIT:g}')
        bias[token] = -NUMBER_LIMIT if pair[1] is False else float(pair[1])
    return bias


def _generate(
    body: Mapping[str, Any], prompt: Prompt, *, limit: int, candidates: int, context: int, text: ModelText, **more: Any
) -> GenerationJob:
    sampling = _sampling(body)
    _refuse_what_is_not_there(body, greedy=sampling.top_k == 1)
    known = not isinstance(prompt, str)
    bias, ignore_eos = _bias(body, text), field_of(body, "ignore_eos", bool, False)
    if (candidates or bias) and sampling != GREEDY:
        # The runtime gives scores in place of an answer; the choice is then made here, and only the plainest one.
        named = next((name for name in _GREEDY_WORDS if body.get(name)), "top_logprobs")
        raise WireError(400, f'"{named}" needs "temperature" 0 and no penalties with the RKLLM runtime', _UNSUPPORTED)
    if (candidates or bias or ignore_eos) and not known:
        named = next((name for name in (*_GREEDY_WORDS, "ignore_eos") if body.get(name)), "prompt")
        raise WireError(400, f'"{named}" needs token ids; {text.note or "send them"}', _UNSUPPORTED)
    room = context - (len(prompt) if known else 0)  # type: ignore[arg-type]
    return GenerationJob(
        prompt=prompt,
        limit=max(min(limit, room) if limit >= 0 else room, 1),  # one token is sampled even where none is asked for
        cache=field_of(body, "cache_prompt", bool, True),
        sampling=sampling,
        stop=stop_words(body),
        ignore_eos=ignore_eos,
        candidates=candidates,
        bias=bias,
        **more,
    )


def read_completion(body: Mapping[str, Any], *, context: int, vocabulary: int, text: ModelText) -> GenerationJob:
    """`vocabulary` is the number of token ids, or 0 where it is not known."""
    if "prompt" not in body:
        raise WireError(400, "key 'prompt' not found")
    prompt: Prompt
    if isinstance(body["prompt"], str) and not text.has_tokenizer:
        prompt = _not_empty(body["prompt"])
    else:
        prompt = read_tokens(body["prompt"], context=context, vocabulary=vocabulary, text=text)
    limit = field_of(body, "n_predict", int, field_of(body, "max_tokens", int, -1))
    candidates = max(field_of(body, "n_probs", int, 0), 0)
    return _generate(body, prompt, limit=limit, candidates=candidates, context=context, text=text)


def _not_empty(prompt: str) -> str:
    if not prompt:
        raise WireError(400, '"prompt" must not be empty')
    return prompt


def read_tokens(prompt: Any, *, context: int, vocabulary: int, text: ModelText) -> list[int]:
    """A prompt as text (with the tokenizer's special tokens), token ids, or a list of both."""
    if isinstance(prompt, str):
        tokens = _told(lambda: text.tokenize(prompt, add_special=True))
    elif not isinstance(prompt, list):
        raise WireError(400, '"prompt" must be a string or a list of tokens and strings')
    elif len(prompt) > 1 and all(isinstance(part, str | list) for part in prompt):
        raise WireError(501, "several prompts in one request: send them one by one", _UNSUPPORTED)
    else:
        tokens = [token for place, part in enumerate(prompt) for token in _part(part, place, vocabulary, text)]
    return fitting(tokens, context)


def _part(part: Any, place: int, vocabulary: int, text: ModelText) -> Sequence[int]:
    if isinstance(part, str):
        return _told(lambda: text.tokenize(part, add_special=place == 0))
    if type(part) is not int or not 0 <= part < (vocabulary or 1 << 31):
        raise WireError(400, "Prompt contains invalid tokens")
    return (part,)


def _told(work: Callable[[], _T]) -> _T:
    """What the model's files do not allow is the request's fault."""
    try:
        return work()
    except UserError as error:
        raise WireError(400, str(error)) from error


def read_chat(body: Mapping[str, Any], *, context: int, text: ModelText, thinking: bool, vision: Vision) -> ChatRequest:
    thinks = _thinks(body, thinking)
    limit, candidates = chat_limits(body)
    picture = _picture(body, vision)
    rendered = RenderedPrompt("", None, False) if picture else chat_prompt(body, text=text, thinking=thinking)
    generate = _generate(
        body,
        rendered.text if rendered.tokens is None else fitting(list(rendered.tokens), context),
        limit=limit,
        candidates=candidates,
        context=context,
        text=text,
        thinking=thinks,
        split_reasoning=body.get("reasoning_format") != "none",
        reasoning_opened=rendered.reasoning_opened,
        picture=picture,
    )
    return ChatRequest(generate=generate, tools=_tool_names(body))


def _picture(body: Mapping[str, Any], vision: Vision) -> Callable[[], Picture] | None:
    """How to encode the conversation with its pictures; None where there are none."""
    messages = _messages(body)
    if not _told(lambda: images_in(messages)):
        return None
    encoder, reason = vision
    if encoder is None:
        raise WireError(501, reason, _UNSUPPORTED)
    if _tools(body):
        raise WireError(
            400, '"tools" and pictures do not go together in the RKLLM runtime; leave out one', _UNSUPPORTED
        )
    return lambda: encoder.chat(messages)


def chat_prompt(body: Mapping[str, Any], *, text: ModelText, thinking: bool) -> RenderedPrompt:
    """The conversation as the model takes it."""
    messages, thinks = _messages(body), _thinks(body, thinking)
    return _told(lambda: text.chat(messages, tools=_tools(body), enable_thinking=thinks))


def _thinks(body: Mapping[str, Any], default: bool) -> bool:
    words = field_of(body, "chat_template_kwargs", dict, {})
    if unknown := words.keys() - {"enable_thinking"}:
        message = f'"chat_template_kwargs" takes enable_thinking alone; leave out {", ".join(sorted(unknown))}'
        raise WireError(400, message, _UNSUPPORTED)
    wanted = words.get("enable_thinking", body.get("enable_thinking"))
    return default if wanted is None else bool(wanted)


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
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
            raise WireError(400, f"content of the type {part.get('type')} is not taken; there are text and image_url")


def _check_calls(calls: Any) -> None:
    if not isinstance(calls, list) or not all(
        isinstance(call, dict) and isinstance(call.get("function"), dict) for call in calls
    ):
        raise WireError(400, "'tool_calls' must be an array of objects with a function")


def _tools(body: Mapping[str, Any]) -> list[Any]:
    tools = body.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise WireError(400, '"tools" must be a list of objects')
    return [] if body.get("tool_choice") == "none" else tools


def _tool_names(body: Mapping[str, Any]) -> frozenset[str]:
    functions = (tool.get("function") for tool in _tools(body))
    return frozenset(str(each["name"]) for each in functions if isinstance(each, dict) and "name" in each)


def read_inputs(body: Mapping[str, Any], *, context: int, vocabulary: int, text: ModelText) -> list[list[int]]:
    """The inputs of an embeddings request: one text, one list of tokens, or a list of either."""
    return [read_tokens(part, context=context, vocabulary=vocabulary, text=text) for part in inputs_of(body)]
