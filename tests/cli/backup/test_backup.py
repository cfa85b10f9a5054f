"""`trilithon backup` and `trilithon restore`: what is kept comes back, and a stranger's file writes nothing."""

import hashlib
import io
import json
import os
import shutil
import sqlite3
import stat
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from trilithon.cli.backup.archive import FORMAT
from trilithon.results.store.database import Store
from trilithon.settings import configuration_path, load_configuration

Program = Callable[..., Any]


@pytest.fixture
def data(home: Path, tiny: Path) -> Path:
    """A data folder with some of everything, and settings."""
    data = load_configuration().data
    for name, text in {
        "keys.json": "[]",
        "builds.json": "[]",
        "builds/mine/llama-server": "program",
        "conversations/key-ann/1.json": "{}",
        "models/adopted.json": '["/models"]',
        "models/blobs/sha256-00": "weights",
        "models/manifests/x": "manifest",
        "keys.lock": "",
        ".new-1-2": "half",
    }.items():
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o600)
    (data / "builds/mine/llama-server").chmod(0o755)
    (data / "models/manifests/x").unlink()
    with Store.open(data / "results.sqlite") as store:
        store.start_campaign(started="2026-11-30T00:00:00+00:00", source="bench", version="1", board={}, plan={})
    config = configuration_path()
    config.parent.mkdir(parents=True)
    config.write_text("hang_seconds = 7\n")
    return data


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_but_models_comes_back(trilithon: Program, data: Path, tmp_path: Path) -> None:
    archive = tmp_path / "board.tar.gz"
    done = trilithon("backup", archive, "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["files"] == 7
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    shutil.move(data, tmp_path / "old")
    configuration_path().unlink()
    done = trilithon("restore", archive)
    assert done.code == 0, done.stderr
    back = files(data)
    assert set(back) == {
        *("keys.json", "builds.json", "builds/mine/llama-server", "conversations/key-ann/1.json"),
        *("models/adopted.json", "results.sqlite"),
    }
    old = files(tmp_path / "old")
    assert all(back[name] == old[name] for name in back if name != "results.sqlite")
    assert os.access(data / "builds/mine/llama-server", os.X_OK)
    assert stat.S_IMODE((data / "keys.json").stat().st_mode) == 0o600
    assert configuration_path().read_text() == "hang_seconds = 7\n"
    with Store.open(data / "results.sqlite") as store:
        assert [row.started for row in store.campaigns()] == ["2026-11-30T00:00:00+00:00"]


def test_a_database_that_is_being_written_is_whole(trilithon: Program, data: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(data / "results.sqlite", isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("UPDATE campaigns SET version = 'in the log'")
        assert trilithon("backup", tmp_path / "a.tar.gz").code == 0
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        assert not [name for name in archive.getnames() if name.endswith(("-wal", "-shm"))]
        archive.extract("data/results.sqlite", tmp_path / "out", filter="data")
    with closing(sqlite3.connect(tmp_path / "out/data/results.sqlite")) as copy:
        assert copy.execute("SELECT version FROM campaigns").fetchall() == [("in the log",)]


def test_what_differs_is_replaced_after_a_question_and_kept(
    trilithon: Program, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trilithon("backup", tmp_path / "a.tar.gz")
    (data / "keys.json").write_text("[1]")
    (data / "new").write_text("stays")
    before = files(data)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    done = trilithon("restore", tmp_path / "a.tar.gz")
    assert done.code == 2
    assert "nothing was changed" in done.stderr
    assert files(data) == before
    done = trilithon("restore", tmp_path / "a.tar.gz", "-y")
    assert done.code == 0, done.stderr
    assert (data / "keys.json").read_text() == "[]"
    assert (data / "new").read_text() == "stays"
    (kept,) = data.parent.glob("trilithon-before-*")
    assert files(kept)["data/keys.json"] == b"[1]"
    assert str(kept) in done.stderr
    assert not list(data.parent.glob(".new-*"))


def test_a_running_server_is_not_written_under(
    served: Any, trilithon: Program, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trilithon("backup", tmp_path / "a.tar.gz")
    monkeypatch.setenv("TRILITHON_HOST", served.url)
    done = trilithon("restore", tmp_path / "a.tar.gz", "-y")
    assert done.code == 2
    assert "stop it first" in done.stderr


def test_an_archive_that_exists_is_not_overwritten(trilithon: Program, data: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    assert trilithon("backup", tmp_path / "a").code == 2
    assert (tmp_path / "a").read_text() == "mine"
    assert trilithon("backup", tmp_path / "no folder" / "a").code == 2


def test_a_backup_that_is_missing(trilithon: Program, home: Path) -> None:
    done = trilithon("restore", home / "no.tar.gz", "-y")
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert "no.tar.gz: No such file" in done.stderr


def archive_of(path: Path, members: dict[str, bytes], *, listed: bool = True, **contents: Any) -> Path:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    whole = {"format": FORMAT, "created": "then", "version": "9", "models": [], "files": digests} | contents
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (members | ({"backup.json": json.dumps(whole).encode()} if listed else {})).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("members", "more", "said"),
    [
        ({"../evil": b"x"}, {}, "it has '../evil'"),
        ({"data/../../evil": b"x"}, {}, "it has"),
        ({"/etc/evil": b"x"}, {}, "it has '/etc/evil'"),
        ({"data//x": b"x"}, {}, "it has"),
        ({"other": b"x"}, {}, "it has 'other'"),
        ({"data": b"x"}, {}, "it has 'data'"),
        ({"data/x": b"x"}, {"listed": False}, "its list of files is missing"),
        ({"data/x": b"x"}, {"format": FORMAT + 1}, "was made by Trilithon 9"),
        ({"data/x": b"x"}, {"files": {}}, "its files differ"),
        ({"data/x": b"x"}, {"files": {"data/x": "0" * 64}}, "its files differ"),
        ({"data/x": b"x"}, {"models": 5}, "cannot be read"),
    ],
)
def test_what_is_no_backup_changes_nothing(
    trilithon: Program, home: Path, members: dict[str, bytes], more: dict[str, Any], said: str
) -> None:
    archive = archive_of(home / "a.tar.gz", members, **more)
    done = trilithon("restore", archive, "-y")
    assert done.code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert set(files(home)) == {"a.tar.gz"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_and_devices_are_refused(trilithon: Program, home: Path, kind: bytes) -> None:
    with tarfile.open(home / "a.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("data/x")
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    assert trilithon("restore", home / "a.tar.gz", "-y").code == 2
    assert set(files(home)) == {"a.tar.gz"}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
def test_a_file_that_was_cut_off_changes_nothing(trilithon: Program, data: Path, tmp_path: Path, share: float) -> None:
    trilithon("backup", tmp_path / "a.tar.gz")
    content = (tmp_path / "a.tar.gz").read_bytes()
    (tmp_path / "b.tar.gz").write_bytes(content[: int(len(content) * share)])
    before = files(data)
    done = trilithon("restore", tmp_path / "b.tar.gz", "-y")
    assert done.code == 2
    assert done.stderr.count("\n") == 1
    assert files(data) == before
