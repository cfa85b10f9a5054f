"""What the server adds: our HTTP and the same llama-server asked directly, in turn, by one plain client.

    python benchmarks/serving.py [--build FOLDER] [--model FILE] [--rounds 15] [--requests 10000] [--streams 200]
                                 [--llama-cpp-python PYTHON] [--json]

One `trilithon serve` runs the model on the native build in FOLDER, or on the wheel's without --build. Each round sends
the same chats to the server's port and to the Unix socket of its child, and the order alternates, so that both reach
the same process: the rate of a single stream and the time to the first token, in short answers to a prompt that the
engine has in its cache (two prefills of the same 400 ms differ by more than the bound), and the total rate of 8 streams
with prompts of their own. The server adds stop words and a penalty to requests for the demo model, which is a base
model; the client sends the same values to both, because another sampler has another speed.

Then the scripted engine, which costs almost nothing: memory of our process before and after many requests, and one
stream's rate while 200 other streams are open. PYTHON is an interpreter with llama-cpp-python and its server
(`pip install 'llama-cpp-python[server]'`, in an environment of its own); its server is then compared with ours too.
"""

import argparse
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

from _figures import Bound, CannotMeasure, Figure, arguments, attempted, count, not_measured, report, run
from _placements import ENGINE, build_in, configuration_with, demo_path
from _server import Server, private_folders, resident_megabytes, serving

from trilithon.board.snapshot import read_board
from trilithon.results.plans import Plan, keep_plan
from trilithon.settings import load_configuration

_TOKENS = 128
_STREAMS, _STREAM_TOKENS = 8, 64
_SINGLES_A_ROUND, _SINGLE_TOKENS = 4, 64  # machines change speed within seconds: short pairs see the same one
_CHAT, _COMPLETION = "/v1/chat/completions", "/v1/completions"
_TOKEN = {_CHAT: re.compile(rb'"content": ?"'), _COMPLETION: re.compile(rb'"text": ?"')}
_PYTHON_SERVER = "llama-cpp-python's server, tokens/s"
_BOUNDS = [
    Bound("single stream, ratio of rates", least=0.98),
    Bound("first token, added ms", most=3.0),
    Bound("8 streams, ratio of rates", least=0.97),
    Bound("resident MB after the requests", most=120.0),
    Bound("growth MB over the last half", most=2.0),
    Bound("with other streams open, ratio of rates", least=0.95),
]
_NAMES = [bound.figure for bound in _BOUNDS]
_OF_RATES, _OF_MEMORY, _OF_STREAMS = _NAMES[:3], _NAMES[3:5], _NAMES[5:]


class Target:
    """Where a request goes: `port` of a server, or the `path` of a child's socket."""

    def __init__(self, port: int = 0, path: str = ""):
        self._port, self._path = port, path

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._path:
            return await asyncio.open_unix_connection(self._path)
        return await asyncio.open_connection("127.0.0.1", self._port)


@contextlib.asynccontextmanager
async def answer(target: Target, body: dict[str, object], path: str) -> AsyncIterator[asyncio.StreamReader]:
    reader, writer = await target.open()
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    try:
        status = await reader.readline()
        if b" 200 " not in status:
            raise CannotMeasure(f"the server answered {status!r} {await reader.read(2000)!r}")
        yield reader
    finally:
        writer.close()


async def streamed(target: Target, body: dict[str, object], path: str = _CHAT) -> tuple[float, float]:
    """Seconds to the first token, and tokens per second between the first and the last."""
    started = time.monotonic()
    moments: list[float] = []
    async with answer(target, body, path) as reader:
        while piece := await reader.read(1 << 16):
            moments += [time.monotonic()] * len(_TOKEN[path].findall(piece))
    if not moments:
        raise CannotMeasure("the answer holds no token")
    span = moments[-1] - moments[0]
    return moments[0] - started, (len(moments) - 1) / span if span else math.inf  # all in one piece


def chat(model: str, number: int, tokens: int = _TOKENS, *, cached: bool = False) -> dict[str, object]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": f"Number {number}: tell me about stone circles."}],
        "max_tokens": tokens,
        "stream": True,
        "ignore_eos": True,
        "temperature": 0,
        "cache_prompt": cached,
        # What the server sets for the demo model, but no penalty, and no ends of lines, which would stop it early.
        "repeat_penalty": 1.0,
        "stop": ["\n\n", "\nQ:"],
        "logit_bias": [["\n", False], ["\n\n", False]],
    }


async def compared(ours: Target, direct: Target, model: str, rounds: int) -> dict[str, Figure]:
    single: dict[str, list[float]] = defaultdict(list)
    first: dict[str, list[float]] = defaultdict(list)
    many: dict[str, list[float]] = defaultdict(list)
    sides = [("ours", ours), ("direct", direct)]
    for number in range(-1, rounds):
        await streamed(direct, chat(model, -1, 4, cached=True))  # the streams took all slots
        for pair in range(_SINGLES_A_ROUND):
            for name, target in sides if pair % 2 else reversed(sides):
                seconds, rate = await streamed(target, chat(model, -1, _SINGLE_TOKENS, cached=True))
                if number >= 0:  # the first round warms up
                    first[name].append(seconds)
                    single[name].append(rate)
        for name, target in sides if number % 2 else reversed(sides):
            started = time.monotonic()
            bodies = [chat(model, 100 * number + stream, _STREAM_TOKENS) for stream in range(_STREAMS)]
            await asyncio.gather(*(streamed(target, body) for body in bodies))
            if number >= 0:
                many[name].append(_STREAMS * _STREAM_TOKENS / (time.monotonic() - started))
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


async def compared_with_python(ours: Target, theirs: Target, model: str, rounds: int) -> dict[str, Figure]:
    """llama-cpp-python's server and ours, each with its own engine: the same file and the same prompt as a plain
    completion, because that server ends this model's chats at once. The ids are Gemma 3's ends of a text, of a turn
    and of lines."""
    rates: dict[str, list[float]] = defaultdict(list)
    first: dict[str, list[float]] = defaultdict(list)
    ends = {str(token): -100 for token in (1, 106, 107, 108)}
    for number in range(-1, rounds):
        prompt = f"Q: Number {number}: tell me about stone circles.\nA:"
        body = {"model": model, "prompt": prompt, "max_tokens": _TOKENS, "stream": True, "temperature": 0}
        body |= {"logit_bias": ends}
        sides = [("ours", ours), ("theirs", theirs)]
        for name, target in sides if number % 2 else reversed(sides):
            seconds, rate = await streamed(target, body, _COMPLETION)
            if number >= 0:
                first[name].append(seconds)
                rates[name].append(rate)
    return {
        _PYTHON_SERVER: median(rates["theirs"]),
        "llama-cpp-python's server, first token ms": 1e3 * median(first["theirs"]),
        "ours compared with it, first token ms": 1e3 * median(first["ours"]),
        "ours compared with it, ratio of rates": median(
            a / b for a, b in zip(rates["ours"], rates["theirs"], strict=True)
        ),
    }


@contextlib.contextmanager
def python_server(python: Path, model: Path) -> Iterator[Target]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--model", str(model), "--port", str(port), "--n_ctx", "512", "--n_threads", str(os.cpu_count())]
    command = [str(python), "-m", "llama_cpp.server", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.1)
            else:
                fix = f"run: {python} -m pip install 'llama-cpp-python[server]'"
                raise CannotMeasure(f"{python} -m llama_cpp.server did not start; {fix}")
            yield Target(port)
        finally:
            process.terminate()


def _ratio(values: dict[str, list[float]]) -> float:
    return median(a / b for a, b in zip(values["ours"], values["direct"], strict=True))


async def memory_over(target: Target, model: str, process: int, requests: int) -> dict[str, Figure]:
    """Resident memory of the server before and after so many requests, ten at a time."""
    sizes = [resident_megabytes(process)]
    for half in (1, 2):
        for number in range(max(1, requests // 2 // 10)):
            await asyncio.gather(*(streamed(target, chat(model, number, 4)) for _ in range(10)))
        sizes.append(resident_megabytes(process))
        print(f"{half * requests // 2} requests: {sizes[-1]:.1f} MB", file=sys.stderr)
    return {
        "resident MB before": sizes[0],
        "resident MB after the requests": sizes[-1],
        "growth MB over the last half": sizes[-1] - sizes[-2],
    }


async def with_open_streams(target: Target, model: str, slow: str, streams: int) -> dict[str, Figure]:
    """One stream's rate alone, and while other clients have a stream open on which almost nothing arrives: the first
    of them gets a token every 20 s, and the others wait for it."""
    alone = median([(await streamed(target, chat(model, number)))[1] for number in range(5)])
    waiting = [asyncio.create_task(streamed(target, chat(slow, number))) for number in range(streams)]
    try:
        await asyncio.sleep(5)
        with_others = median([(await streamed(target, chat(model, number)))[1] for number in range(5)])
        if any(task.done() for task in waiting):
            raise CannotMeasure("a stream that should have stayed open has ended")
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return {
        "one stream alone, tokens/s": alone,
        "other streams": streams,
        "with other streams open, ratio of rates": with_others / alone,
    }


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
        keep_plan(folder / "data" / "trilithon", plan)
    yield files


def model_name(file: Path) -> str:
    """What the server calls a file that it was given."""
    return re.sub(r"[^a-z0-9_.-]+", "-", file.stem.lower())


def child_socket(parent: int) -> str:
    """The Unix socket of the server's only child: a path in its command line."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"PPid:\t{parent}\n" in (entry / "status").read_text(encoding="utf-8"):
                line = (entry / "cmdline").read_bytes().decode()
                if match := re.search(r"/[^\0\"]*wire\.sock", line):
                    return match[0]
    raise CannotMeasure("the server has no child process with a socket")


async def warm_up(target: Target, model: str) -> None:
    await streamed(target, chat(model, -1, 4))


def real_figures(options: argparse.Namespace, model: Path, environment: dict[str, str]) -> dict[str, Figure]:
    """Our server and its own child, and llama-cpp-python's server where it was named."""
    placement = f"{ENGINE}@embedded/cpu"
    if options.build:
        placement = f"{ENGINE}@native/cpu"  # nothing has added a build to the private folders
        environment = {**environment, "TRILITHON_BUILDS": str(options.build)}
    arguments_of_server = ("--placement", placement, "--parallel", str(_STREAMS), "--context", "512", "--no-pages")
    name = model_name(model)
    with serving(model, *arguments_of_server, environment=environment) as server:
        ours = Target(server.port)
        asyncio.run(warm_up(ours, name))
        direct = Target(path=child_socket(server.process))
        figures = asyncio.run(compared(ours, direct, name, options.rounds))
        if options.llama_cpp_python is None:
            return figures | {_PYTHON_SERVER: not_measured("--llama-cpp-python names no interpreter")}
        return figures | attempted([_PYTHON_SERVER], python_figures, options, ours, model)


def python_figures(options: argparse.Namespace, ours: Target, model: Path) -> dict[str, Figure]:
    with python_server(options.llama_cpp_python, model) as theirs:
        return asyncio.run(compared_with_python(ours, theirs, model_name(model), options.rounds))


def scripted_figures(options: argparse.Namespace, server: Server) -> dict[str, Figure]:
    target = Target(server.port)
    asyncio.run(warm_up(target, "fast"))
    figures = attempted(_OF_STREAMS, lambda: asyncio.run(with_open_streams(target, "fast", "slow", options.streams)))
    memory = attempted(_OF_MEMORY, lambda: asyncio.run(memory_over(target, "fast", server.process, options.requests)))
    return figures | memory


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--build", type=Path, metavar="FOLDER")
    parser.add_argument("--model", type=Path, metavar="FILE")
    parser.add_argument("--llama-cpp-python", type=Path, metavar="PYTHON")
    parser.add_argument("--rounds", type=count, default=15)
    parser.add_argument("--requests", type=count, default=10_000)
    parser.add_argument("--streams", type=count, default=200, help="other streams that are open")
    options = parser.parse_args()
    if options.build:
        build_in(options.build, configuration_with(options.build))
    model = options.model or demo_path(load_configuration())
    plans = {"fast": "scripted/cpu:prefill=1000000,decode=200,np=16", "slow": "scripted/cpu:decode=0.05"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = private_folders(folder)
        figures = attempted(_OF_RATES, real_figures, options, model, environment)
        with (
            with_plans(model, folder, plans) as files,
            serving(*files, "--no-pages", environment=environment) as server,
        ):
            figures |= attempted([*_OF_STREAMS, *_OF_MEMORY], scripted_figures, options, server)
    return report(figures, _BOUNDS, as_json=options.json)


if __name__ == "__main__":
    run(main)
