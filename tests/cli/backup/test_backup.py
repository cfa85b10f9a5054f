"""`trilithon backup` and `trilithon restore`: what is kept comes back, and a stranger's file writes nothing."""

import hashlib
import io
import json
import os
import shutil
import socket
import sqlite3
import stat
import tarfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from trilithon.cli.backup import archive as archive_module
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


def test_an_answer_that_is_no_version_may_be_a_servers(
    trilithon: Program, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a certificate that is not trusted: something listens there."""
    trilithon("backup", tmp_path / "a.tar.gz")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("TRILITHON_HOST", f"127.0.0.1:{listener.getsockname()[1]}")
        closing_at_once = threading.Thread(target=lambda: listener.accept()[0].close())
        closing_at_once.start()
        done = trilithon("restore", tmp_path / "a.tar.gz", "-y")
        closing_at_once.join()
    assert done.code == 2
    assert "stop it first" in done.stderr


def test_a_backup_into_the_data_folder_has_not_itself(trilithon: Program, data: Path) -> None:
    assert trilithon("backup", data / "a.tar.gz").code == 0
    with tarfile.open(data / "a.tar.gz") as archive:
        assert "data/a.tar.gz" not in archive.getnames()


def test_what_cannot_be_kept_is_said_and_links_of_libraries_are_files(
    trilithon: Program, data: Path, tmp_path: Path
) -> None:
    (data / "builds/mine/libx.so.1").write_text("library")
    (data / "builds/mine/libx.so").symlink_to("libx.so.1")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x").write_text("x")
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "passwd").symlink_to("/etc/passwd")
    done = trilithon("backup", tmp_path / "a.tar.gz")
    assert done.code == 0
    assert f"left out: {data / 'linked'}: not a plain file" in done.stderr
    assert f"left out: {data / 'passwd'}: not a plain file" in done.stderr
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        member = archive.extractfile("data/builds/mine/libx.so")
        assert member is not None and member.read() == b"library"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_said(trilithon: Program, data: Path, tmp_path: Path) -> None:
    (data / "conversations/key-ann").chmod(0)
    try:
        done = trilithon("backup", tmp_path / "a.tar.gz")
    finally:
        (data / "conversations/key-ann").chmod(0o700)
    assert f"left out: {data / 'conversations/key-ann'}: Permission denied" in done.stderr


def test_a_file_that_goes_while_the_folder_is_read(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(*_: Any, **__: Any) -> Any:
        yield str(data), [], ["gone", "keys.json"]

    monkeypatch.setattr("os.walk", walk)
    assert data / "keys.json" in archive_module._files(data, data.stat(), [])


def test_a_data_folder_with_signs_of_addresses(trilithon: Program, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = data.with_name("a?b#c%20")
    data.rename(odd)
    monkeypatch.setenv("TRILITHON_DATA", str(odd))
    assert trilithon("backup", odd.with_name("a.tar.gz")).code == 0
    with tarfile.open(odd.with_name("a.tar.gz")) as archive:
        assert "data/results.sqlite" in archive.getnames()


def test_the_log_of_a_database_that_is_the_same_goes_too(trilithon: Program, data: Path, tmp_path: Path) -> None:
    trilithon("backup", tmp_path / "a.tar.gz")
    assert trilithon("restore", tmp_path / "a.tar.gz", "-y").code == 0
    (data / "results.sqlite-wal").write_text("later")
    assert trilithon("restore", tmp_path / "a.tar.gz", "-y").code == 0
    assert not (data / "results.sqlite-wal").exists()
    kept = data.parent.glob("trilithon-before-*/data/results.sqlite-wal")
    assert b"later" in [path.read_bytes() for path in kept]


def test_data_goes_where_the_restored_settings_have_it(trilithon: Program, data: Path, tmp_path: Path) -> None:
    data.rename(tmp_path / "disk")
    configuration_path().write_text(f'data = "{tmp_path / "disk"}"\n')
    assert trilithon("backup", tmp_path / "a.tar.gz").code == 0
    shutil.rmtree(tmp_path / "disk")
    configuration_path().unlink()
    assert trilithon("restore", tmp_path / "a.tar.gz").code == 0
    assert load_configuration().data == tmp_path / "disk"
    assert (tmp_path / "disk/keys.json").read_text() == "[]"


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
        ({"data/x": b"x", "backup.json": b"[" * 100_000}, {"listed": False}, "cannot be read"),
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
