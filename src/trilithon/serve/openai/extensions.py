"""Fields that other servers with OpenAI's API take besides OpenAI's own: in its words, or in llama-server's.

vLLM's are in its documents on structured outputs and sampling parameters, OpenRouter's `reasoning` in its API
reference, `thinking` in those of DeepSeek and Anthropic; `format`, `think`, `keep_alive` and `num_ctx` are Ollama's."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field

from trilithon.serve.ollama.options import keep_alive_seconds, sampling_of
from trilithon.serve.validation import wrong

__all__ = ["RESIDENCE", "TRANSLATED", "UNHELD", "Residence", "translated"]

RESIDENCE: Final = frozenset({"keep_alive", "num_ctx", "options"})
TRANSLATED: Final = frozenset(
    {
        *("format", "guided_choice", "guided_json", "repetition_penalty", "structured_outputs"),
        *("reasoning", "think", "thinking", "thinking_budget"),
    }
)
UNHELD: Final[Mapping[str, tuple[Any, ...]]] = {
    "allowed_token_ids": (),
    "bad_words": ([],),
    "documents": ([],),
    "early_stopping": (False,),
    "guided_grammar": (),  # another language than llama-server's grammars
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "min_tokens": (0,),
    "prompt_logprobs": (0,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "tfs_z": (1,),
    "top_a": (0,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}
"""As `Rules.neutral`."""

_MOST_CHOICES = 256
_MOST_EFFORT = 32  # as of the field reasoning_effort
_EFFORTS = ("low", "medium", "high", "max")
# Of a string in llama-server's grammars; a JSON string has other escapes.
_ESCAPED = re.compile(r'[\x00-\x1f"\\\x7f]')


class Residence(BaseModel):
    """How long the model stays loaded, and the least context, as in Ollama's API. Of `options` only `num_ctx` is read:
    samplers are fields of the body."""

    keep_alive: float | str | None = None
    num_ctx: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    options: dict[str, Any] | None = None

    def residence(self) -> dict[str, Any]:
        """Fields of a Generation. Raises ApiError."""
        options = {name: value for name, value in (self.options or {}).items() if value is not None}
        for name in options:
            if name != "num_ctx":
                raise wrong(f"options.{name}", f"options.{name} is not read here; send {name} as a field of the body")
        context = self.num_ctx or sampling_of(options, {}).context
        return {"keep_alive_seconds": keep_alive_seconds(self.keep_alive), "context": context}


def translated(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ApiError for a field that is not of its kind, and for two forms of one answer."""
    body = {name: value for name, value in fields.items() if name not in TRANSLATED and value is not None}
    extensions = {name: fields[name] for name in TRANSLATED if fields.get(name) is not None}
    if "repetition_penalty" in extensions:
        body.setdefault("repeat_penalty", extensions["repetition_penalty"])
    for name, form in _forms(extensions).items():
        if any(body.get(other) for other in ("response_format", "json_schema", "grammar")):
            raise wrong(name, f"{name} is one of several forms of the answer; send one")
        body |= form
    for name, value in _thought(extensions).items():
        body.setdefault(name, value)
    return body


def _forms(extensions: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What each extension asks for, by its name."""
    forms = {}
    if "guided_json" in extensions:
        forms["guided_json"] = _schema_form(extensions["guided_json"], "guided_json")
    if "guided_choice" in extensions:
        forms["guided_choice"] = _choice_form(extensions["guided_choice"], "guided_choice")
    outputs = extensions.get("structured_outputs") or {}
    if not isinstance(outputs, Mapping):
        raise wrong("structured_outputs", 'structured_outputs must be an object: {"json": …}')
    for kind, value in outputs.items():
        if value is None:
            continue
        where = f"structured_outputs.{kind}"
        if kind not in ("json", "choice"):
            raise wrong(where, f"{where} is not supported; use json or choice")
        forms[where] = _schema_form(value, where) if kind == "json" else _choice_form(value, where)
    if form := extensions.get("format"):
        is_any = form == "json"
        forms["format"] = {"response_format": {"type": "json_object"}} if is_any else _schema_form(form, "format")
    return forms


def _schema_form(schema: Any, where: str) -> dict[str, Any]:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise wrong(where, f"{where} must be a JSON schema: an object") from error
    if not isinstance(schema, Mapping):
        raise wrong(where, f"{where} must be a JSON schema: an object")
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


def _choice_form(choices: Any, where: str) -> dict[str, Any]:
    texts = choices if isinstance(choices, list) else []
    if not 0 < len(texts) <= _MOST_CHOICES or not all(isinstance(text, str) and text for text in texts):
        raise wrong(where, f"{where} must be a list of 1 to {_MOST_CHOICES} texts")
    return {"grammar": "root ::= " + " | ".join(map(_quoted, texts))}


def _quoted(text: str) -> str:
    return '"' + _ESCAPED.sub(lambda match: f"\\x{ord(match[0]):02x}", text) + '"'


def _thought(extensions: Mapping[str, Any]) -> dict[str, Any]:
    """How much is thought before the answer."""
    thought: dict[str, Any] = {}
    reasoning = _reasoning(extensions.get("reasoning"))
    enabled = reasoning.get("enabled")
    thinking = extensions.get("thinking")
    if isinstance(thinking, bool):
        thinking = {"type": "enabled" if thinking else "disabled"}
    thinking = _object(thinking, "thinking")
    kind = thinking.get("type", "enabled")
    if kind not in ("enabled", "disabled", "adaptive", "auto"):
        raise wrong("thinking.type", "thinking.type must be enabled, disabled or adaptive")
    think = extensions.get("think")
    if think is not None and not isinstance(think, bool) and think not in _EFFORTS:
        raise wrong("think", f"think must be true, false, {', '.join(_EFFORTS[:-1])} or {_EFFORTS[-1]}")
    if thinking or think is not None or enabled is not None:
        thought["enable_thinking"] = kind != "disabled" and think is not False and enabled is not False
    if effort := think if isinstance(think, str) else reasoning.get("effort"):
        thought["reasoning_effort"] = effort
    limits = {
        "reasoning.max_tokens": reasoning.get("max_tokens"),
        "thinking.budget_tokens": thinking.get("budget_tokens"),
        "thinking_budget": extensions.get("thinking_budget"),
    }
    for name, limit in limits.items():
        if limit is not None:
            if type(limit) is not int or limit < 0:
                raise wrong(name, f"{name} must be a number of tokens")
            thought["thinking_budget_tokens"] = limit
    return thought


def _reasoning(value: Any) -> Mapping[str, Any]:
    reasoning = _object(value, "reasoning")
    if reasoning.get("exclude"):
        raise wrong("reasoning.exclude", "reasoning.exclude is not supported; leave it out")
    effort = reasoning.get("effort")
    if effort is not None and not (isinstance(effort, str) and len(effort) <= _MOST_EFFORT):
        raise wrong("reasoning.effort", f"reasoning.effort must be a text of at most {_MOST_EFFORT} characters")
    if not isinstance(reasoning.get("enabled"), bool | None):
        raise wrong("reasoning.enabled", "reasoning.enabled must be true or false")
    return reasoning


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise wrong(name, f"{name} must be an object")
    return value or {}
