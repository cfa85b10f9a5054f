"""OpenAI's request bodies, turned into what the engines take: pure functions.

The engines speak this dialect of chat already (llama-server's), so its fields pass; what is checked here is that they
are of their kind, and that none of them is left out in silence. Fields as in OpenAI's API reference and in
tools/server/README.md of llama.cpp."""

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Final
from urllib.parse import unquote

from pydantic import AfterValidator, ConfigDict, Field

from trilithon.engines.base import Feature
from trilithon.serve.openai.extensions import RESIDENCE, UNHELD, Residence, translated
from trilithon.serve.openai.tools import earlier_calls, offer_tools
from trilithon.serve.validation import (
    MOST_MESSAGES,
    MOST_TOOLS,
    Rules,
    ValidatedBody,
    require_schema,
    require_short,
    validate,
    wrong,
)

__all__ = [
    "LONGEST_NAME",
    "SAMPLER_OPTIONS",
    "GenerationBody",
    "Limits",
    "OpenAIChatBody",
    "StopWords",
    "chat_body",
    "form_needs",
]

LONGEST_NAME: Final = 512
MOST_CHOICES: Final = 16
_MOST_TOKENS: Final = 2**31 - 1
_SEEDS: Final = 2**32

Limits = Annotated[int, Field(ge=-1, le=_MOST_TOKENS)]
"""A number of tokens; -1 is llama-server's word for no limit."""
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]


def _without_empty(words: str | list[str]) -> str | list[str] | None:
    """An empty one would end every answer before its first word."""
    return [word for word in words if word] or None if isinstance(words, list) else words or None


StopWords = Annotated[
    str | Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=64)], AfterValidator(_without_empty)
]


class GenerationBody(Residence):
    """What both endpoints take, with OpenAI's bounds. `n` answers are made one after the other."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: Limits | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=_MOST_TOKENS)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: StopWords | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    logit_bias: dict[str, float] | list[Any] | None = None


class OpenAIChatBody(GenerationBody):
    """What is stated here is checked; see `_RULES` for the rest."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Limits | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: Annotated[str, Field(max_length=32)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


SAMPLER_OPTIONS: Final = frozenset(
    {
        *("typical_p", "typ_p", "top_n_sigma", "repeat_penalty", "repeat_last_n", "min_keep", "samplers"),
        *("dynatemp_range", "dynatemp_exponent", "mirostat", "mirostat_tau", "mirostat_eta", "ignore_eos"),
        *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
        *("xtc_probability", "xtc_threshold", "grammar", "json_schema", "n_predict"),
        *("cache_prompt", "n_keep", "n_discard", "n_cache_reuse", "n_indent", "t_max_predict_ms"),
    }
)
"""llama-server's own fields, which both endpoints pass on."""

_READ_HERE = frozenset({"model", "n"}) | RESIDENCE
_RULES = Rules(
    passed=frozenset(OpenAIChatBody.model_fields) - _READ_HERE
    | SAMPLER_OPTIONS
    | {
        *("adaptive_target", "adaptive_decay", "t_max_prompt_ms"),
        *("timings_per_token", "return_progress", "return_tokens", "n_probs", "post_sampling_probs"),
        *("reasoning_format", "reasoning_budget", "thinking_budget_tokens", "reasoning_in_content"),
        *("add_generation_prompt", "continue_final_message", "parse_tool_calls", "enable_thinking"),
    },
    neutral={
        **UNHELD,
        "audio": (),
        "best_of": (1,),
        "chat_template": (),  # a program of the client's, run by the engine
        "echo": (False,),
        "function_call": ("none",),  # the words of 2023; tools and tool_choice took their place
        "functions": ([],),
        "id_slot": (-1,),  # which conversation's memory to use is this server's to say
        "lora": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "response_fields": ([],),
        "verbosity": ("medium",),
        "web_search_options": (),
    },
)

_FORMS = ("text", "json_object", "json_schema")
_PARTS = ("text", "image_url", "refusal", "file")
_ROLES = {"developer": "system"}


def chat_body(fields: Mapping[str, Any]) -> tuple[ValidatedBody, frozenset[Feature]]:
    """What the engine gets for a chat, less the model's name and `n`, and what it must be able to do for it. Raises
    Problem, naming the field."""
    admitted = validate(translated({name: value for name, value in fields.items() if name not in _READ_HERE}), _RULES)
    body = admitted.body
    body["messages"] = _messages(fields["messages"])
    _one_limit(body)
    if not isinstance(body.get("seed", 0), int):  # other APIs have no such field, and pass it on unseen
        raise wrong("seed", "seed must be a whole number")
    if "seed" in body and body["seed"] != -1:
        body["seed"] %= _SEEDS
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise wrong("top_logprobs", "top_logprobs needs logprobs; send logprobs: true too")
    _think(body)
    left_out = offer_tools(body)
    if body.get("tool_choice") == "required":
        body.pop("response_format", None)  # that of a text; the answer is a call
    admitted = replace(admitted, ignored=(*admitted.ignored, *left_out))
    return admitted, form_needs(body) | (_LOGPROBS if body.get("logprobs") else frozenset()) | _sees(body)


_LOGPROBS: frozenset[Feature] = frozenset({"logprobs"})
_VISION: frozenset[Feature] = frozenset({"vision"})
_GRAMMAR: frozenset[Feature] = frozenset({"grammar"})


def _one_limit(body: dict[str, Any]) -> None:
    limits = [body.pop(name) for name in ("max_completion_tokens", "max_tokens", "n_predict") if name in body]
    if limits:
        body["max_tokens"] = limits[0]


def _think(body: dict[str, Any]) -> None:
    """Not to think at all is a template's word of its own; how much effort is passed on as it is."""
    wanted = body.pop("enable_thinking", None)
    if body.get("reasoning_effort") == "none":
        wanted = False
        del body["reasoning_effort"]
    if wanted is not None:
        body["chat_template_kwargs"] = {"enable_thinking": bool(wanted), **body.get("chat_template_kwargs", {})}


def _messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Raises Problem for what no template could render."""
    return [_message(message, at) for at, message in enumerate(messages)]


def _message(message: Mapping[str, Any], at: int) -> dict[str, Any]:
    where = f"messages.{at}"
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise wrong(f"{where}.role", f"{where} has no role; write system, user, assistant or tool")
    if role not in ("system", "developer", "user", "assistant", "tool", "function"):
        raise wrong(f"{where}.role", f"{where}: unknown role {role[:40]!r}; write system, user, assistant or tool")
    if role == "function":
        raise wrong(f"{where}.role", f"{where}: functions were replaced by tools; use the role tool")
    if message.get("audio") is not None:
        raise wrong(f"{where}.audio", f"{where}: audio is not supported; send text")
    converted = {name: value for name, value in message.items() if name not in ("refusal", "audio", "annotations")}
    converted["role"] = _ROLES.get(role, role)
    if converted.get("tool_calls") is not None:
        converted["tool_calls"] = earlier_calls(converted["tool_calls"], where)
    if message.get("refusal") and not message.get("content"):
        converted["content"] = message["refusal"]
    content = converted.get("content")
    if isinstance(content, list):
        converted["content"] = [_part(part, f"{where}.content.{place}") for place, part in enumerate(content)]
    elif content is not None and not isinstance(content, str):
        raise wrong(f"{where}.content", f"{where}.content must be a string or a list of parts")
    elif content is None and not converted.get("tool_calls"):
        converted["content"] = ""
    require_short(content if isinstance(content, str) else "", f"{where}.content")
    return converted


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in _PARTS:
        raise wrong(where, f"{where}: parts of type {str(kind)[:40]} are not supported; use text and image_url")
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, Mapping) else image
        if not isinstance(url, str):
            raise wrong(where, f'{where}: image_url must be {{"url": "data:image/png;base64,…"}}')
        return {"type": "image_url", "image_url": {"url": url}}
    text = _file_text(part.get("file"), where) if kind == "file" else part.get(kind)
    if not isinstance(text, str):
        raise wrong(where, f"{where}: text must be a string")
    require_short(text, where)
    return {"type": "text", "text": text}


def _file_text(file: Any, where: str) -> str:
    """A document of text, sent as a data URL. Raises ApiError for other documents."""
    url = file.get("file_data") if isinstance(file, Mapping) else None
    head, _, content = url.partition(",") if isinstance(url, str) else ("", "", "")
    try:
        if not head.startswith("data:text/"):
            raise ValueError("no text")
        text = base64.b64decode(content, validate=True).decode() if head.endswith(";base64") else unquote(content)
    except ValueError as error:
        message = f"{where}: only files of text are supported; send file_data as data:text/plain;base64,…"
        raise wrong(where, message) from error
    return "\n\n".join([*([str(file["filename"])] if file.get("filename") else []), text])


def _sees(body: Mapping[str, Any]) -> frozenset[Feature]:
    contents = (message.get("content") for message in body["messages"])
    parts = (part for content in contents if isinstance(content, list) for part in content)
    return _VISION if any(part["type"] == "image_url" for part in parts) else frozenset()


def form_needs(body: Mapping[str, Any]) -> frozenset[Feature]:
    """What holds the answer to a form. Raises ApiError for a form that is none."""
    form = body.get("response_format")
    kind = form.get("type") if isinstance(form, Mapping) else "text"
    if kind not in _FORMS:
        raise wrong("response_format", f"response_format.type must be one of {', '.join(_FORMS)}")
    if form is not None and kind == "json_schema":
        named = form.get("json_schema")
        require_schema(
            named.get("schema") if isinstance(named, Mapping) else None, "response_format.json_schema.schema"
        )
    if body.get("json_schema") is not None:
        require_schema(body["json_schema"], "json_schema")
    if body.get("grammar") is not None and (not isinstance(body["grammar"], str) or len(body["grammar"]) > 256 << 10):
        raise wrong("grammar", "grammar must be a string of 256 KiB at most")
    formed = kind != "text" or body.get("json_schema") or body.get("grammar")
    return _GRAMMAR if formed or body.get("tool_choice") == "required" else frozenset()
