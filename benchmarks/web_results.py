"""How long the server takes to read a page of the results and write it as HTML, with 10,000 results stored.

    python benchmarks/web_results.py [--results 10000] [--runs 5] [--json]

This is the server's part. web.py measures what a reader waits for, in a browser, with the same store.
"""

import tempfile
from pathlib import Path
from random import Random
from typing import Any

from _figures import Bound, Figure, arguments, count, report, run
from _timing import median_seconds, seconds

from trilithon.measure.records import Campaign, PlacementRecord, QualityRecord, Run, Sample, Test
from trilithon.results.store.database import Store
from trilithon.web.results.listing import read_screen
from trilithon.web.results.query import Query
from trilithon.web.results.tables import results_table
from trilithon.web.texts import texts_for

__all__ = ["MOST_SECONDS", "fill_store", "page_seconds"]

MOST_SECONDS = 1.0
_PLACEMENTS, _RUNS = 5, 5
_QUERIES = {
    "first page": Query(),
    "last page": Query(page=10**6),
    "one model": Query(model="Model 7"),
    "one build, half a year": Query(build="llama.cpp b7001 (build1)", since="2020-01-01", until="2020-07-01"),
}
_PREFILL, _DECODE = Test(kind="pp", prompt_tokens=512), Test(kind="tg", generated_tokens=128)


def fill_store(database: Path, results: int) -> None:
    """Add placements, five per campaign, each with five runs of two tests."""
    with Store.open(database) as store:
        for number in range(-(-results // _PLACEMENTS)):
            store.add(_campaign(number))


def screen_seconds(database: Path, query: Query, runs: int) -> float:
    """The median of reading one page and writing it as HTML."""
    text = texts_for("en")
    return median_seconds(lambda: results_table(read_screen(database, query), (), text), runs)


def page_seconds(page: Any, url: str, rows: int, runs: int = 5) -> float:
    """In a browser (playwright's page): from the address to the table's last line, the median of several."""

    def open_page() -> None:
        page.goto("about:blank")
        page.goto(f"{url}/results")
        page.locator("table.results tbody tr").nth(rows - 1).wait_for()

    open_page()  # scripts and styles are in the browser's cache from here on
    return median_seconds(open_page, runs)


def _campaign(number: int) -> Campaign:
    random = Random(number)
    names = [f"llama.cpp@build{index}/cpu" for index in range(_PLACEMENTS)]
    return Campaign(
        id=0,
        started=f"20{20 + number // 336 % 10}-{number // 28 % 12 + 1:02}-{number % 28 + 1:02}T12:00:00+00:00",
        status="finished",
        source="trilithon",
        version="0.1.0",
        board={},
        plan={},
        placements=tuple(_placement(name, number) for name in names),
        runs=tuple(_run(name, index, random) for index in range(_RUNS) for name in names),
    )


def _placement(name: str, number: int) -> PlacementRecord:
    return PlacementRecord(
        name=name,
        engine="llama.cpp",
        build=name.partition("@")[2].partition("/")[0],
        build_version=f"b{7000 + number % 20}",
        unit="cpu",
        model={"name": f"Model {number % 40}", "quantization": "Q4_K_M"},
        settings={},
        must_match={},
        quality=QualityRecord(verdict="same", reference=name),
    )


def _run(name: str, index: int, random: Random) -> Run:
    prompt_ns, decode_ns = (int(seconds * random.gauss(1, 0.01) * 1e9) for seconds in (8.0, 12.0))
    at_ns = tuple(range(0, decode_ns, decode_ns // 128))
    samples = (
        Sample(test=_PREFILL, started_ns=0, finished_ns=prompt_ns, prompt_evaluated=512, prompt_ns=prompt_ns),
        Sample(
            test=_DECODE, started_ns=0, finished_ns=decode_ns, decode_steps=128, decode_ns=decode_ns, answer_at_ns=at_ns
        ),
    )
    return Run(placement=name, round=index, outcome="finished", started_ns=0, finished_ns=1, samples=samples)


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--results", type=count, default=10_000)
    parser.add_argument("--runs", type=count, default=5)
    options = parser.parse_args()
    figures: dict[str, Figure] = {"results": options.results}
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "results.sqlite"
        figures["seconds to store them"] = seconds(lambda: fill_store(database, options.results))
        for name, query in _QUERIES.items():
            figures[f"{name} seconds"] = screen_seconds(database, query, options.runs)
    bounds = [Bound(f"{name} seconds", most=MOST_SECONDS) for name in _QUERIES]
    return report(figures, bounds, as_json=options.json)


if __name__ == "__main__":
    run(main)
