"""A request made to fit the model that answers it: what its form of prompt needs, and what it was never taught."""

from collections.abc import Mapping
from typing import Any

from trilithon.models.files.model_file import ModelFile
from trilithon.serve.http.errors import ApiError

__all__ = ["fitted", "require_kind"]

_CHAT = "/v1/chat/completions"
# What a path asks of a model, and the kinds of models that do not do that.
_SILENT = ("embedding", "reranker")
_ASKED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    _CHAT: ("chat", _SILENT),
    "/apply-template": ("chat", _SILENT),
    "/completion": ("completion", _SILENT),
    "/infill": ("insert", _SILENT),
    "/v1/embeddings": ("embeddings", ("reranker",)),
}
_INSTEAD = {"embedding": "it makes embeddings, see /v1/embeddings", "reranker": "it ranks texts, see /v1/rerank"}


def require_kind(path: str, file: ModelFile, name: str) -> None:
    """`name` is the model's as the client knows it. Raises ApiError where the kind of the model rules the request out:
    an engine would start, and abort. Ollama's words come first; its own routes say them alone."""
    words, unable = _ASKED.get(path, ("", ()))
    if file.kind in unable:
        message = f'"{name}" does not support {words}; {_INSTEAD[file.kind]}'
        raise ApiError(message, status=400, field="model")


def fitted(path: str, body: Mapping[str, Any], file: ModelFile, name: str) -> Mapping[str, Any]:
    """`name` is the model's as the client knows it. Raises ApiError for tools where the template has no place for
    them: an engine would leave them out and say nothing."""
    if path != _CHAT:
        return body
    if body.get("tools") and body.get("tool_choice") != "none" and "tools" not in file.capabilities:
        message = f"{name} does not support tools; leave them out, or choose a model whose template knows tools"
        raise ApiError(message, status=400, field="tools")
    if file.prompt_form is None or _is_held(body):
        return body
    # A base model continues a text; without these it would go on with questions and answers of its own.
    stop = body.get("stop") or []
    words = [stop] if isinstance(stop, str) else list(stop)
    return {"repeat_penalty": file.prompt_form.repeat_penalty, **body, "stop": [*words, *file.prompt_form.stop]}


def _is_held(body: Mapping[str, Any]) -> bool:
    """A grammar ends the answer by itself, and may begin with the very lines' ends that would stop it."""
    form = body.get("response_format") or {}
    return bool(body.get("grammar") or body.get("json_schema") or form.get("type", "text") != "text")
