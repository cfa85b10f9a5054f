"""The results database's shape: numbered migrations that are only ever appended to, never edited.

What is queried has a column of its own; lists, maps and free text are JSON columns (a child's answer may hold
half a surrogate pair, which JSON keeps and an SQLite text cannot). Logs are zlib, sensor logs zlib of JSON. Times are
monotonic ns; `started` beside them is a wall-clock label. `writer` is the process that measures, in
`results.writer`'s words.
"""

import sqlite3

__all__ = ["APPLICATION_ID", "MIGRATIONS", "NEWEST", "migrate", "roll_back"]

APPLICATION_ID = 0x54524C54
"""In the file's header, so that another program's database is not taken for ours: "TRLT"."""

_RECORDS = """
CREATE TABLE campaigns (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  started TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('running', 'interrupted', 'finished')),
  source TEXT NOT NULL,
  version TEXT NOT NULL,
  board TEXT NOT NULL,
  plan TEXT NOT NULL,
  writer TEXT NOT NULL
);
CREATE TABLE placements (
  id INTEGER PRIMARY KEY,
  campaign_id INTEGER NOT NULL REFERENCES campaigns (id) ON DELETE CASCADE,
  name TEXT NOT NULL,
  engine TEXT NOT NULL,
  build TEXT NOT NULL,
  build_version TEXT NOT NULL,
  unit TEXT NOT NULL,
  model TEXT NOT NULL,
  settings TEXT NOT NULL,
  must_match TEXT NOT NULL,
  bandwidth_bytes_per_second REAL,
  UNIQUE (campaign_id, name)
);
CREATE TABLE quality (
  placement_id INTEGER PRIMARY KEY REFERENCES placements (id) ON DELETE CASCADE,
  verdict TEXT NOT NULL,
  reference TEXT NOT NULL,
  positions INTEGER NOT NULL,
  divergence REAL,
  divergence_prefill REAL,
  divergence_decode REAL,
  agreement REAL,
  perplexity REAL,
  reasons TEXT NOT NULL
);
CREATE TABLE runs (
  id INTEGER PRIMARY KEY,
  placement_id INTEGER NOT NULL REFERENCES placements (id) ON DELETE CASCADE,
  round INTEGER NOT NULL,
  started TEXT NOT NULL,
  started_ns INTEGER NOT NULL,
  finished_ns INTEGER,
  outcome TEXT CHECK (outcome IN ('finished', 'failed', 'skipped')),
  failure TEXT,
  warnings TEXT NOT NULL DEFAULT '[]',
  log BLOB,
  writer TEXT NOT NULL
);
CREATE INDEX runs_of_placement ON runs (placement_id);
CREATE TABLE samples (
  id INTEGER PRIMARY KEY,
  run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  test_kind TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  generated_tokens INTEGER NOT NULL,
  depth INTEGER NOT NULL,
  question TEXT NOT NULL,
  started_ns INTEGER NOT NULL,
  finished_ns INTEGER NOT NULL,
  prompt_evaluated INTEGER,
  prompt_cached INTEGER,
  prompt_ns INTEGER,
  decode_steps INTEGER,
  decode_ns INTEGER,
  thinking_at_ns TEXT NOT NULL,
  answer_at_ns TEXT NOT NULL,
  thinking_text TEXT NOT NULL,
  answer_text TEXT NOT NULL,
  stop_reason TEXT NOT NULL,
  marks TEXT NOT NULL
);
CREATE INDEX samples_of_run ON samples (run_id);
"""

_SENSORS = """
ALTER TABLE runs ADD COLUMN sensor_log BLOB;
ALTER TABLE runs ADD COLUMN remarks TEXT NOT NULL DEFAULT '[]';
"""

MIGRATIONS: tuple[tuple[int, str, str], ...] = (
    (1, "campaigns, placements, quality, runs, samples", _RECORDS),
    (2, "what the sensors told during a run, and remarks", _SENSORS),
)
"""Number, what it brings, SQL. A released one stays as it is: old databases are opened for ever."""

NEWEST = MIGRATIONS[-1][0]


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an empty or older database to NEWEST, all or nothing, also when two processes do so at once.

    The connection is in autocommit mode. Raises sqlite3.Error.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for number, _, script in MIGRATIONS:
            if number > version:
                for statement in _statements(script):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise


def roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:  # on a full disk SQLite has done so itself
        connection.execute("ROLLBACK")


def _statements(script: str) -> list[str]:
    """`executescript` would commit the transaction around it, so the statements go one by one."""
    statements, pending = [], ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements
