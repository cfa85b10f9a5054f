"""What the server adds: our HTTP beside the very same llama-server asked directly, in turn, by one raw client.

    python benchmarks/serving.py [--build FOLDER] [--model FILE] [--rounds 15] [--requests 10000] [--json]
                                 [--llama-cpp-python PYTHON]

One `trilithon serve` runs the model on the native build in FOLDER (else on the wheel's). Each round asks the same chat
once over its port and once over the Unix socket of its own child, in turn first, so that both meet the same process:
rate of a single stream, time to the first token, and the total rate of 8 streams at once. What the server adds to a
request for the demo model, which is a base model (stop words, a penalty), is asked for on both sides: another sampler
is another speed. Then, with the scripted engine, which costs nothing: memory of our process before and after many
requests, and one stream's rate while 200 others are held open. PYTHON is one that has llama-cpp-python with its server
(`pip install 'llama-cpp-python[server]'`, in an environment of its own): that is asked in turn with ours too.
"""

import asyncio
import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from statistics import median

from _figures import Bound, Figure, arguments, report
from _placements import demo_path

from trilithon.board.snapshot import read_board
from trilithon.results.plans import Plan, keep_plan
from trilithon.settings import load_configuration

_TOKENS = 128
_STREAMS, _STREAM_TOKENS = 8, 64
_HELD = 200
_CHAT, _COMPLETION = "/v1/chat/completions", "/v1/completions"
_TOKEN = {_CHAT: re.compile(rb'"content": ?"'), _COMPLETION: re.compile(rb'"text": ?"')}
_BOUNDS = [
    Bound("single stream, ratio of rates", least=0.98),
    Bound("first token, added ms", most=3.0),
    Bound("8 streams, ratio of rates", least=0.97),
    Bound("resident MB after the requests", most=120.0),
    Bound("growth MB over the last half", most=2.0),
    Bound("with 200 held streams, ratio of rates", least=0.95),
]


class Target:
    """Where a request goes: `port` of a server, or the `path` of a child's socket."""

    def __init__(self, port: int = 0, path: str = ""):
        self._port, self._path = port, path

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._path:
            return await asyncio.open_unix_connection(self._path)
        return await asyncio.open_connection("127.0.0.1", self._port)


@contextlib.asynccontextmanager
async def asked(target: Target, body: dict[str, object], path: str) -> AsyncIterator[asyncio.StreamReader]:
    reader, writer = await target.open()
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    try:
        status = await reader.readline()
        if b" 200 " not in status:
            sys.exit(f"the server refused: {status!r} {await reader.read(2000)!r}")
        yield reader
    finally:
        writer.close()


async def streamed(target: Target, body: dict[str, object], path: str = _CHAT) -> tuple[float, float]:
    """Seconds to the first token, and tokens per second between the first and the last."""
    begun = time.monotonic()
    moments = []
    async with asked(target, body, path) as reader:
        while piece := await reader.read(1 << 16):
            moments += [time.monotonic()] * len(_TOKEN[path].findall(piece))
    span = moments[-1] - moments[0]
    return moments[0] - begun, (len(moments) - 1) / span if span else math.inf  # all in one piece


def chat(model: str, number: int, tokens: int = _TOKENS) -> dict[str, object]:
    words = f"Number {number}: tell me about stone circles."
    return {
        "model": model,
        "messages": [{"role": "user", "content": words}],
        "max_tokens": tokens,
        "stream": True,
        "ignore_eos": True,
        "temperature": 0,
        "cache_prompt": False,
        # The demo model's own (models/template.py), but no penalty, and no line's end that would stop it early.
        "repeat_penalty": 1.0,
        "stop": ["\n\n", "\nQ:"],
        "logit_bias": [["\n", False], ["\n\n", False]],
    }


async def beside(ours: Target, direct: Target, model: str, rounds: int) -> dict[str, Figure]:
    single: dict[str, list[float]] = defaultdict(list)
    first: dict[str, list[float]] = defaultdict(list)
    many: dict[str, list[float]] = defaultdict(list)
    for number in range(-1, rounds):
        sides = [("ours", ours), ("direct", direct)]
        for name, target in sides if number % 2 else reversed(sides):
            seconds, rate = await streamed(target, chat(model, number))
            begun = time.monotonic()
            asked_for = [chat(model, 100 * number + each, _STREAM_TOKENS) for each in range(_STREAMS)]
            await asyncio.gather(*(streamed(target, body) for body in asked_for))
            total = _STREAMS * _STREAM_TOKENS / (time.monotonic() - begun)
            if number >= 0:  # the first round warms up
                first[name].append(seconds)
                single[name].append(rate)
                many[name].append(total)
    added = [a - b for a, b in zip(first["ours"], first["direct"], strict=True)]
    return {
        "single stream, ours tokens/s": median(single["ours"]),
        "single stream, direct tokens/s": median(single["direct"]),
        "single stream, ratio of rates": _ratio(single),
        "first token, direct ms": 1e3 * median(first["direct"]),
        "first token, added ms": 1e3 * median(added),
        "8 streams, ours tokens/s": median(many["ours"]),
        "8 streams, ratio of rates": _ratio(many),
    }


async def against_python(ours: Target, theirs: Target, model: str, rounds: int) -> dict[str, Figure]:
    """Beside llama-cpp-python's server, each with its own engine: the same file and the same words, continued, since
    that server ends this model's chats at once. The ids are Gemma 3's ends of a text, of a turn and of lines."""
    rates: dict[str, list[float]] = defaultdict(list)
    first: dict[str, list[float]] = defaultdict(list)
    ends = {str(token): -100 for token in (1, 106, 107, 108)}
    for number in range(-1, rounds):
        words = f"Q: Number {number}: tell me about stone circles.\nA:"
        body = {"model": model, "prompt": words, "max_tokens": _TOKENS, "stream": True, "temperature": 0}
        body |= {"logit_bias": ends}
        sides = [("ours", ours), ("theirs", theirs)]
        for name, target in sides if number % 2 else reversed(sides):
            seconds, rate = await streamed(target, body, _COMPLETION)
            if number >= 0:
                first[name].append(seconds)
                rates[name].append(rate)
    return {
        "llama-cpp-python's server, tokens/s": median(rates["theirs"]),
        "llama-cpp-python's server, first token ms": 1e3 * median(first["theirs"]),
        "ours beside it, first token ms": 1e3 * median(first["ours"]),
        "ours beside it, ratio of rates": median(a / b for a, b in zip(rates["ours"], rates["theirs"], strict=True)),
    }


@contextlib.contextmanager
def python_server(python: Path, model: Path) -> Iterator[Target]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["--model", str(model), "--port", str(port), "--n_ctx", "512", "--n_threads", str(os.cpu_count())]
    command = [str(python), "-m", "llama_cpp.server", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.1)
            else:
                sys.exit(f"{python} -m llama_cpp.server did not start")
            yield Target(port)
        finally:
            process.terminate()


def _ratio(values: dict[str, list[float]]) -> float:
    return median(a / b for a, b in zip(values["ours"], values["direct"], strict=True))


async def endured(target: Target, model: str, process: int, requests: int) -> dict[str, Figure]:
    sizes = [_resident_megabytes(process)]
    for half in range(2):
        for number in range(requests // 2 // 10):
            await asyncio.gather(*(streamed(target, chat(model, number, 4)) for _ in range(10)))
        sizes.append(_resident_megabytes(process))
        print(f"{(half + 1) * requests // 2} requests: {sizes[-1]:.1f} MB", file=sys.stderr)
    return {
        "resident MB before": sizes[0],
        "resident MB after the requests": sizes[-1],
        "growth MB over the last half": sizes[-1] - sizes[-2],
    }


async def held(target: Target, model: str, slow: str) -> dict[str, Figure]:
    """One stream's rate alone, and while 200 clients have a stream open at which next to nothing happens: the first
    gets a token in 20 s, and the others wait behind it."""
    alone = median([(await streamed(target, chat(model, number)))[1] for number in range(5)])
    waiting = [asyncio.create_task(streamed(target, chat(slow, number))) for number in range(_HELD)]
    try:
        await asyncio.sleep(5)
        beside_them = median([(await streamed(target, chat(model, number)))[1] for number in range(5)])
        assert not any(task.done() for task in waiting), "a stream that should be held has ended"
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return {"alone tokens/s": alone, "with 200 held streams, ratio of rates": beside_them / alone}


@contextlib.contextmanager
def with_plans(model: Path, folder: Path, plans: dict[str, str]) -> Iterator[list[Path]]:
    """Copies of the model by their names, each to run on a placement of its own."""
    board = read_board().identity()
    files = []
    for number, (name, placement) in enumerate(plans.items()):
        files.append(folder / f"{name}.gguf")
        shutil.copyfile(model, files[-1])
        with files[-1].open("ab") as file:
            file.write(b"\0" * number)  # a plan belongs to a content
        with files[-1].open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        plan = Plan(sha256=digest, placement=placement, board=board, campaign=0, sentence="")
        keep_plan(folder / "data", plan)
    yield files


def _resident_megabytes(process: int) -> float:
    text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    match = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert match is not None
    return int(match[1]) / 1000


@contextlib.contextmanager
def serving(*words: str | Path, environment: dict[str, str]) -> Iterator[tuple[int, subprocess.Popen[str], str]]:
    """The port, the process and the first model's name."""
    command = [str(Path(sys.executable).with_name("trilithon")), "serve", *map(str, words), "--port", "0", "--no-pages"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment) as process:
        assert process.stderr is not None
        said = ""
        try:
            for line in process.stderr:
                said += line
                if match := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                    yield int(match[1]), process, re.sub(r"[^a-z0-9_.-]+", "-", Path(words[0]).stem.lower())
                    return
            sys.exit(f"the server did not start: {said}")
        finally:
            process.terminate()


def child_socket(parent: int) -> str:
    """The Unix socket on which the server's only child listens: a path in its command line."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"PPid:\t{parent}\n" in (entry / "status").read_text(encoding="utf-8"):
                line = (entry / "cmdline").read_bytes().decode()
                if match := re.search(r"/[^\0\"]*wire\.sock", line):
                    return match[0]
    sys.exit("the server has no child that listens")


async def warm(target: Target, model: str) -> None:
    await streamed(target, chat(model, -1, 4))


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--build", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--llama-cpp-python", type=Path, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=10_000)
    words = parser.parse_args()
    model = words.model or demo_path(load_configuration())
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = {"HOME": folder, "XDG_DATA_HOME": f"{folder}/data", "XDG_CONFIG_HOME": f"{folder}/config"}
        placement = "llama.cpp@embedded/cpu"
        if words.build:
            environment["TRILITHON_BUILDS"], placement = str(words.build), "llama.cpp@native/cpu"
        real = ("--placement", placement, "--parallel", str(_STREAMS), "--context", "512")
        with serving(model, *real, environment=environment) as (port, process, name):
            ours = Target(port)
            asyncio.run(warm(ours, name))
            direct = Target(path=child_socket(process.pid))
            figures |= asyncio.run(beside(ours, direct, name, words.rounds))
            print(json.dumps(figures), file=sys.stderr)
            if words.llama_cpp_python:
                with python_server(words.llama_cpp_python, model) as theirs:
                    figures |= asyncio.run(against_python(ours, theirs, name, words.rounds))
        plans = {"fast": "scripted/cpu:prefill=1000000,decode=200,np=16", "slow": "scripted/cpu:decode=0.05"}
        environment["TRILITHON_DATA"] = f"{folder}/data"
        with (
            with_plans(model, Path(folder), plans) as files,
            serving(*files, environment=environment) as (port, process, name),
        ):
            ours = Target(port)
            asyncio.run(warm(ours, name))
            figures |= asyncio.run(held(ours, name, "slow"))
            figures |= asyncio.run(endured(ours, name, process.pid, words.requests))
    return report(figures, _BOUNDS, as_json=words.json)


if __name__ == "__main__":
    sys.exit(main())
