"""JSON schemas: every answer obeys its schema, and every other is a 400 that names a keyword.

    python benchmarks/schemas.py SUITE [--model FILE] [--tokens 64] [--limit N] [--json]

SUITE is a folder of the JSON-Schema-Test-Suite, such as json/tests/draft2020-12 in the source archive of jsonschema
(`pip download --no-deps --no-binary jsonschema jsonschema`). One `trilithon serve` runs the model (the demo model by
default) on the wheel's llama.cpp. Each schema of the suite is sent with a chat, at temperature 0. A finished answer is
validated by jsonschema-rs. An answer that the limit of tokens cut off is counted apart; a model in a loop writes those.
"""

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from _figures import Bound, CannotMeasure, Figure, arguments, count, report, run
from _placements import demo_path
from _server import private_folders, serving
from jsonschema_rs import validator_for

from trilithon.settings import load_configuration

_PLACEMENT = "llama.cpp@embedded/cpu"
_MESSAGES = [{"role": "user", "content": "Answer in JSON."}]
# A refusal has the place of a keyword, or says what is wrong with the schema.
_NAMED = ("cannot hold", "not a JSON schema", "the answer breaks", "must be a JSON schema")
_BOUNDS = [
    Bound("answers that break their schema", most=0),
    Bound("refusals that name no keyword", most=0),
    Bound("other answers", most=0),
    Bound("schemas obeyed", least=1),
]


def schemas(suite: Path) -> Iterator[tuple[str, Any]]:
    files = sorted(suite.glob("*.json"))
    if not files:
        raise CannotMeasure(f"{suite} has no JSON files; name the suite's folder of a draft")
    for path in files:
        for case in json.loads(path.read_text(encoding="utf-8")):
            yield f"{path.name}: {case['description']}", case["schema"]


def outcome(client: httpx.Client, schema: Any, tokens: int) -> tuple[str, str]:
    """The figure that the answer counts for, and what it said."""
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    body = {"model": "", "messages": _MESSAGES, "temperature": 0, "max_tokens": tokens, "response_format": form}
    body["model"] = client.get("/v1/models").json()["data"][0]["id"]
    answer = client.post("/v1/chat/completions", json=body)
    if answer.status_code == 400:
        named = any(words in answer.text for words in _NAMED)
        return ("schemas refused" if named else "refusals that name no keyword"), answer.text
    if answer.status_code != 200:
        return "other answers", answer.text
    choice = answer.json()["choices"][0]
    text = choice["message"]["content"]
    if choice["finish_reason"] == "length":
        return "answers cut off", text
    obeys = validator_for(schema, validate_formats=True).is_valid(json.loads(text))
    return ("schemas obeyed" if obeys else "answers that break their schema"), text


def measured(suite: Path, model: Path, tokens: int, limit: int | None) -> dict[str, Figure]:
    tally: Counter[str] = Counter({bound.figure: 0 for bound in _BOUNDS} | {"schemas refused": 0, "answers cut off": 0})
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(model, "--placement", _PLACEMENT, "--no-pages", environment=private_folders(Path(folder))) as server,
        httpx.Client(base_url=server.url, timeout=600) as client,
    ):
        for name, schema in list(schemas(suite))[:limit]:
            figure, said = outcome(client, schema, tokens)
            tally[figure] += 1
            if figure in (_BOUNDS[0].figure, _BOUNDS[1].figure, _BOUNDS[2].figure):
                print(f"{figure}: {name}: {said[:200]}", file=sys.stderr, flush=True)
    return dict(tally)


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("suite", type=Path, metavar="SUITE")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokens", type=count, default=64)
    parser.add_argument("--limit", type=count, help="only the first N schemas")
    options = parser.parse_args()
    figures = measured(options.suite, options.model or demo_path(load_configuration()), options.tokens, options.limit)
    return report(figures, _BOUNDS, as_json=options.json)


if __name__ == "__main__":
    run(main)
