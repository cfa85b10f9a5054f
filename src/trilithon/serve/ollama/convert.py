"""Ollama's requests as the one internal request: pure functions. The way back is in `ollama_answers`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from trilithon.engines.base import Feature, ModelFile
from trilithon.models.store.manifest import Manifest
from trilithon.serve.generation import Generation
from trilithon.serve.http.errors import ApiError
from trilithon.serve.ollama.bodies import EmbedBody, GenerateBody, OllamaChatBody
from trilithon.serve.ollama.messages import conversation, has_pictures, question, tools_of
from trilithon.serve.ollama.options import SamplingOptions, keep_alive_seconds, sampling_of
from trilithon.serve.ollama.prompt import render_prompt
from trilithon.serve.validation import require_schema, wrong

__all__ = ["KnownModel", "OllamaRequest", "chat_asked", "embed_asked", "generate_asked", "not_found"]

_CHAT: Final = "/v1/chat/completions"
_COMPLETION: Final = "/completion"
_INFILL: Final = "/infill"
_EFFORTS: Final = ("low", "medium", "high", "max")
_WORDS: Final = {"true": True, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """The model that was asked: what its manifest says, and the file that would run."""

    manifest: Manifest
    file: ModelFile


@dataclass(frozen=True, slots=True, kw_only=True)
class OllamaRequest:
    """`ignored` are fields that the client set and that mean nothing here; `top_logprobs` is how many alternatives it
    wants with each token, None for no log-probabilities."""

    generation: Generation
    ignored: tuple[str, ...] = ()
    top_logprobs: int | None = None


def chat_asked(body: OllamaChatBody, known: KnownModel) -> OllamaRequest:
    """Raises Problem for what does not fit, and for what the model cannot do."""
    sampling = sampling_of(body.options, known.manifest.parameters)
    messages = conversation(body.messages or (), known.manifest.system, known.manifest.messages)
    fields: dict[str, Any] = {"messages": messages} | _thinking(body, known)
    if body.tools:
        if "tools" not in known.file.capabilities:
            raise wrong("tools", f'"{body.model}" does not support tools')
        fields["tools"] = tools_of(body.tools)
    return _asked(body, _CHAT, fields, sampling)


def generate_asked(body: GenerateBody, known: KnownModel) -> OllamaRequest:
    """Raises Problem for what does not fit, and for what the model cannot do."""
    if body.raw and (body.template or body.system or body.context):
        raise wrong("raw", "raw mode does not support template, system, or context")
    prompt, system = body.prompt or "", known.manifest.system if body.system is None else body.system
    sampling = sampling_of(body.options, known.manifest.parameters)
    if not (body.raw or body.template or body.suffix):
        fields = _thinking(body, known)
        fields["messages"] = question(prompt, body.images or (), system, known.manifest.messages)
        return _asked(body, _CHAT, fields, sampling)
    for field in ("images", "think", "format"):
        # Of a format: the server of xllamacpp 2026.10 passes over the schema of a bare prompt.
        if getattr(body, field):
            raise wrong(field, f"{field} needs the model's own template; leave out raw, template and suffix")
    if body.template:
        text = render_prompt(body.template, system=system, prompt=prompt, suffix=body.suffix or "")
        return _asked(body, _COMPLETION, {"prompt": text}, sampling)
    if body.suffix and not body.raw:
        return _asked(body, _INFILL, {"input_prefix": prompt, "input_suffix": body.suffix}, sampling)
    return _asked(body, _COMPLETION, {"prompt": prompt}, sampling)


def embed_asked(body: EmbedBody, inputs: list[Any]) -> OllamaRequest:
    """`inputs` are texts, or tokens of one each."""
    sampling = sampling_of(body.options, {})
    generation = Generation(
        model=body.model,
        path="/v1/embeddings",
        body={"input": inputs},
        needs=frozenset[Feature]({"embeddings"}),
        keep_alive_seconds=keep_alive_seconds(body.keep_alive),
        context=sampling.context,
    )
    chosen = tuple(f"options.{name}" for name in body.options or {} if name != "num_ctx")
    return OllamaRequest(generation=generation, ignored=(*body.unknown, *chosen))


def _asked(
    body: OllamaChatBody | GenerateBody, path: str, fields: Mapping[str, Any], sampling: SamplingOptions
) -> OllamaRequest:
    chats = path == _CHAT
    limit = {"max_tokens" if chats else "n_predict": sampling.most_tokens} if sampling.most_tokens >= 0 else {}
    form = _form(body.format)
    top = _top_logprobs(body)
    needs: set[Feature] = set()
    if form:
        needs.add("grammar")
    if top is not None:
        needs.add("logprobs")
    if chats and has_pictures(fields["messages"]):
        needs.add("vision")
    generation = Generation(
        model=body.model,
        path=path,
        body={**sampling.body, **limit, **form, **_probabilities(top, chats=chats), **fields, "stream": True},
        needs=frozenset(needs),
        keep_alive_seconds=keep_alive_seconds(body.keep_alive),
        context=sampling.context,
    )
    ignored = (*body.unknown, *sampling.ignored, *_meaningless(body))
    return OllamaRequest(generation=generation, ignored=ignored, top_logprobs=top)


def _meaningless(body: OllamaChatBody | GenerateBody) -> list[str]:
    """A prompt that is too long is always told, and never cut or shifted."""
    names = [name for name in ("truncate", "shift") if getattr(body, name)]
    if isinstance(body, GenerateBody) and body.context:
        names.append("context")  # deprecated: /api/chat took its place
    if isinstance(body, OllamaChatBody):
        names += {f"messages.{name}": None for message in body.messages or () for name in message.unknown}
    return names


def _thinking(body: OllamaChatBody | GenerateBody, known: KnownModel) -> dict[str, Any]:
    """Models that can think do so unless told otherwise, by their template's own word."""
    wanted = known.manifest.parameters.get("think") if body.think is None else body.think
    if isinstance(wanted, str) and wanted not in _EFFORTS:
        if wanted not in _WORDS:
            raise wrong("think", f"invalid value for 'think': {wanted[:40]!r} (must be true, false, {_listed()})")
        wanted = _WORDS[wanted]
    if "thinking" not in known.file.capabilities:
        if wanted and body.think is not None:
            raise wrong("think", f'"{body.model}" does not support thinking')
        return {}
    if wanted is None:
        return {}
    effort = {"reasoning_effort": wanted} if isinstance(wanted, str) else {}
    return {"chat_template_kwargs": {"enable_thinking": bool(wanted)}, **effort}


def _listed() -> str:
    return ", ".join(f'"{effort}"' for effort in _EFFORTS)


def _form(form: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """What the answer must be: any JSON object, or one by a schema."""
    if form is None or form == "":
        return {}
    if form == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(form, str):
        raise wrong("format", f'invalid format: {form[:40]!r}; expected "json" or a JSON schema')
    require_schema(form, "format")
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(form)}}}


def _top_logprobs(body: OllamaChatBody | GenerateBody) -> int | None:
    if not body.logprobs:
        if body.top_logprobs:
            raise wrong("top_logprobs", "top_logprobs needs logprobs; send logprobs: true too")
        return None
    return body.top_logprobs or 0


def _probabilities(top: int | None, *, chats: bool) -> dict[str, Any]:
    if top is None:
        return {}
    return {"logprobs": True, "top_logprobs": max(top, 1)} if chats else {"n_probs": max(top, 1)}


def not_found(name: str) -> ApiError:
    """In Ollama's words, which its clients look for."""
    return ApiError(f"model '{name[:200]}' not found", status=404, kind="not_found_error", field="model")
