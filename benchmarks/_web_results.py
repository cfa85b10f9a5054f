"""The half of web.py that is about results: how long a screen of 10,000 takes to open.

    python benchmarks/_web_results.py [--results 10000] [--runs 5]

By itself it measures the server's part, reading and writing the table; `page_seconds` is what a reader waits for.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from trilithon.measure.records import Campaign, PlacementRecord, QualityRecord, Run, Sample, Test
from trilithon.results.store.database import Store
from trilithon.web.results.listing import read_screen
from trilithon.web.results.query import Query
from trilithon.web.results.tables import results_table
from trilithon.web.texts import texts_for

__all__ = ["MOST_SECONDS", "fill_store", "page_seconds", "screen_seconds"]

MOST_SECONDS = 1.0
_PLACEMENTS, _RUNS = 5, 5
_PREFILL, _DECODE = Test(kind="pp", prompt_tokens=512), Test(kind="tg", generated_tokens=128)


def fill_store(database: Path, results: int) -> None:
    """Placements by the store's own writer, five to a campaign, each with five runs of two tests."""
    with Store.open(database) as store:
        for number in range(-(-results // _PLACEMENTS)):
            store.add(_campaign(number))


def screen_seconds(database: Path, query: Query, runs: int) -> float:
    """The median of reading one page and writing it as HTML."""
    text = texts_for("en")
    return _median(lambda: results_table(read_screen(database, query), (), text), runs)


def page_seconds(page: Any, url: str, runs: int = 5) -> float:
    """In a browser (playwright's page): from the address to the table's last line, the median of several."""

    def open_it() -> None:
        page.goto("about:blank")
        page.goto(f"{url}/results")
        page.locator("table.results tbody tr").nth(49).wait_for()

    open_it()  # scripts and styles are in the browser's cache from here on
    return _median(open_it, runs)


def _median(work: Callable[[], object], runs: int) -> float:
    return statistics.median(_seconds(work) for _ in range(runs))


def _seconds(work: Callable[[], object]) -> float:
    began_ns = time.monotonic_ns()
    work()
    return (time.monotonic_ns() - began_ns) / 1e9


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "results.sqlite"
        print(f"{words.results} results written in {_seconds(lambda: fill_store(database, words.results)):.1f} s")
        queries = {
            "first page": Query(),
            "last page": Query(page=10**6),
            "one model": Query(model="Model 7"),
            "one build, half a year": Query(build="llama.cpp b7001 (build1)", since="2020-01-01", until="2020-07-01"),
        }
        figures = {name: screen_seconds(database, query, words.runs) for name, query in queries.items()}
    for name, seconds in figures.items():
        print(f"{name:24} {seconds:.3f} s")
    return 0 if max(figures.values()) <= MOST_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
