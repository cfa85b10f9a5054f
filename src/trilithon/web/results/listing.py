"""One screen of the results, read by paging in the database: it takes as long with ten results as with 10,000.

Medians alone, which take no more than the standard library; intervals and verdicts come with a closer look, from
`calculations`."""

import sqlite3
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from trilithon.measure.metrics import HEADLINE, METRICS, Metric
from trilithon.measure.records import Test, TestKind
from trilithon.results.store import rows
from trilithon.results.store.errors import refuse_foreign, translated
from trilithon.results.store.writer import is_alive
from trilithon.web.results.query import PAGE_SIZE, Query

__all__ = ["Choices", "Figure", "Result", "ResultsScreen", "read_screen", "read_wanted"]

_BUSY_SECONDS = 5.0
_FROM = " FROM placements JOIN campaigns ON campaigns.id = campaign_id WHERE "
_PAGE = (
    "SELECT placements.*, campaigns.started AS started, campaigns.status AS status, campaigns.writer AS writer,"
    " source, verdict" + _FROM.replace(" WHERE", " LEFT JOIN quality ON placement_id = placements.id WHERE") + "{where}"
    " ORDER BY campaign_id DESC, placements.id LIMIT ? OFFSET ?"
)
# Only what the figures need: answers and their timestamps are most of what a database weighs.
_SAMPLES = (
    "SELECT runs.placement_id, runs.id AS run_id, test_kind, prompt_tokens, generated_tokens, depth, question,"
    " samples.started_ns, samples.finished_ns, prompt_evaluated, prompt_cached, prompt_ns, decode_steps, decode_ns,"
    " '[]' AS thinking_at_ns, '[]' AS answer_at_ns, '\"\"' AS thinking_text, '\"\"' AS answer_text,"
    " '\"\"' AS stop_reason, marks"
    " FROM samples JOIN runs ON runs.id = run_id WHERE outcome = 'finished' AND runs.placement_id IN ({marks})"
    " ORDER BY samples.id"
)
_FAILED = (
    "SELECT placement_id, COUNT(*) AS number FROM runs WHERE outcome IN ('failed', 'skipped')"
    " AND placement_id IN ({marks}) GROUP BY 1"
)
_SHOWN = {**HEADLINE, "question": "total_seconds"}  # words are counted by Unicode's rules, which takes its time
_HEADLINES: Mapping[TestKind, Metric] = {
    kind: next(metric for metric in metrics if metric.name == _SHOWN[kind]) for kind, metrics in METRICS.items()
}


@dataclass(frozen=True, slots=True)
class Figure:
    """The headline figure of one test: the median over `runs` runs."""

    test: Test
    metric: Metric
    median: float
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One placement of a campaign. `verdict` is its quality's, empty where nobody looked; `failed` counts the runs
    that failed or were skipped."""

    campaign: int
    started: str
    status: str
    source: str
    model: str
    quantization: str
    placement: str
    build: str
    unit: str
    verdict: str
    figures: tuple[Figure, ...]
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What there is to filter by."""

    model: tuple[str, ...] = ()
    quantization: tuple[str, ...] = ()
    placement: tuple[str, ...] = ()
    build: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultsScreen:
    """`total` counts all that the query finds, of which `results` are one page."""

    query: Query
    results: tuple[Result, ...] = ()
    total: int = 0
    choices: Choices = Choices()

    @property
    def pages(self) -> int:
        return max(1, -(-self.total // PAGE_SIZE))


def read_screen(database: Path | None, query: Query) -> ResultsScreen:
    """Nothing is written, and nothing has to be there. A page beyond the last is the last. Raises StoreError."""
    if database is None or not database.is_file():
        return ResultsScreen(query=query)
    with _reading(database) as connection:
        where, values = query.where()
        total = int(connection.execute(f"SELECT COUNT(*){_FROM}{where}", values).fetchone()[0])
        page = min(query.page, max(0, total - 1) // PAGE_SIZE)
        page_rows = connection.execute(_PAGE.format(where=where), [*values, PAGE_SIZE, page * PAGE_SIZE]).fetchall()
        return ResultsScreen(
            query=replace(query, page=page),
            results=_results(connection, page_rows),
            total=total,
            choices=_choices(connection),
        )


def read_wanted(database: Path | None, query: Query) -> dict[int, list[str]]:
    """The placements of each campaign that the query finds, on all pages. Raises StoreError."""
    placements: dict[int, list[str]] = {}
    if database is not None and database.is_file():
        where, values = query.where()
        with _reading(database) as connection:
            for row in connection.execute(
                f"SELECT campaign_id, placements.name{_FROM}{where} ORDER BY placements.id", values
            ):
                placements.setdefault(row[0], []).append(row[1])
    return placements


@contextmanager
def _reading(database: Path) -> Iterator[sqlite3.Connection]:
    with translated(database):
        refuse_foreign(database)
        address = f"{database.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=_BUSY_SECONDS)) as connection:
            connection.row_factory = sqlite3.Row
            yield connection


def _choices(connection: sqlite3.Connection) -> Choices:
    """Of all results: who has chosen one model may want to change to another."""
    known = {}
    for name in ("model", "quantization", "placement", "build"):
        column = Query.column(name)
        page_rows = connection.execute(f"SELECT DISTINCT {column} AS value FROM placements ORDER BY 1").fetchall()
        known[name] = tuple(str(row["value"]) for row in page_rows if row["value"])
    return Choices(**known)


def _results(connection: sqlite3.Connection, selected: Sequence[sqlite3.Row]) -> tuple[Result, ...]:
    marks, numbers = ",".join("?" * len(selected)), [row["id"] for row in selected]
    figures = _figures(connection.execute(_SAMPLES.format(marks=marks), numbers).fetchall())
    failed = {row["placement_id"]: row["number"] for row in connection.execute(_FAILED.format(marks=marks), numbers)}
    return tuple(_result(row, figures.get(row["id"], ()), failed.get(row["id"], 0)) for row in selected)


def _result(row: sqlite3.Row, figures: tuple[Figure, ...], failed: int) -> Result:
    model = rows.unpack(row["model"])
    interrupted = row["status"] == "running" and not is_alive(row["writer"])
    return Result(
        campaign=row["campaign_id"],
        started=row["started"],
        status="interrupted" if interrupted else row["status"],
        source=row["source"],
        model=str(model.get("name", "")),
        quantization=str(model.get("quantization") or ""),
        placement=row["name"],
        build=f"{row['engine']} {row['build_version']} ({row['build']})",
        unit=row["unit"],
        verdict=row["verdict"] or "",
        figures=figures,
        failed=failed,
    )


def _figures(samples: Sequence[sqlite3.Row]) -> dict[int, tuple[Figure, ...]]:
    """By placement, its tests in the order in which they were first measured: of each run the median over its samples,
    and over runs the median of those, as in every report."""
    values: dict[tuple[int, Test], dict[int, list[float]]] = {}
    for row in samples:
        sample = rows.sample(row)
        value = _HEADLINES[sample.test.kind].of(sample)
        if value is not None:
            values.setdefault((row["placement_id"], sample.test), {}).setdefault(row["run_id"], []).append(value)
    figures: dict[int, tuple[Figure, ...]] = {}
    for (placement, test), runs in values.items():
        median = statistics.median(map(statistics.median, runs.values()))
        figures[placement] = (*figures.get(placement, ()), Figure(test, _HEADLINES[test.kind], median, len(runs)))
    return figures
