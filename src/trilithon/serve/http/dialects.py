"""What all dialects share at the edge: who asks, which service answers, and the form of an error."""

from typing import Any

from fastapi import Request

from trilithon.serve.http.errors import ApiError, InputTooLong
from trilithon.serve.service import Service

__all__ = ["caller_of", "error_body", "service_of"]


def service_of(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def caller_of(request: Request) -> str:
    """The name of the key that the request came with, or else the address: clients are served in turn."""
    named = getattr(request.state, "key_name", "")
    return named or (request.client.host if request.client else "local")


def error_body(path: str, problem: ApiError) -> dict[str, Any]:
    """In the dialect of the path that was asked."""
    if isinstance(problem, InputTooLong):
        return _too_long(path, problem)
    if path.startswith("/api/"):
        return {"error": str(problem)}
    if path.startswith("/v1/messages"):
        kind = "api_error" if problem.kind == "server_error" else problem.kind
        return {"type": "error", "error": {"type": kind, "message": str(problem)}}
    return {
        "error": {"message": str(problem), "type": problem.kind, "param": problem.field or None, "code": _code(problem)}
    }


def _too_long(path: str, problem: InputTooLong) -> dict[str, Any]:
    """What programs look for to shorten their prompt and go on: Ollama's and Anthropic's words (Claude Code compacts on
    the latter), OpenAI's code, llama-server's type and counts."""
    if path.startswith("/api/"):
        return {"error": f"the input length exceeds the context length{problem.comparison}; {problem.advice}"}
    if path.startswith("/v1/messages"):
        message = f"prompt is too long{problem.comparison}; {problem.advice}"
        return {"type": "error", "error": {"type": problem.kind, "message": message}}
    error: dict[str, Any] = {"message": str(problem), "type": problem.kind, "param": None}
    error["code"] = "context_length_exceeded"
    if not path.startswith("/v1/"):
        error |= {"type": "exceed_context_size_error", "code": problem.status}
    return {"error": error | {"n_prompt_tokens": problem.prompt_tokens, "n_ctx": problem.context}}


def _code(problem: ApiError) -> str | None:
    """OpenAI's words, where it has one that clients look for."""
    if problem.status == 404 and problem.field == "model":
        return "model_not_found"
    if problem.field == "previous_response_id":
        return "previous_response_not_found"
    return {401: "invalid_api_key", 429: "rate_limit_exceeded"}.get(problem.status)
