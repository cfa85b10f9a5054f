"""The OpenAPI document is true: requests made of it meet no failure of ours and no answer that it does not know."""

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from live_server import Serve
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import status_code_conformance

# Fetching from elsewhere is tested against stand-ins of what is there.
LEFT_OUT = {"/api/pull", "/api/push"}
QUICK, LONG = 5, 50


def routes(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(method, path) for path, methods in document["paths"].items() for method in methods]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("mode", "examples"),
    [
        (GenerationMode.POSITIVE, QUICK),
        pytest.param(GenerationMode.POSITIVE, LONG, marks=pytest.mark.slow),
        pytest.param(GenerationMode.NEGATIVE, QUICK * 4, marks=pytest.mark.slow),
    ],
)
def test_no_answer_is_undocumented_or_a_failure_of_ours(
    serve: Serve, tiny: Path, mode: GenerationMode, examples: int
) -> None:
    server = serve(tiny, placement="scripted/cpu:prefill=1000000,decode=100000")
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    tried, broken = 0, []
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path in LEFT_OUT:
            continue
        tried += 1

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def meets(case: Any) -> None:
            case.headers = {name: value for name, value in (case.headers or {}).items() if name.lower() != "host"}
            answer = case.call(timeout=30)
            assert answer.status_code != 500, answer.text
            case.validate_response(answer, checks=[status_code_conformance])

        try:
            meets()
        except Unsatisfiable as error:  # a route without parameters and body has no bad input
            if mode is GenerationMode.POSITIVE:
                broken.append(f"{operation.label}: {error}")
        except Exception as error:  # noqa: BLE001 - all routes are told, not the first alone
            broken.append(f"{operation.label}: {error}")
    assert broken == []
    assert tried > 25


def test_every_route_says_what_it_may_answer(serve: Serve, tiny: Path) -> None:
    document = serve(tiny).http.get("/openapi.json").json()
    assert len(routes(document)) > 25
    for method, path in routes(document):
        answers = set(document["paths"][path][method]["responses"])
        assert {"200", "401", "403"} <= answers or path in ("/", "/health"), (method, path)
        assert "422" not in answers, f"{path}: what does not fit is 400 here"
