"""No command lets a stranger's text command the terminal, and a pipe gets every byte."""

import ast
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import pytest
from one_terminal import one_terminal
from other_ggufs import write_gguf
from parsed_source import parsed
from standin_hub import HubRepository, HubStandIn
from standin_web import WebStandIn, as_json
from store_samples import manifest_of

from trilithon import cli
from trilithon.cli.chat.screen import ChatScreen
from trilithon.cli.main import main, run
from trilithon.cli.models.pull_progress import PullProgress
from trilithon.cli.output import say
from trilithon.cli.progress import CampaignProgress, reading
from trilithon.models.fetch.pull import PullStep
from trilithon.models.store.manifest import PresetMessage, StoredFile
from trilithon.models.store.model_store import ModelStore

# Writes the clipboard, sets the title, hides text, and a control sequence in one character.
EVIL = "E\x1b]52;c;aGk=\x07\x1b]0;t\x07\x1b[8m\x9b8m\x7f\b"
SIGNS = ("\x1b]", "\x1b[8m", "\x9b", "\x07", "\x7f", "\b")
"""Each is of EVIL alone: no command writes it."""
WRITERS = (".echo", ".secho", ".echo_via_pager", ".confirm", ".prompt", ".stdout.write", ".stderr.write")


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """With colours. What it got is in the list afterwards."""
    with monkeypatch.context() as patch, one_terminal() as shown:
        patch.setenv("TERM", "xterm-256color")
        patch.delenv("NO_COLOR", raising=False)
        yield shown


def leaves(command: click.Command = main, *path: str) -> list[str]:
    """Every command, by its words."""
    if not isinstance(command, click.Group):
        return [" ".join(path)]
    context = click.Context(command)
    children = {name: command.get_command(context, name) for name in command.list_commands(context)}
    return [words for name, child in children.items() if child for words in leaves(child, *path, name)]


@pytest.fixture
def planted(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user who has strangers' models, results and servers. Returns the path of a GGUF."""
    folder = home / f"folder{EVIL}"
    texts = ("general.name", "general.basename", "general.author", "general.license", "tokenizer.chat_template")
    gguf = write_gguf(folder / f"m{EVIL}.gguf", {"general.architecture": "llama", **dict.fromkeys(texts, EVIL)})
    (home / "Modelfile").write_text(f"FROM {gguf}\nSYSTEM {EVIL}\nWHAT{EVIL} x\n", encoding="utf-8")
    (home / "broken.gguf").write_bytes(EVIL.encode())
    with ModelStore(home / "data/trilithon/models") as store:
        digest, size = store.add(gguf), gguf.stat().st_size
        file = StoredFile(role="weights", digest=digest, size_bytes=size, name="m.gguf", format="gguf")
        manifest = replace(manifest_of("evil", file), source=EVIL, parameters={"stop": [EVIL]}, system=EVIL)
        store.put(replace(manifest, template=EVIL, messages=(PresetMessage("user", EVIL),)))
    rows = [
        {"build_commit": EVIL, "build_number": 1, "cpu_info": EVIL, "gpu_info": EVIL, "backends": f"CPU{EVIL}"}
        | {"model_filename": f"{EVIL}.gguf", "model_type": EVIL, "model_size": 1000, "model_n_params": 1000}
        | {"n_batch": 512, "n_ubatch": 512, "n_threads": 2, "type_k": "f16", "type_v": "f16", "n_gpu_layers": 0}
        | {"n_prompt": 512, "n_gen": 0, "test_time": "2025-01-01T00:00:00Z", "avg_ts": 10.0 * number}
        | {"samples_ts": [9.0 * number, 11.0 * number], "samples_ns": [1, 2], "avg_ns": 1, "stddev_ns": 1}
        | {"stddev_ts": 1.0}
        for number in (1, 2)
    ]
    for number, row in enumerate(rows):
        (home / f"bench{number}.json").write_text(json.dumps([row]), encoding="utf-8")
        assert run(["results", "import", str(home / f"bench{number}.json")]) == 0
    with WebStandIn() as storage, HubStandIn(storage) as hub:
        hub.repositories["u/M"] = HubRepository({f"a{EVIL}-Q4_0.gguf": b"GGUF", f"b{EVIL}-Q8_0.gguf": b"GGUF"})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        loaded = {"name": EVIL, "model": EVIL, "size": 1, "placement": EVIL, "expires_at": EVIL, "details": {}}
        storage.files["/api/ps"] = as_json({"models": [loaded]})
        storage.files["/api/version"] = as_json({"version": "0.1.0"})
        monkeypatch.setenv("TRILITHON_HOST", storage.url)
        monkeypatch.chdir(home)
        yield gguf


# The words of each command, with a stranger's text wherever one can be; GGUF stands for the file.
WORDS: dict[str, list[list[str]]] = {
    "run": [[f"./{EVIL}.gguf", "hi"], [EVIL, "hi"]],
    "serve": [[f"./{EVIL}.gguf"], ["--placement", EVIL]],
    "fleet add": [[EVIL], [f"r={EVIL}"], ["r=http://127.0.0.1:9", "--ssh", EVIL]],
    "fleet ask": [[EVIL], ["broken.gguf"]],
    "fleet drain": [[EVIL]],
    "fleet list": [[]],
    "fleet rm": [[EVIL]],
    "fleet serve": [["--host", EVIL]],
    "fleet undrain": [[EVIL]],
    "ps": [[]],
    "stop": [[EVIL], ["m"]],
    "bench": [["GGUF", "--placement", f"scripted/cpu:{EVIL}"], [EVIL]],
    "tune": [["GGUF", "--placement", f"scripted/cpu:{EVIL}"], [EVIL], ["GGUF", "--workload", EVIL]],
    "results compare": [["1", "2"], [f"1:{EVIL}", "2"]],
    "results export": [["1", "--to", "llama-bench-md"], [EVIL]],
    "results import": [["bench0.json"], ["broken.gguf"], [EVIL]],
    "results list": [[]],
    "results report": [["1", "--output", "report"], [EVIL]],
    "results rm": [[EVIL]],
    "results show": [["1"], ["1", "2"], ["1", "-o", "md"], ["1", "-o", "csv"], ["1", "-o", "json"]],
    "plan list": [[]],
    "plan rm": [["GGUF"]],
    "plan set": [["GGUF", "scripted/cpu"], ["GGUF", EVIL]],
    "plan show": [["GGUF"]],
    "pull": [["hf.co/u/M"], ["hf.co/u/M:Q4_0"], ["hf.co/u/M", "--json"], [EVIL]],
    "list": [[], ["-v"]],
    "show": [["evil"], ["GGUF"], ["evil", "--modelfile"], ["evil", "--json"], ["broken.gguf"], [EVIL]],
    "rm": [[EVIL]],
    "cp": [["evil", EVIL]],
    "verify": [[], [EVIL]],
    "prune": [["--dry-run"]],
    "adopt": [[f"folder{EVIL}"], []],
    "create": [["m"], ["m", "-f", EVIL]],
    "convert": [["GGUF", "--to", "rkllm", "--chip", EVIL, "--quant", "w8a8"], ["GGUF", "--to", "rknn"]],
    "quantize": [["GGUF", "Q4_K_M"], ["GGUF", EVIL]],
    "models synthesize": [[EVIL], []],
    "engines add": [[f"folder{EVIL}"], [EVIL]],
    "engines build": [["--source", EVIL]],
    "engines check": [[EVIL]],
    "engines list": [[]],
    "engines remove": [[EVIL]],
    "key add": [[EVIL]],
    "key list": [[]],
    "key rm": [[EVIL]],
    "doctor": [["--root", EVIL], ["--root", f"folder{EVIL}"]],
    "board-report show": [["broken.gguf"], [EVIL]],
    "board-report tree": [["broken.gguf"], [EVIL]],
    "completion": [[EVIL]],
    "atlas add": [[EVIL], ["1"]],
    "atlas export": [[EVIL], ["1"], []],
    "atlas list": [[EVIL], ["--chip", EVIL]],
    "backup": [[f"{EVIL}.tar"]],
    "config get": [[EVIL]],
    "config list": [[]],
    "config path": [[]],
    "config set": [[EVIL, EVIL], ["host", EVIL]],
    "config unset": [[EVIL]],
    "engines install": [[EVIL], ["rkllm", "--from", EVIL]],
    "estimate": [[EVIL], ["GGUF"], ["evil"]],
    "recommend": [["--chip", EVIL], ["--task", EVIL]],
    "restore": [[EVIL], ["broken.gguf"]],
    "service install": [["--dry-run", "--host", EVIL]],
    "service logs": [[]],
    "service status": [[]],
    "service uninstall": [[]],
    "setup": [["--json"], ["--root", EVIL]],
}


def test_every_command_is_tried() -> None:
    assert sorted(WORDS) == sorted(leaves())


@pytest.mark.parametrize("command", WORDS)
def test_no_command_passes_control_characters_to_a_terminal(
    planted: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for words in WORDS[command]:
        with terminal(monkeypatch) as shown:
            run([*command.split(), *(str(planted) if word == "GGUF" else word for word in words)])
        assert shown[0].strip(), (command, words)
        assert [sign for sign in SIGNS if sign in shown[0]] == [], (command, words, shown[0])


def test_a_pipe_gets_every_byte(planted: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "evil", "--modelfile"]) == 0
    assert f"SYSTEM {EVIL}\n" in capfd.readouterr().out
    say(EVIL)
    say(EVIL, err=True)
    assert capfd.readouterr() == (f"{EVIL}\n", f"{EVIL}\n")


def test_progress_and_chat_are_plain_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as shown:
        with PullProgress(as_json=False) as progress:
            progress(PullStep(stage="looking", text=f"[red]{EVIL}"))
        with CampaignProgress() as campaign:
            assert campaign._bar is not None
            campaign._bar.update(campaign._task, description=f"[red]{EVIL}")
        shows = reading(EVIL)
        shows._started -= 10
        shows(1, 2)
        screen = ChatScreen()
        screen.tell(EVIL)
        screen.piece(f"{EVIL}\r\nx")
        screen.piece(EVIL, thinking=True)
        screen.end_line()
        say(f"a\r\nb\tc{EVIL}")
    assert [sign for sign in SIGNS if sign in shown[0]] == []
    assert "[red]E" in shown[0]
    assert "a\r\nb\tcE" in shown[0]


def test_nothing_else_in_the_command_line_writes() -> None:
    """Rich's consoles are made by `plain_console`; what a chat writes goes through its screen."""
    folder = Path(cli.__file__).parent
    calls = []
    for path in sorted(folder.rglob("*.py")):
        name = str(path.relative_to(folder))
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call):
                text = ast.unparse(node.func)
                if text in ("print", "Console", "input") or text.endswith(WRITERS):
                    calls.append(f"{name}: {text}")
    allowed = ["chat/screen.py: input", "output.py: click.echo", "output.py: click.confirm"]
    assert calls == allowed
