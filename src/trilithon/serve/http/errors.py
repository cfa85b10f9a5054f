"""What a client is told when a request cannot be answered: a status, one line, and when to come back."""

from trilithon.errors import (
    ContextExceeded,
    EngineError,
    ModelError,
    NoRoom,
    NotAModel,
    PlacementError,
    RunError,
    StartError,
    TrilithonError,
    UserError,
)
from trilithon.runtime.pool.pool import Busy

__all__ = ["ApiError", "InputTooLong", "api_error_of"]


class ApiError(TrilithonError):
    """`kind` is OpenAI's word for it (`error.type`), `field` the field of the body that is wrong, or empty.
    `retry_after_seconds` is set where the same request may succeed later."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        kind: str = "invalid_request_error",
        field: str = "",
        retry_after_seconds: float | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.field = field
        self.retry_after_seconds = retry_after_seconds


class InputTooLong(ApiError):
    """The words of OpenAI and of llama-server; `advice` is how to go on. Tokens, None for unknown."""

    def __init__(self, *, prompt_tokens: int | None, context: int | None, advice: str):
        size = "more tokens than the context" if prompt_tokens is None else f"{prompt_tokens} tokens"
        limit = "" if context is None else f": this model's maximum context length is {context} tokens"
        message = f"the request has {size} and exceeds the available context size{limit}; {advice}"
        super().__init__(message, status=400)
        self.prompt_tokens = prompt_tokens
        self.context = context
        self.advice = advice

    @property
    def comparison(self) -> str:
        """For the words of another dialect; empty where a count is unknown."""
        known = self.prompt_tokens is not None and self.context is not None
        return f": {self.prompt_tokens} tokens > {self.context} maximum" if known else ""


def api_error_of(error: Exception) -> ApiError:
    """Every error of Trilithon as a client sees it; other errors are raised again."""
    match error:
        case ApiError():
            return error
        case Busy():
            return ApiError(
                str(error), status=503, kind="overloaded_error", retry_after_seconds=error.retry_after_seconds
            )
        case EngineError():
            return _of_engine(error)
        case StartError():
            return ApiError(_with_advice(error), status=500, kind="server_error")
        case RunError():
            return ApiError(_with_advice(error), status=502, kind="server_error")
        case NoRoom():
            return ApiError(str(error), status=507, kind="server_error")
        case ModelError() if not isinstance(error, NotAModel):
            return ApiError(str(error), status=404, kind="not_found_error", field="model")
        case PlacementError() | UserError():
            return ApiError(str(error), status=400)
        case TrilithonError():
            return ApiError(str(error), status=500, kind="server_error")
    raise error


def _of_engine(error: EngineError) -> ApiError:
    if isinstance(error, ContextExceeded):
        advice = error.advice or "shorten it, or choose a longer context"
        return InputTooLong(prompt_tokens=error.prompt_tokens, context=error.context, advice=advice)
    if error.status == 404:  # it lacks a route of the wire; passed on, a 404 would mean that there is no such model
        return ApiError(f"{error}; choose another placement", status=501, kind="not_supported_error")
    known = 400 if _is_the_clients(error) else error.status if 400 <= error.status < 600 else 502
    return ApiError(str(error), status=known, kind="invalid_request_error" if known < 500 else "server_error")


def _is_the_clients(error: EngineError) -> bool:
    """llama-server answers with 500 where what was sent is at fault."""
    return "vector::_M_range_check" in str(error)


def _with_advice(error: RunError) -> str:
    return f"{error}; {error.advice}" if error.advice else str(error)
