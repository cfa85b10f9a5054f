"""Campaigns on disk: every sample is committed as it arrives, so that a kill at any moment loses none.

Maps in records have to be JSON values; a tuple inside one comes back as a list."""

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

from trilithon.errors import StoreError
from trilithon.measure.records import (
    AnswerRecord,
    Campaign,
    Failure,
    Outcome,
    PlacementRecord,
    QualityRecord,
    Run,
    Sample,
    SensorLog,
)
from trilithon.results.store import rows
from trilithon.results.store.errors import refuse_foreign, translated
from trilithon.results.store.identity import measured_identity
from trilithon.results.store.schema import APPLICATION_ID, NEWEST, migrate, roll_back
from trilithon.results.store.writer import is_alive, process_number, this_process

__all__ = ["CampaignSummary", "Status", "Store"]

Status = Literal["running", "interrupted", "finished"]

_BUSY_SECONDS = 30.0
_SAME_START = "SELECT id FROM campaigns WHERE started = ? AND source = ? ORDER BY id"
_OTHER_FOLDER = "set TRILITHON_DATA to another folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignSummary:
    """One line of `results list`. `models`, `placements` and `tests` are names, `quantizations` those of `models`;
    `runs` counts those that ended. `imported` is when a file brought it here, empty for what was measured here."""

    id: int
    started: str
    status: Status
    source: str
    imported: str
    board: str
    models: tuple[str, ...]
    quantizations: tuple[str, ...]
    placements: tuple[str, ...]
    tests: tuple[str, ...]
    runs: int


class Store:
    """An open results database. Every method raises StoreError, in one line, for what goes wrong on disk."""

    def __init__(self, path: Path, connection: sqlite3.Connection):
        self._path = path
        self._connection = connection
        self._writer = this_process()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open it, creating folders and file, and bring an older one up to date.

        A file that is newer, corrupt or another program's is left as it is: StoreError."""
        with translated(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            refuse_foreign(path)
            connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
            try:
                _prepare(connection, path)
            except BaseException:
                connection.close()
                raise
            return cls(path, connection)

    def close(self) -> None:
        """The last one to close also moves the write-ahead log into the database file (SQLite's own doing; where
        it cannot, on a full disk, the log stays and the next one to open reads it)."""
        with translated(self._path):
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def start_campaign(
        self, *, started: str, source: str, version: str, board: Mapping[str, Any], plan: Mapping[str, Any]
    ) -> int:
        """A campaign that this process measures now; `started` is wall-clock time in ISO 8601."""
        return self._execute(
            "INSERT INTO campaigns (started, status, source, version, board, plan, writer)"
            " VALUES (?, 'running', ?, ?, ?, ?, ?)",
            (started, source, version, rows.pack(board), rows.pack(plan), self._writer),
        )

    def add_placement(self, campaign_id: int, placement: PlacementRecord) -> None:
        """Also keeps its quality and its answers, where it has any. Names are unique within a campaign."""
        with self._transaction():
            self._require(campaign_id)
            self._execute(rows.INSERT_PLACEMENT, rows.placement_values(campaign_id, placement))
            if placement.quality is not None:
                self.set_quality(campaign_id, placement.name, placement.quality)
            for answer in placement.answers:
                self.add_answer(campaign_id, placement.name, answer)

    def change_settings(self, campaign_id: int, placement: PlacementRecord) -> None:
        """It goes on with other settings than it was added with; only one without a sample may."""
        identity = self._placement(campaign_id, placement.name)
        self._execute(rows.CHANGE_SETTINGS, (rows.pack(placement.settings), rows.pack(placement.must_match), identity))

    def set_quality(self, campaign_id: int, placement: str, quality: QualityRecord) -> None:
        identity = self._placement(campaign_id, placement)
        self._execute(rows.REPLACE_QUALITY, rows.quality_values(identity, quality))

    def add_answer(self, campaign_id: int, placement: str, answer: AnswerRecord) -> None:
        """On disk when this returns. Of a question that was answered before, the new answer is kept."""
        self._execute(rows.INSERT_ANSWER, rows.answer_values(self._placement(campaign_id, placement), answer))

    def start_run(self, campaign_id: int, placement: str, round: int, started_ns: int) -> int:  # noqa: A002 - its name in Run
        identity = self._placement(campaign_id, placement)
        label = datetime.now(UTC).isoformat(timespec="seconds")
        return self._execute(
            "INSERT INTO runs (placement_id, round, started, started_ns, writer) VALUES (?, ?, ?, ?, ?)",
            (identity, round, label, started_ns, self._writer),
        )

    def add_sample(self, run_id: int, sample: Sample) -> None:
        """On disk when this returns."""
        self._execute(rows.INSERT_SAMPLE, rows.sample_values(run_id, sample))

    def finish_run(
        self,
        run_id: int,
        outcome: Outcome,
        finished_ns: int,
        *,
        failure: Failure | None = None,
        warnings: Sequence[str] = (),
        remarks: Sequence[str] = (),
        log: str = "",
        sensor_log: SensorLog | None = None,
    ) -> None:
        """`log` is what the child wrote; its last 256 KiB are kept."""
        failed = None if failure is None else rows.pack(failure)
        told = (rows.pack(warnings), rows.pack(remarks))
        logs = (rows.pack_log(log), rows.pack_sensor_log(sensor_log))
        values = (outcome, finished_ns, failed, *told, *logs, run_id)
        with translated(self._path):
            changed = self._connection.execute(rows.FINISH_RUN, values).rowcount
        if not changed:
            raise StoreError("results database {path} has no run {run_id}", path=self._path, run_id=run_id)

    def set_plan(self, campaign_id: int, plan: Mapping[str, Any]) -> None:
        with self._transaction():
            self._require(campaign_id)
            self._execute("UPDATE campaigns SET plan = ? WHERE id = ?", (rows.pack(plan), campaign_id))

    def set_status(self, campaign_id: int, status: Status) -> None:
        """ "running" also says that it is this process which measures it now, as on `--resume`. A campaign that
        another process measures now is left to it: StoreError."""
        writer = self._writer if status == "running" else ""
        with self._transaction():
            self._refuse_live(self._require(campaign_id))
            self._execute("UPDATE campaigns SET status = ?, writer = ? WHERE id = ?", (status, writer, campaign_id))
            self._execute(rows.ABANDON_RUNS, (campaign_id,))

    def add_once(self, campaign: Campaign) -> tuple[int, bool]:
        """As an import does: `add`, unless the campaign is here already. Gives its number, and whether it is new."""
        with self._transaction():
            identity = measured_identity(campaign)
            for row in self._select(_SAME_START, campaign.started, campaign.source):
                if measured_identity(self.campaign(row["id"])) == identity:
                    return row["id"], False
            number = self.add(campaign)
            moment = datetime.now(UTC).isoformat(timespec="seconds")
            self._execute("UPDATE campaigns SET imported = ? WHERE id = ?", (moment, number))
            return number, True

    def add(self, campaign: Campaign) -> int:
        """Keep a whole campaign: all of it or nothing. Gives its number here."""
        with self._transaction():
            number = self.start_campaign(
                started=campaign.started,
                source=campaign.source,
                version=campaign.version,
                board=campaign.board,
                plan=campaign.plan,
            )
            for placement in campaign.placements:
                self.add_placement(number, placement)
            for run in campaign.runs:
                self._add_run(number, run)
            self.set_status(number, "finished" if campaign.status == "finished" else "interrupted")
        return number

    def campaign(self, campaign_id: int) -> Campaign:
        """Everything there is of it. Runs within which the process was killed come back as failed ("interrupted"), with
        their samples; a run that is being measured at this moment is not in it yet."""
        with self._transaction("BEGIN"):
            row = self._require(campaign_id)
            status = _status(row)
            return Campaign(
                id=campaign_id,
                started=row["started"],
                status=status,
                source=row["source"],
                version=row["version"],
                board=rows.unpack(row["board"]),
                plan=rows.unpack(row["plan"]),
                placements=self._placements(campaign_id),
                runs=self._runs(campaign_id, live=status == "running"),
            )

    def campaigns(self) -> list[CampaignSummary]:
        """One summary each, oldest first."""
        with self._transaction("BEGIN"):
            return [self._summary(row) for row in self._select("SELECT * FROM campaigns ORDER BY id")]

    def last_interrupted(self) -> int | None:
        """The newest campaign that began here and can go on; None when there is none. A live one is not taken."""
        query = "SELECT * FROM campaigns WHERE status <> 'finished' AND source = 'trilithon' AND imported = ''"
        query += " ORDER BY id DESC"
        interrupted = self._select(query)
        return next((int(row["id"]) for row in interrupted if _status(row) == "interrupted"), None)

    def remove(self, campaign_id: int) -> None:
        self._refuse_live(self._require(campaign_id))
        self._execute("DELETE FROM campaigns WHERE id = ?", (campaign_id,))

    def _refuse_live(self, row: sqlite3.Row) -> None:
        if _status(row) == "running" and row["writer"] != self._writer:
            number = process_number(row["writer"])
            raise StoreError(
                "campaign {id} is being measured by process {number}; stop that first", id=row["id"], number=number
            )

    def _add_run(self, campaign_id: int, run: Run) -> None:
        number = self.start_run(campaign_id, run.placement, run.round, run.started_ns)
        for sample in run.samples:
            self.add_sample(number, sample)
        self.finish_run(
            number,
            run.outcome,
            run.finished_ns,
            failure=run.failure,
            warnings=run.warnings,
            remarks=run.remarks,
            log=run.log,
            sensor_log=run.sensor_log,
        )

    def _placements(self, campaign_id: int) -> tuple[PlacementRecord, ...]:
        answers: dict[int, list[AnswerRecord]] = {}
        for row in self._select(rows.SELECT_ANSWERS, campaign_id):
            answers.setdefault(row["placement_id"], []).append(rows.answer(row))
        return tuple(
            rows.placement(row, tuple(answers.get(row["id"], ())))
            for row in self._select(rows.SELECT_PLACEMENTS, campaign_id)
        )

    def _runs(self, campaign_id: int, *, live: bool) -> tuple[Run, ...]:
        samples: dict[int, list[Sample]] = {}
        for row in self._select(rows.SELECT_SAMPLES, campaign_id):
            samples.setdefault(row["run_id"], []).append(rows.sample(row))
        return tuple(
            rows.run(row, tuple(samples.get(row["id"], ())))
            for row in self._select(rows.SELECT_RUNS, campaign_id)
            if row["outcome"] is not None or not (live and is_alive(row["writer"]))
        )

    def _summary(self, row: sqlite3.Row) -> CampaignSummary:
        placements = [rows.placement(placement) for placement in self._select(rows.SELECT_PLACEMENTS, row["id"])]
        models = dict.fromkeys(
            (str(record.model.get("name", "")), str(record.model.get("quantization") or "")) for record in placements
        )
        board = rows.unpack(row["board"])
        return CampaignSummary(
            id=row["id"],
            started=row["started"],
            status=_status(row),
            source=row["source"],
            imported=row["imported"],
            board=str(board.get("model") or str(board.get("description", "")).partition(" · ")[0]),
            models=tuple(name for name, _ in models),
            quantizations=tuple(quantization for _, quantization in models),
            placements=tuple(placement.name for placement in placements),
            tests=tuple(rows.test(test).name for test in self._select(rows.SELECT_TESTS, row["id"])),
            runs=self._select(rows.COUNT_RUNS, row["id"])[0]["number"],
        )

    def _require(self, campaign_id: int) -> sqlite3.Row:
        require = self._select("SELECT * FROM campaigns WHERE id = ?", campaign_id)
        if not require:
            raise StoreError("there is no campaign {campaign_id}; see: trilithon results list", campaign_id=campaign_id)
        return require[0]

    def _placement(self, campaign_id: int, name: str) -> int:
        self._require(campaign_id)
        placement = self._select("SELECT id FROM placements WHERE campaign_id = ? AND name = ?", campaign_id, name)
        if not placement:
            raise StoreError(
                "campaign {campaign_id} has no placement {name}; add the placement before its runs",
                campaign_id=campaign_id,
                name=name,
            )
        return int(placement[0]["id"])

    def _select(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        with translated(self._path):
            return self._connection.execute(statement, values).fetchall()

    def _execute(self, statement: str, values: Sequence[Any]) -> int:
        """Gives the number of the row that an INSERT made."""
        with translated(self._path):
            return cast("int", self._connection.execute(statement, values).lastrowid)

    @contextmanager
    def _transaction(self, begin: Literal["BEGIN", "BEGIN IMMEDIATE"] = "BEGIN IMMEDIATE") -> Iterator[None]:
        """One consistent view, and all or nothing. Within another one it is part of that."""
        if self._connection.in_transaction:
            yield
            return
        with translated(self._path):
            self._connection.execute(begin)
        try:
            with translated(self._path):  # rows that are no longer what was written show when they are taken apart
                yield
                self._connection.execute("COMMIT")
        except BaseException:
            roll_back(self._connection)
            raise


def _status(row: sqlite3.Row) -> Status:
    if row["status"] == "running" and not is_alive(row["writer"]):
        return "interrupted"
    return cast("Status", row["status"])


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.row_factory = sqlite3.Row
    version = _version(connection, path)  # before anything is written
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    _use_write_ahead_log(connection)
    if version < NEWEST:
        migrate(connection)


def _version(connection: sqlite3.Connection, path: Path) -> int:
    connection.execute("BEGIN")
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    application = int(connection.execute("PRAGMA application_id").fetchone()[0])
    tables = int(connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0])
    connection.execute("COMMIT")
    if application != APPLICATION_ID and (application or version or tables):
        raise StoreError(
            "{path} is another program's database; move it away, or {other_folder}",
            path=path,
            other_folder=_OTHER_FOLDER,
        )
    if version > NEWEST:
        raise StoreError(
            "results database {path} was written by a newer Trilithon (schema {version}, this one knows "
            "{newest}); upgrade Trilithon, or {other_folder}",
            path=path,
            version=version,
            newest=NEWEST,
            other_folder=_OTHER_FOLDER,
        )
    return version


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """SQLite does not wait on its own here while another process opens the same new database."""
    deadline_ns = time.monotonic_ns() + int(_BUSY_SECONDS * 1e9)
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic_ns() > deadline_ns:
                raise
            time.sleep(0.01)
