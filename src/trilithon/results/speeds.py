"""How fast one placement of a file was on this board when it was measured last: two figures, without the rest."""

import sqlite3
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from trilithon.board.snapshot import Board
from trilithon.results.store.errors import refuse_foreign, translated

__all__ = ["Speeds", "last_speeds"]

# What decode and prefill are read from, the plainest test first.
_DECODE, _PREFILL = ("tg", "question", "pg"), ("pp", "question", "pg")
_BUSY_SECONDS = 2.0

_FIND = (
    "SELECT placements.id AS id, campaign_id FROM placements JOIN campaigns ON campaigns.id = campaign_id"
    # A campaign of several models adds the file to the name.
    " WHERE placements.name IN (?1, ?1 || ' with ' || json_extract(placements.model, '$.file'))"
    " AND source = 'trilithon'{condition} AND json_extract(must_match, '$.file') = ?2"
    " AND json_extract(must_match, '$.board') = ?3 AND json_extract(must_match, '$.chip') = ?4"
    " AND EXISTS (SELECT 1 FROM runs WHERE placement_id = placements.id AND outcome = 'finished')"
    " ORDER BY campaign_id DESC LIMIT 1"
)
_SAMPLES = (
    "SELECT test_kind, run_id, prompt_evaluated, prompt_ns, decode_steps, decode_ns FROM samples"
    " JOIN runs ON runs.id = run_id WHERE placement_id = ? AND outcome = 'finished' AND depth = 0"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Tokens per second, each the median over runs; None where it was not measured."""

    campaign: int
    prefill: float | None
    decode: float | None


def last_speeds(database: Path, sha256: str, placement: str, board: Board) -> Speeds | None:
    """From the newest campaign that measured it here; None where none did. Nothing is written. Raises StoreError."""
    if not sha256 or not database.is_file():
        return None
    with translated(database):
        refuse_foreign(database)
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)) as db:
            db.row_factory = sqlite3.Row
            # The column came with migration 3, and nothing is migrated here.
            condition = " AND imported = ''" if db.execute("PRAGMA user_version").fetchone()[0] >= 3 else ""
            newest = db.execute(
                _FIND.format(condition=condition), (placement, sha256, board.model, board.chip)
            ).fetchone()
            samples = db.execute(_SAMPLES, (newest["id"],)).fetchall() if newest else []
    if newest is None:
        return None
    return Speeds(
        campaign=newest["campaign_id"],
        prefill=_rate(samples, _PREFILL, "prompt_evaluated", "prompt_ns"),
        decode=_rate(samples, _DECODE, "decode_steps", "decode_ns"),
    )


def _rate(samples: Sequence[sqlite3.Row], kinds: Sequence[str], count: str, nanoseconds: str) -> float | None:
    """Of the first kind of test that tells it: the median over runs of each run's median, as in reports."""
    for kind in kinds:
        runs: dict[int, list[float]] = {}
        for row in samples:
            if row["test_kind"] == kind and row[count] and row[nanoseconds]:
                runs.setdefault(row["run_id"], []).append(row[count] / row[nanoseconds] * 1e9)
        if runs:
            return statistics.median(statistics.median(values) for values in runs.values())
    return None
