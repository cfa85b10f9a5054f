"""The RKLLM runtime's stand-in, compiled once a session for each interface, and servers over it."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

SOURCE = Path(__file__).parent / "rkllm" / "standin"
ABIS = {"1.1.4": 114, "1.2.0": 120, "1.2.3": 121, "1.3.0": 130}
# Patch releases to come, and in which place one has a new field.
PATCHES = {
    "1.2.4": ("1.2.3", ""),
    "1.3.1": ("1.3.0", ""),
    "1.3.2": ("1.3.0", "AT_TOP_K"),
    "1.3.3": ("1.3.0", "AT_EXTEND"),
    "1.3.4": ("1.3.0", "AT_BATCH"),
    "1.3.5": ("1.3.0", "AT_END"),
}


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The library for a version."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a C compiler is missing")
    folder = tmp_path_factory.mktemp("standin")

    @cache
    def build(version: str) -> Path:
        library = folder / version / "librkllmrt.so"
        library.parent.mkdir()
        flags = [
            "-std=gnu11",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fPIC",
            "-shared",
            f"-DSTANDIN_ABI={ABIS[PATCHES.get(version, (version,))[0]]}",
        ]
        if version in PATCHES:
            flags += [f'-DSTANDIN_VERSION="{version}"', f"-DSTANDIN_SHIFT={PATCHES[version][1] or 0}"]
        subprocess.run([compiler, *flags, SOURCE / "standin.c", "-o", library, "-lm", "-lpthread"], check=True)
        return library

    return build


class RkllmServer:
    """One server as a process of its own, with its log in a file and a record of what the runtime was given."""

    def __init__(
        self,
        library: Path,
        folder: Path,
        options: dict[str, Any],
        script: dict[str, Any],
        files: Path | None,
        packages: Path | None,
    ):
        self.folder, self.socket, self.log = folder, folder / "wire.sock", folder / "log"
        self.model, self.slots = folder / "model.rkllm", folder / "slots"
        self._record, self._record_start = folder / "record", 0
        self.slots.mkdir()
        words = "".join(f"{name}={value}\n" for name, value in script.items())
        self.model.write_text(f"a stand-in's model\n#standin\n{words}")
        for file in files.iterdir() if files else ():
            shutil.copy(file, folder)
        words = {"--socket": self.socket, "--library": library, "--model": self.model}
        words["--options"] = json.dumps({"context": 1024, "slots": str(self.slots)} | options)
        argv = [
            sys.executable,
            "-P",
            "-m",
            "trilithon.engines.rkllm.child.server",
            *(w for pair in words.items() for w in pair),
        ]
        environment = os.environ | {"STANDIN_RECORD": str(self._record)}
        if packages:
            paths = [str(packages), os.environ.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        self.http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.socket)), base_url="http://child", timeout=60
        )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            # httpx leaves a socket open that could not connect, so the first word is tried without it.
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.socket))
                assert self.http.get("/health").status_code == 200
                return
            time.sleep(0.01)
        raise AssertionError(f"no answer; it ended with {self.process.poll()}: {self.log.read_text()}")

    def end(self) -> tuple[int, str]:
        """The code it ended with, and what it said."""
        return self.process.wait(timeout=60), self.log.read_text()

    def complete(self, prompt: Any = (5, 6, 7), **body: Any) -> httpx.Response:
        prompt = list(prompt) if isinstance(prompt, tuple) else prompt
        return self.http.post("/completion", json={"prompt": prompt, "temperature": 0, "repeat_penalty": 1, **body})

    def chat(self, content: Any = "Hello", **body: Any) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        return self.http.post(
            "/v1/chat/completions", json={"messages": messages, "temperature": 0, "repeat_penalty": 1, **body}
        )

    def events(self, path: str, **body: Any) -> list[dict[str, Any]]:
        body = {"stream": True, "temperature": 0, "repeat_penalty": 1, **body}
        lines = self.http.post(path, json=body).text.split("\n")
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]

    def mark(self) -> None:
        """What `record` gives begins here."""
        self._record_start = len(self._record.read_text())

    def record(self, call: str = "", *, whole: bool = False) -> list[dict[str, Any]]:
        """What the runtime was given; a violation of its interface fails the test."""
        lines = [
            json.loads(line) for line in self._record.read_text()[0 if whole else self._record_start :].splitlines()
        ]
        assert [line for line in lines if "violation" in line] == []
        return [line for line in lines if line.get("call") == call or not call]

    def close(self) -> None:
        self.http.close()
        self.process.kill()
        self.process.wait()


StartServer = Callable[..., RkllmServer]


@pytest.fixture(scope="module")
def fresh_rkllm(standin: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Starts servers of one's own: `fresh_rkllm("1.3.0", options={...}, files=folder, answer="…")`. What has no name
    here is a word of the stand-in's script."""
    base = tmp_path_factory.mktemp("r")
    with contextlib.ExitStack() as stack:

        def start(
            version: str = "1.3.0",
            *,
            ready: bool = True,
            options: dict[str, Any] | None = None,
            files: Path | None = None,
            packages: Path | None = None,
            **script: Any,
        ) -> RkllmServer:
            folder = base / str(len(list(base.iterdir())))
            folder.mkdir()
            server = RkllmServer(standin(version), folder, options or {}, script, files, packages)
            stack.callback(server.close)
            if ready:
                server.wait_until_ready()
            return server

        yield start


@pytest.fixture(scope="module")
def _pool() -> dict[str, RkllmServer]:
    return {}


@pytest.fixture
def rkllm(fresh_rkllm: StartServer, _pool: dict[str, RkllmServer]) -> StartServer:
    """As `fresh_rkllm`, but tests that want the same share one: for those that leave it as it was."""

    def shared(version: str = "1.3.0", **wanted: Any) -> RkllmServer:
        key = repr((version, sorted(wanted.items())))
        if key not in _pool:
            _pool[key] = fresh_rkllm(version, **wanted)
        assert _pool[key].process.poll() is None, "a test before this one ended a server that others use"
        _pool[key].mark()
        return _pool[key]

    return shared


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer of the stand-in's model (one token per byte), its end token and a chat template."""
    pytest.importorskip("tokenizers")
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = _byte_letters()
    names = ["<unk>", "<eos>", "<bos>", *(letters[byte] for byte in range(256))]
    names += [f"<extra{number}>" for number in range(len(names), 320)]
    tokenizer = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<eos>", "<bos>")])
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{{ bos_token }}{% if tools %}{% for tool in tools %}<tool {{ tool.function.name }}>{% endfor %}{% endif %}"
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"
        "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    )
    words = {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return folder


def _byte_letters() -> dict[int, str]:
    """GPT-2's way to write bytes as letters: the printable ones as they are, the others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}
