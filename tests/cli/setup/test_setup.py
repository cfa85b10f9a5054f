"""`trilithon setup` on a terminal: asked, stopped, resumed, undone; and what it offers on a board."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from board_tree import plant_tree
from standin_web import WebStandIn

from trilithon.board.processes import read_process
from trilithon.board.snapshot import read_board
from trilithon.cli.setup.steps import chat_models, offered_steps
from trilithon.estimate.recommend import candidates
from trilithon.estimate.sizes import size_named
from trilithon.models.store.manifest import Manifest, StoredFile, now
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import model_name
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.settings import load_configuration

Program = Callable[..., Any]

PROGRAM = str(Path(sys.executable).with_name("trilithon"))
UNIT = "config/systemd/user/trilithon.service"
# Where systemd runs, and everything succeeds.
SYSTEMCTL = '#!/bin/sh\ncase "$*" in *is-system-running) echo running ;; esac\n'


class Terminal:
    """The program on a pseudo-terminal; `shown` is all that it printed."""

    def __init__(self, *words: str):
        self._master, slave = pty.openpty()
        environment = os.environ | {"TERM": "dumb", "COLUMNS": "1000"}
        self._child = subprocess.Popen(
            [PROGRAM, "setup", *words], stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self.shown = ""

    def until(self, words: str) -> None:
        deadline = time.monotonic() + 100
        while words not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._master], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self._master, 1 << 16).decode()
                except OSError:  # it has ended
                    assert words in self.shown, self.shown

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def stop(self) -> int:
        """Signals again where nothing comes of it: one between the prompt and the wait for a key is heard of later."""
        deadline = time.monotonic() + 60
        while self._child.poll() is None:
            assert time.monotonic() < deadline
            os.killpg(self._child.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(2)
        os.close(self._master)
        return self._child.returncode

    def ended(self) -> int:
        code = self._child.wait(100)
        os.close(self._master)
        return code


@pytest.fixture
def machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebStandIn]:
    tools = home / "tools"
    tools.mkdir()
    for name, script in {"systemctl": SYSTEMCTL, "loginctl": "#!/bin/sh\n"}.items():
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    write_tiny_model(home / "tiny.gguf")
    with WebStandIn() as web:
        web.put("/tiny.gguf", (home / "tiny.gguf").read_bytes())
        yield web


@pytest.mark.slow
def test_asked_stopped_resumed_undone(trilithon: Program, home: Path, machine: WebStandIn) -> None:
    """Every step is a process of its own."""
    words = ("--model", f"{machine.url}/tiny.gguf")
    terminal = Terminal(*words)
    terminal.until(f"Fetch the model {machine.url}/tiny.gguf? [Y/n]")
    terminal.type("y\n")
    terminal.until("Run the server from boot on")
    assert terminal.stop() == 130
    assert len(machine.asked) > 0
    assert not (home / UNIT).exists()

    terminal = Terminal(*words)
    terminal.until("Run the server from boot on")
    assert "Fetch the model" not in terminal.shown
    terminal.type("\n")
    terminal.until(". To take it back: trilithon setup --undo")
    (name,) = chat_models(load_configuration())
    assert f"done; talk to a model with: trilithon run {name}." in terminal.shown
    assert terminal.ended() == 0
    assert (home / UNIT).exists()

    done = subprocess.run([PROGRAM, "setup"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        0,
        f"nothing else is missing; talk to a model with: trilithon run {name}\n",
    )
    done = subprocess.run([PROGRAM, "setup", "--undo"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = re.findall(r"^\$ trilithon (\w+ \w+)", done.stderr, re.MULTILINE)
    assert calls == ["service uninstall", "rm url"]
    assert not (home / UNIT).exists()
    assert trilithon("list").stdout.strip() == ""
    assert "setup changed nothing that is still there" in trilithon("setup", "--undo").stderr


def test_without_a_terminal_nothing_is_done(trilithon: Program, home: Path, machine: WebStandIn) -> None:
    done = trilithon("setup")
    assert done.code == 2
    assert "there is no terminal to ask on; add --yes" in done.stderr
    assert not (home / "data/trilithon/setup.json").exists()


def test_a_board_is_offered_its_runtime(trilithon: Program, home: Path, machine: WebStandIn) -> None:
    root = plant_tree(home / "boards", "rk3588_vendor", without=("/usr/lib/librkllmrt.so",)).root
    done = trilithon("setup", "--root", root)
    assert done.code == 0
    assert "for models on the NPU (https://github.com/airockchip/rknn-llm/raw/release-v1.2.3/" in done.stdout
    assert "\n  trilithon engines install rkllm --yes\n" in done.stdout
    assert not (home / "data/trilithon/setup.json").exists()


def changes(home: Path, *rows: dict[str, Any]) -> Path:
    file = home / "data/trilithon/setup.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows))
    return file


def test_what_cannot_be_taken_back_is_told_and_kept(trilithon: Program, home: Path, machine: WebStandIn) -> None:
    """`service uninstall` refuses a unit of somebody else with 2, as it does one that is not there."""
    (home / UNIT).parent.mkdir(parents=True)
    (home / UNIT).write_text("[Service]\n")
    row = {"name": "service", "command": ["service", "install"], "undo": ["service", "uninstall", "--user"]}
    file = changes(home, row)
    done = trilithon("setup", "--undo")
    assert done.code == 1
    assert "service could not be taken back; run trilithon setup --undo again" in done.stderr
    assert json.loads(file.read_text())[0]["name"] == "service"
    (home / UNIT).unlink()
    assert trilithon("setup", "--undo").code == 0
    assert json.loads(file.read_text()) == []


def test_what_was_never_finished_needs_no_undo(trilithon: Program, home: Path, machine: WebStandIn) -> None:
    model = {"name": "model", "command": ["pull", "qwen3:4b"], "undo": ["rm", "qwen3:4b"]}
    address = {"name": "model", "command": ["pull", "http://h/m.gguf"], "undo": ["rm", "http://h/m.gguf"]}
    none = {"name": "model", "command": ["pull", "http://h/m.gguf"], "undo": ["rm"]}
    build = {"name": "build", "command": ["engines", "build"], "undo": ["engines", "remove", "--delete", "native-1"]}
    file = changes(home, model, address, none, build)
    done = trilithon("setup", "--undo")
    assert (done.code, done.stderr) == (0, "")
    assert json.loads(file.read_text()) == []


def test_a_running_compilation_is_stopped(trilithon: Program, home: Path, machine: WebStandIn) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]) as child:
        row = {"name": "build", "command": ["engines", "build"], "undo": ["engines", "remove", "--delete", "native-1"]}
        state = read_process(child.pid)
        assert state
        changes(home, row | {"process": [child.pid, state.start_ticks + 1]})  # another one had this number
        assert trilithon("setup", "--undo").code == 0
        assert child.poll() is None
        changes(home, row | {"process": [child.pid, state.start_ticks]})
        done = trilithon("setup", "--undo")
        assert (done.code, done.stderr) == (0, "stopping trilithon engines build\n")
        assert child.wait(10) == -signal.SIGTERM


def test_the_model_fits_the_free_memory_and_its_licence_is_told(home: Path) -> None:
    pulled = {candidate.pull: candidate for candidate in candidates().values()}
    parameters = []
    for gibibytes in (0, 3, 12):
        board = replace(read_board(), chip="RK3588", memory_available_bytes=gibibytes << 30)
        (offer,) = (step for step in offered_steps(board, load_configuration(), None) if step.name == "model")
        chosen = pulled[offer.command[1]]
        assert chosen.licence in offer.question
        size = size_named(chosen.name)
        assert size
        parameters.append(size.parameters)
    assert parameters[0] < parameters[1] < parameters[2]
    assert parameters[1] / 2 < 3 << 30  # bytes, at 4 bits


def test_models_that_do_not_chat_do_not_count(home: Path) -> None:
    """The installation has pulled the demo model already; a synthetic one has random weights; two make no text."""
    with ModelStore.open(load_configuration()) as store:
        for name, pooling, synthetic, offered in (
            ("demo", None, False, True),
            ("random", None, True, True),
            ("vectors", 1, False, True),
            ("ranks", 4, False, True),
            ("mine", None, False, False),
        ):
            write_tiny_model(home / "tiny.gguf", pooling=pooling)
            size = (home / "tiny.gguf").stat().st_size
            digest = store.add(home / "tiny.gguf")
            weights = StoredFile(role="weights", digest=digest, size_bytes=size, name="tiny.gguf", format="gguf")
            store.put(Manifest(name=model_name(name), files=(weights,), source="", created=now(), synthetic=synthetic))
            steps = [step.name for step in offered_steps(read_board(), load_configuration(), None)]
            assert ("model" in steps) is offered, name


def test_a_folder_that_is_not_there_is_no_machine(trilithon: Program, home: Path) -> None:
    done = trilithon("setup", "--root", home / "nothing")
    assert done.code == 2
    assert "does not exist" in done.stderr
