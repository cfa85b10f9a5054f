"""Records as rows of the results database and back."""

import json
import sqlite3
import zlib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from trilithon.measure.records import (
    AnswerRecord,
    Failure,
    PlacementRecord,
    QualityRecord,
    Run,
    Sample,
    SensorLog,
    SensorValues,
    Test,
)
from trilithon.results.store.codec import from_json, to_json

__all__ = [
    "ABANDON_RUNS",
    "CHANGE_SETTINGS",
    "COUNT_RUNS",
    "FINISH_RUN",
    "INSERT_ANSWER",
    "INSERT_PLACEMENT",
    "INSERT_SAMPLE",
    "REPLACE_QUALITY",
    "SELECT_ANSWERS",
    "SELECT_PLACEMENTS",
    "SELECT_RUNS",
    "SELECT_SAMPLES",
    "SELECT_TESTS",
    "answer",
    "answer_values",
    "pack",
    "pack_log",
    "pack_sensor_log",
    "placement",
    "placement_values",
    "quality_values",
    "run",
    "sample",
    "sample_values",
    "test",
    "unpack",
]

_LOG_BYTES = 256 * 1024

# A column has the name of its field; these hold JSON, the rest plain values.
_JSON = frozenset(
    [
        *("model", "settings", "must_match", "reasons", "question", "marks", "stop_reason"),
        *("thinking_at_ns", "answer_at_ns", "thinking_text", "answer_text"),
        *("question_set", "text", "kind", "language", "expected", "answer", "thinking", "reason"),
    ]
)
_TUPLES = frozenset(("reasons", "thinking_at_ns", "answer_at_ns"))


def _columns(record: type, *without: str) -> tuple[str, ...]:
    return tuple(field.name for field in fields(record) if field.name not in without)


_PLACEMENT = _columns(PlacementRecord, "quality", "answers")
_ANSWER = _columns(AnswerRecord)
_QUALITY = _columns(QualityRecord)
_TEST = _columns(Test, "kind")
_SAMPLE = _columns(Sample, "test")


def _insert(table: str, columns: Sequence[str], verb: str = "INSERT") -> str:
    return f"{verb} INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


INSERT_PLACEMENT = _insert("placements", ("campaign_id", *_PLACEMENT))
CHANGE_SETTINGS = "UPDATE placements SET settings = ?, must_match = ? WHERE id = ?"
REPLACE_QUALITY = _insert("quality", ("placement_id", *_QUALITY), "INSERT OR REPLACE")
INSERT_ANSWER = _insert("answers", ("placement_id", *_ANSWER), "INSERT OR REPLACE")
INSERT_SAMPLE = _insert("samples", ("run_id", "test_kind", *_TEST, *_SAMPLE))
FINISH_RUN = (
    "UPDATE runs SET outcome = ?, finished_ns = ?, failure = ?, warnings = ?, remarks = ?, log = ?, sensor_log = ?"
    " WHERE id = ?"
)
SELECT_PLACEMENTS = (
    "SELECT * FROM placements LEFT JOIN quality ON placement_id = placements.id WHERE campaign_id = ? ORDER BY id"
)
SELECT_ANSWERS = (
    "SELECT answers.* FROM answers JOIN placements ON placements.id = placement_id WHERE campaign_id = ?"
    " ORDER BY answers.id"
)
_OF_CAMPAIGN = " JOIN placements ON placements.id = runs.placement_id WHERE campaign_id = ?"
SELECT_RUNS = (
    "SELECT runs.*, placements.name AS placement, (SELECT MAX(finished_ns) FROM samples WHERE run_id = runs.id)"
    " AS last_ns FROM runs" + _OF_CAMPAIGN + " ORDER BY runs.id"
)
SELECT_SAMPLES = (
    "SELECT samples.* FROM samples JOIN runs ON runs.id = samples.run_id" + _OF_CAMPAIGN + " ORDER BY samples.id"
)
SELECT_TESTS = (
    f"SELECT test_kind, {', '.join(_TEST)} FROM samples JOIN runs"
    " ON runs.id = samples.run_id" + _OF_CAMPAIGN + " GROUP BY 1, 2, 3, 4, 5 ORDER BY MIN(samples.id)"
)
COUNT_RUNS = "SELECT COUNT(*) AS number FROM runs" + _OF_CAMPAIGN + " AND outcome IS NOT NULL"
ABANDON_RUNS = (
    "UPDATE runs SET writer = '' WHERE outcome IS NULL"
    " AND placement_id IN (SELECT id FROM placements WHERE campaign_id = ?)"
)

_KILLED = Failure(kind="interrupted", message="interrupted: the measuring process was stopped during this run")


def pack(value: Any) -> str:
    return json.dumps(to_json(value), separators=(",", ":"))


def unpack(text: str) -> Any:
    return json.loads(text)


def pack_log(log: str) -> bytes:
    tail = log.encode("utf-8", "surrogatepass")[-_LOG_BYTES:]
    while tail and tail[0] & 0xC0 == 0x80:  # the cut fell within a character
        tail = tail[1:]
    return zlib.compress(tail)


def pack_sensor_log(log: SensorLog | None) -> bytes | None:
    return None if log is None else zlib.compress(pack(log).encode())


def placement_values(campaign_id: int, record: PlacementRecord) -> tuple[Any, ...]:
    """For INSERT_PLACEMENT."""
    return (campaign_id, *_values(record, _PLACEMENT))


def quality_values(placement_id: int, record: QualityRecord) -> tuple[Any, ...]:
    """For REPLACE_QUALITY."""
    return (placement_id, *_values(record, _QUALITY))


def answer_values(placement_id: int, record: AnswerRecord) -> tuple[Any, ...]:
    """For INSERT_ANSWER."""
    return (placement_id, *_values(record, _ANSWER))


def sample_values(run_id: int, record: Sample) -> tuple[Any, ...]:
    """For INSERT_SAMPLE."""
    return (run_id, record.test.kind, *_values(record.test, _TEST), *_values(record, _SAMPLE))


def placement(row: sqlite3.Row, answers: tuple[AnswerRecord, ...] = ()) -> PlacementRecord:
    quality = None if row["verdict"] is None else QualityRecord(**_fields(row, _QUALITY))
    return PlacementRecord(**_fields(row, _PLACEMENT), quality=quality, answers=answers)


def answer(row: sqlite3.Row) -> AnswerRecord:
    return AnswerRecord(**_fields(row, _ANSWER))


def test(row: sqlite3.Row) -> Test:
    return Test(kind=row["test_kind"], **_fields(row, _TEST))


def sample(row: sqlite3.Row) -> Sample:
    return Sample(test=test(row), **_fields(row, _SAMPLE))


def _values(record: object, columns: Sequence[str]) -> tuple[Any, ...]:
    values = ((name, getattr(record, name)) for name in columns)
    return tuple(pack(value) if name in _JSON else value for name, value in values)


def _fields(row: sqlite3.Row, columns: Sequence[str]) -> dict[str, Any]:
    values = {name: unpack(row[name]) if name in _JSON else row[name] for name in columns}
    return {name: tuple(value) if name in _TUPLES else value for name, value in values.items()}


def run(row: sqlite3.Row, samples: tuple[Sample, ...]) -> Run:
    """A run without an outcome is one that its process did not live to finish."""
    finished_ns = row["finished_ns"]
    if finished_ns is None:
        finished_ns = row["started_ns"] if row["last_ns"] is None else row["last_ns"]
    return Run(
        placement=row["placement"],
        round=row["round"],
        outcome=row["outcome"] or "failed",
        started_ns=row["started_ns"],
        finished_ns=finished_ns,
        samples=samples,
        failure=_failure(row),
        warnings=tuple(unpack(row["warnings"])),
        remarks=tuple(unpack(row["remarks"])),
        log="" if row["log"] is None else zlib.decompress(row["log"]).decode("utf-8", "surrogatepass"),
        sensor_log=_sensor_log(row["sensor_log"]),
    )


def _sensor_log(packed: bytes | None) -> SensorLog | None:
    """Not checked value by value, as an import is: a run has thousands of them, and a campaign a hundred runs."""
    if packed is None:
        return None
    log = unpack(zlib.decompress(packed).decode())
    sensors = (SensorValues(**(sensor | {"values": tuple(sensor["values"])})) for sensor in log["sensors"])
    return SensorLog(at_ns=tuple(log["at_ns"]), sensors=tuple(sensors))


def _failure(row: sqlite3.Row) -> Failure | None:
    if row["outcome"] is None:
        return _KILLED
    return None if row["failure"] is None else from_json(Failure, unpack(row["failure"]))
