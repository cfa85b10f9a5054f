"""Every error of the house has a status, one line, and each dialect's form."""

import pytest

from trilithon.errors import (
    ChildDied,
    ContextExceeded,
    EngineError,
    EngineTimeout,
    ModelError,
    PlacementError,
    StartError,
    UserError,
)
from trilithon.runtime.pool.pool import Busy
from trilithon.serve.http.dialects import error_body
from trilithon.serve.http.errors import ApiError, api_error_of


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ModelError("there is no x"), 404),
        (PlacementError("no engine"), 400),
        (UserError("no"), 400),
        (EngineError("too long", status=400), 400),
        (EngineError("no HTTP status at all", status=7), 502),
        (EngineError("the engine has no /infill (404)", status=404), 501),
        (EngineError("vector::_M_range_check: __n (which is 7)", status=500), 400),
        (StartError("not started", advice="free memory"), 500),
        (ChildDied("died"), 502),
        (EngineTimeout("hung"), 502),
        (ApiError("no", status=418), 418),
    ],
)
def test_every_error_has_its_status(error: Exception, status: int) -> None:
    problem = api_error_of(error)
    assert problem.status == status
    assert str(error) in str(problem)


def test_what_may_succeed_later_says_when() -> None:
    problem = api_error_of(Busy("full", retry_after_seconds=7))
    assert (problem.status, problem.retry_after_seconds) == (503, 7)


def test_advice_is_told() -> None:
    assert "free memory" in str(api_error_of(StartError("not started", advice="free memory")))


def test_what_is_not_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        api_error_of(ZeroDivisionError())


def test_each_dialect_has_its_form() -> None:
    problem = ApiError("no such model", status=404, kind="not_found_error", field="model")
    assert error_body("/api/chat", problem) == {"error": "no such model"}
    assert error_body("/v1/messages/count_tokens", problem)["error"]["type"] == "not_found_error"
    assert error_body("/v1/models", problem)["error"]["param"] == "model"


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (ApiError("no such model", status=404, field="model"), "model_not_found"),
        (ApiError("no such file", status=404), None),
        (api_error_of(ContextExceeded("too long", prompt_tokens=9, context=8)), "context_length_exceeded"),
        (ApiError("no key", status=401), "invalid_api_key"),
        (ApiError("too many", status=429), "rate_limit_exceeded"),
        (ApiError("broken", status=500), None),
    ],
)
def test_codes_are_openais_words(problem: ApiError, code: str | None) -> None:
    assert error_body("/v1/chat/completions", problem)["error"]["code"] == code
