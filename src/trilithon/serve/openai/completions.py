"""OpenAI's older endpoint, which continues a text: its bodies to and from the engines' own `/completion`.

It is converted and not passed through: not every engine has it, and llama-server gives log-probabilities in another
form than clients of this endpoint know."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Annotated, Any, Final

from pydantic import Field

from trilithon.engines.base import Feature
from trilithon.engines.wire.messages import Timings
from trilithon.serve.generation import Piece
from trilithon.serve.openai.bodies import SAMPLER_OPTIONS, GenerationBody, form_needs
from trilithon.serve.openai.extensions import RESIDENCE, UNHELD, translated
from trilithon.serve.validation import Rules, ValidatedBody, require_few, require_short, validate, wrong

__all__ = ["CompletionBody", "completion_body", "legacy_logprobs", "prompts_of", "usage_of"]

_MOST_PROMPTS: Final = 64
_DEFAULT_TOKENS: Final = 16  # OpenAI's
_MOST_LOGPROBS: Final = 20

Prompt = str | list[int]


class CompletionBody(GenerationBody):
    """`prompt` is a text, token ids, or several of either; each is answered `n` times."""

    prompt: str | list[Any] = ""
    best_of: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=_MOST_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    response_format: dict[str, Any] | None = None


_RULES = Rules(
    # Some of them are read here, and not by the engine: `_READ_HERE`.
    passed=frozenset(CompletionBody.model_fields) - {"model", "suffix"} - RESIDENCE | SAMPLER_OPTIONS,
    neutral={
        **UNHELD,
        "function_call": ("none",),
        "functions": ([],),
        "id_slot": (-1,),
        "lora": ([],),
        "response_fields": ([],),
        "suffix": ("",),
        "tool_choice": ("none", "auto"),
        "tools": ([],),  # a bare prompt has no template that would show them
    },
)
_READ_HERE = ("prompt", "stream_options", "max_tokens", "n_predict", "n", "logprobs", "echo", "best_of")


def completion_body(fields: Mapping[str, Any]) -> tuple[ValidatedBody, frozenset[Feature]]:
    """What the engine gets besides the prompt. Raises Problem, naming the field."""
    words = translated({name: value for name, value in fields.items() if name not in {"model"} | RESIDENCE})
    if form := words.pop("response_format", None):
        words |= _schema_of(form)
    admitted = validate(words, _RULES)
    body = admitted.body
    if body.get("best_of", 1) > body.get("n", 1):
        raise wrong("best_of", "best_of cannot be more than n here; leave it out")
    if body.get("echo") and "logprobs" in body:
        raise wrong("logprobs", "logprobs of an echoed prompt are not supported; leave out echo or logprobs")
    limit = body.get("max_tokens", body.get("n_predict", _DEFAULT_TOKENS))
    candidates = body.get("logprobs")
    if "seed" in body and body["seed"] != -1:
        body["seed"] %= 2**32
    for name in _READ_HERE:
        body.pop(name, None)
    body |= {"n_predict": limit, "stream": True}
    needs: set[Feature] = set()
    if candidates is not None:
        # Where none is asked for besides the token itself, the engine has still to say what that one's is.
        body["n_probs"] = max(candidates, 1)
        needs.add("logprobs")
    return admitted, frozenset(needs) | form_needs(body)


def _schema_of(form: Mapping[str, Any]) -> dict[str, Any]:
    """`/completion` has no response_format. Raises ApiError for a form that is none."""
    form_needs({"response_format": form})
    if form["type"] == "text":
        return {}
    named = form.get("json_schema") or {}
    return {"json_schema": named.get("schema") or form.get("schema") or {"type": "object"}}


def prompts_of(prompt: str | Sequence[Any]) -> list[Prompt]:
    """Raises Problem for what is no prompt, for too many and for too long ones."""
    given: list[Any] = [prompt] if isinstance(prompt, str) or _is_tokens(prompt) else list(prompt)
    require_few(given, _MOST_PROMPTS, "prompt")
    if not given:
        raise wrong("prompt", "prompt is empty; send a text")
    for item in given:
        if not isinstance(item, str) and not _is_tokens(item):
            raise wrong("prompt", "prompt must be a string, a list of token ids, or a list of either")
        if isinstance(item, str):
            require_short(item, "prompt")
    return given


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int and 0 <= token < 2**31 for token in value)


def legacy_logprobs(pieces: Sequence[Piece], offset: int, most: int) -> dict[str, Any]:
    """Of `/completion`'s entries; `offset` is where in the text the first of them stands, `most` how many others are
    told with each."""
    entries = [entry for piece in pieces for entry in piece.logprobs]
    tokens = [str(entry.get("token", "")) for entry in entries]
    *offsets, _ = accumulate(map(len, tokens), initial=offset)
    return {
        "tokens": tokens,
        "token_logprobs": [entry.get("logprob") for entry in entries],
        "top_logprobs": [
            {str(top.get("token", "")): top.get("logprob") for top in entry.get("top_logprobs", ())[:most]}
            for entry in entries
        ],
        "text_offset": offsets,
    }


def usage_of(timings: Sequence[Timings | None], choices: int) -> dict[str, Any]:
    """Of all answers of a request together, `choices` to each prompt in turn; a prompt counts once."""
    known = [timing for timing in timings[::choices] if timing is not None]
    prompt = sum(part.prompt_n + part.cache_n for part in known)
    generated = sum(timing.predicted_n for timing in timings if timing is not None)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(part.cache_n for part in known)},
    }
