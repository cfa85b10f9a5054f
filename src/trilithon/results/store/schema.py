"""The results database's shape: numbered migrations that are only ever appended to, never edited.

What is queried has a column of its own; lists, maps and free text are JSON columns (a child's answer may hold
half a surrogate pair, which JSON keeps and an SQLite text cannot). Logs are zlib, sensor logs zlib of JSON. Times are
monotonic ns; `started` beside them is a wall-clock label. `writer` is the process that measures, in
`results.store.writer`'s form; `imported` is when a file brought the campaign here."""

import sqlite3
from pathlib import Path

__all__ = ["APPLICATION_ID", "MIGRATIONS", "NEWEST", "migrate", "roll_back"]

_FOLDER = Path(__file__).with_name("migrations")
APPLICATION_ID = 0x54524C54
"""In the file's header, so that another program's database is not taken for ours: "TRLT"."""

MIGRATIONS: tuple[tuple[int, str], ...] = (
    (1, "1_records.sql"),
    (2, "2_sensors.sql"),
    (3, "3_imports.sql"),
    (4, "4_answers.sql"),
)
"""Number and SQL file in migrations/. A released one is never edited: old databases are still opened."""

NEWEST = MIGRATIONS[-1][0]


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an empty or older database to NEWEST, all or nothing, also when two processes do so at once.

    The connection is in autocommit mode. Raises sqlite3.Error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for number, name in MIGRATIONS:
            if number > version:
                for statement in _statements((_FOLDER / name).read_text(encoding="utf-8")):
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
