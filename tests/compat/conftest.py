"""Copies of the files of version 0.1 in a temporary home folder, and the program on the board that they come from."""

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from trilithon.board.sysfs import THIS_MACHINE
from trilithon.cli.main import run

FILES = Path(__file__).parent / "v0_1"
HOME, KERNEL = "@HOME@", "@KERNEL@"
DATA, CACHE = "kept/data", "kept/cache"
_SERVER_TIME = 1_700_000_000
_HIDDEN = ("TRILITHON_", "OLLAMA_", "HF_", "HUGGINGFACE_", "RKLLAMA_", "LISTEN_", "NOTIFY_")
_PROGRAM = """
import sys
from pathlib import Path
from trilithon.board import sysfs
sysfs.THIS_MACHINE = sysfs.Machine(Path(sys.argv.pop(1)))
from trilithon.cli.main import entry
entry()
"""


class Done(NamedTuple):
    code: int
    stdout: str
    stderr: str


Program = Callable[..., Done]


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Path]:
    """The root of the board's files."""
    root = copy_board(tmp_path / "board")
    before = THIS_MACHINE.root
    object.__setattr__(THIS_MACHINE, "root", root)  # every module has this one object
    yield root
    object.__setattr__(THIS_MACHINE, "root", before)


@pytest.fixture(scope="session")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What builds compute on, asked once: a real GPU program takes seconds to answer."""
    return tmp_path_factory.mktemp("devices")


@pytest.fixture
def old_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: Path) -> Path:
    """The home folder of a user of version 0.1. Its config.toml decides where the other files are."""
    home = copy_home(tmp_path / "home", devices)
    for name in list(os.environ):
        if name.startswith(_HIDDEN):
            monkeypatch.delenv(name)
    for name, value in environment(home).items():
        monkeypatch.setenv(name, value)
    return home


@pytest.fixture
def trilithon(board: Path, old_home: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    """Call it with the words of a command line."""

    def call(*words: object) -> Done:
        capsys.readouterr()
        code = run([str(word) for word in words])
        output = capsys.readouterr()
        return Done(code, output.out, output.err)

    return call


class Served:
    """`trilithon serve` as a process on that board, in a home folder of its own."""

    def __init__(self, folder: Path, devices: Path):
        self.home = copy_home(folder / "home", devices)
        self.environment = environment(self.home)
        self.command = [sys.executable, "-c", _PROGRAM, str(copy_board(folder / "board"))]
        self._log = folder / "log"
        with self._log.open("wb") as log:
            words = [*self.command, "serve", "--port", "0"]
            self.process = subprocess.Popen(words, stderr=log, env=environment_of_process(self.environment))

    @property
    def url(self) -> str:
        deadline = time.monotonic() + 60
        while "http://127.0.0.1:" not in (text := self._log.read_text()):
            assert self.process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.02)
        return "http://127.0.0.1:" + text.partition("http://127.0.0.1:")[2].split()[0].strip(",/")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, devices: Path) -> Iterator[Served]:
    running = Served(tmp_path_factory.mktemp("served"), devices)
    yield running
    running.process.kill()
    running.process.wait()


def environment(home: Path) -> dict[str, str]:
    return {
        "HOME": str(home),
        "PATH": "/usr/bin:/bin",
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_DATA_HOME": str(home / "unused"),
        "XDG_CACHE_HOME": str(home / "unused"),
        "XDG_RUNTIME_DIR": "",
    }


def environment_of_process(more: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if not name.startswith(_HIDDEN)} | dict(more)


def copy_board(root: Path) -> Path:
    """A Quartz64 (RK3566), on which the results were measured. Its cores are all alike, so that what is placed on it
    runs on every machine that tests."""
    for path, text in json.loads((FILES / "board.json").read_text()).items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return root


def copy_home(home: Path, devices: Path) -> Path:
    source = FILES / "home"
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        place = home / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".sqlite", ".gguf") or path.parent.name in ("blobs", "partial"):
            shutil.copyfile(path, place)
        else:
            text = path.read_text(encoding="utf-8").replace(HOME, str(home)).replace(KERNEL, os.uname().release)
            place.write_text(text, encoding="utf-8")
    for copy, original in json.loads((FILES / "copies.json").read_text()).items():
        (home / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(home / original, home / copy)
    for link, target in json.loads((FILES / "links.json").read_text()).items():
        (home / link).parent.mkdir(parents=True, exist_ok=True)
        (home / link).symlink_to(target.replace(HOME, str(home)))
    (home / CACHE / "devices").symlink_to(devices)
    (home / DATA / "keys.json").chmod(0o600)
    _make_programs(home)
    _name_the_home(home / DATA / "results.sqlite", home)
    _name_the_safer_settings(home)
    _know_the_hashes(home)
    return home


def _make_programs(home: Path) -> None:
    """Builds are told apart by the names, sizes and times of their files."""
    for program in (home / "engines").glob("*/llama-server"):
        program.chmod(0o755)
        os.utime(program, (_SERVER_TIME, _SERVER_TIME))


def _name_the_home(database: Path, home: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE campaigns SET plan = replace(plan, ?, ?)", (HOME, str(home)))


def _name_the_safer_settings(home: Path) -> None:
    """The name of the file is a hash of the build's path, among others."""
    (kept,) = (home / DATA / "footholds").glob("*.json")
    where = json.loads(kept.read_text())["where"]
    identity = (("llama.cpp", where, "gpu"), ("llama", "F16"), ("auto", "f16", "f16", None, ()))
    kept.rename(kept.with_name(f"{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}.json"))


def _know_the_hashes(home: Path) -> None:
    """A file is known by its device, inode, size and time."""
    status = (home / "adopted/other-F16.gguf").stat()
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    with contextlib.closing(sqlite3.connect(home / CACHE / "hashes.sqlite")) as connection, connection:
        (digest,) = connection.execute("SELECT sha256 FROM sha256 WHERE size = ?", (status.st_size,)).fetchone()
        connection.execute("DELETE FROM sha256")
        connection.execute("INSERT INTO sha256 VALUES (?, ?, ?, ?, ?)", (*identity, digest))
