"""Records as rows of the results database and back."""

import json
import sqlite3
import zlib
from typing import Any

from trilithon.measure.records import (
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
    "INSERT_PLACEMENT",
    "INSERT_SAMPLE",
    "REPLACE_QUALITY",
    "SELECT_PLACEMENTS",
    "SELECT_RUNS",
    "SELECT_SAMPLES",
    "SELECT_TESTS",
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

INSERT_PLACEMENT = (
    "INSERT INTO placements (campaign_id, name, engine, build, build_version, unit, model, settings, must_match,"
    " bandwidth_bytes_per_second) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
CHANGE_SETTINGS = "UPDATE placements SET settings = ?, must_match = ? WHERE id = ?"
REPLACE_QUALITY = (
    "INSERT OR REPLACE INTO quality (placement_id, verdict, reference, positions, divergence, divergence_prefill,"
    " divergence_decode, agreement, perplexity, reasons) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
INSERT_SAMPLE = (
    "INSERT INTO samples (run_id, test_kind, prompt_tokens, generated_tokens, depth, question, started_ns,"
    " finished_ns, prompt_evaluated, prompt_cached, prompt_ns, decode_steps, decode_ns, thinking_at_ns,"
    " answer_at_ns, thinking_text, answer_text, stop_reason, marks)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
FINISH_RUN = (
    "UPDATE runs SET outcome = ?, finished_ns = ?, failure = ?, warnings = ?, remarks = ?, log = ?, sensor_log = ?"
    " WHERE id = ?"
)
SELECT_PLACEMENTS = (
    "SELECT * FROM placements LEFT JOIN quality ON placement_id = placements.id WHERE campaign_id = ? ORDER BY id"
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
    "SELECT test_kind, prompt_tokens, generated_tokens, depth, question FROM samples JOIN runs"
    " ON runs.id = samples.run_id" + _OF_CAMPAIGN + " GROUP BY 1, 2, 3, 4, 5 ORDER BY MIN(samples.id)"
)
COUNT_RUNS = "SELECT COUNT(*) AS number FROM runs" + _OF_CAMPAIGN + " AND outcome IS NOT NULL"
ABANDON_RUNS = (
    "UPDATE runs SET writer = '' WHERE outcome IS NULL"
    " AND placement_id IN (SELECT id FROM placements WHERE campaign_id = ?)"
)

_KILLED = Failure(kind="interrupted", message="interrupted: the process that measured it was stopped within this run")


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
    return (
        campaign_id,
        record.name,
        record.engine,
        record.build,
        record.build_version,
        record.unit,
        pack(record.model),
        pack(record.settings),
        pack(record.must_match),
        record.bandwidth_bytes_per_second,
    )


def placement(row: sqlite3.Row) -> PlacementRecord:
    return PlacementRecord(
        name=row["name"],
        engine=row["engine"],
        build=row["build"],
        build_version=row["build_version"],
        unit=row["unit"],
        model=unpack(row["model"]),
        settings=unpack(row["settings"]),
        must_match=unpack(row["must_match"]),
        bandwidth_bytes_per_second=row["bandwidth_bytes_per_second"],
        quality=None if row["verdict"] is None else _quality(row),
    )


def quality_values(placement_id: int, record: QualityRecord) -> tuple[Any, ...]:
    return (
        placement_id,
        record.verdict,
        record.reference,
        record.positions,
        record.divergence,
        record.divergence_prefill,
        record.divergence_decode,
        record.agreement,
        record.perplexity,
        pack(record.reasons),
    )


def _quality(row: sqlite3.Row) -> QualityRecord:
    return QualityRecord(
        verdict=row["verdict"],
        reference=row["reference"],
        positions=row["positions"],
        divergence=row["divergence"],
        divergence_prefill=row["divergence_prefill"],
        divergence_decode=row["divergence_decode"],
        agreement=row["agreement"],
        perplexity=row["perplexity"],
        reasons=tuple(unpack(row["reasons"])),
    )


def sample_values(run_id: int, record: Sample) -> tuple[Any, ...]:
    return (
        run_id,
        record.test.kind,
        record.test.prompt_tokens,
        record.test.generated_tokens,
        record.test.depth,
        pack(record.test.question),
        record.started_ns,
        record.finished_ns,
        record.prompt_evaluated,
        record.prompt_cached,
        record.prompt_ns,
        record.decode_steps,
        record.decode_ns,
        pack(record.thinking_at_ns),
        pack(record.answer_at_ns),
        pack(record.thinking_text),
        pack(record.answer_text),
        pack(record.stop_reason),
        pack(record.marks),
    )


def test(row: sqlite3.Row) -> Test:
    return Test(
        kind=row["test_kind"],
        prompt_tokens=row["prompt_tokens"],
        generated_tokens=row["generated_tokens"],
        depth=row["depth"],
        question=unpack(row["question"]),
    )


def sample(row: sqlite3.Row) -> Sample:
    return Sample(
        test=test(row),
        started_ns=row["started_ns"],
        finished_ns=row["finished_ns"],
        prompt_evaluated=row["prompt_evaluated"],
        prompt_cached=row["prompt_cached"],
        prompt_ns=row["prompt_ns"],
        decode_steps=row["decode_steps"],
        decode_ns=row["decode_ns"],
        thinking_at_ns=tuple(unpack(row["thinking_at_ns"])),
        answer_at_ns=tuple(unpack(row["answer_at_ns"])),
        thinking_text=unpack(row["thinking_text"]),
        answer_text=unpack(row["answer_text"]),
        stop_reason=unpack(row["stop_reason"]),
        marks=unpack(row["marks"]),
    )


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
