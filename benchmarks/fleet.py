"""Several boards behind `trilithon fleet serve`: what the gateway adds, and what becomes of requests when boards fail.

    python benchmarks/fleet.py [--requests 500] [--streams 200] [--json]

Four `trilithon serve` with the scripted engine (20 tokens/s) stand for boards, all on this machine, with a real HAProxy
in front of them. Measured in turn: the rate of one board and of four; the time to the first token and the gaps of
single streams, directly and through the gateway; requests that are cut while a board is drained, and whether a
conversation stays on its board; the memory of the gateway with many streams open; a board that is stopped by a signal;
and requests that are lost before their first token while a board is killed.
"""

import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

from _figures import Bound, CannotMeasure, Figure, arguments, attempted, count, report, run
from _server import Server, children, private_folders, serving
from _timing import TRILITHON

from trilithon.models.synthetic.tiny import write_tiny_model

_BOUNDS = [
    Bound("4 boards over 1, ratio of rates", least=3.8),
    Bound("first token, added ms", most=2.0),
    Bound("gaps, added ms at p99", most=5.0),
    Bound("drained under load, cut", most=0),
    Bound("same conversation, same board, %", least=95.0),
    Bound("board killed, lost before the first token", most=0),
    Bound("frozen board, new requests elsewhere after s", most=2.0),
    Bound("frozen board, held stream ended after s", most=35.0),
    Bound("gateway with the streams, MB", most=60.0),
]
_NAMES = [bound.figure for bound in _BOUNDS]
_RATE = 20  # tokens/s of a board
_PLACEMENT = f"scripted/cpu:prefill=20000,decode={_RATE},noise=0"
_ADDRESS = re.compile(r"at http://127\.0\.0\.1:(\d+)\n")


@dataclass(slots=True)
class _Stream:
    """Seconds since `began`; `events` are the times of events with text."""

    text: str
    began: float
    board: str = ""
    events: list[float] = field(default_factory=list)
    ended: float = 0.0
    is_whole: bool = False


def _ask(port: int, text: str, tokens: int) -> _Stream:
    stream = _Stream(text, time.monotonic())
    body = {"model": "tiny", "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": text}]}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        answer = connection.getresponse()
        stream.board = answer.getheader("x-trilithon-board") or ""
        while line := answer.readline():
            if b'"content": "' in line:
                stream.events.append(time.monotonic() - stream.began)
            stream.is_whole = stream.is_whole or line.startswith(b"data: [DONE]")
    stream.ended = time.monotonic() - stream.began
    return stream


def _ask_many(
    port: int, texts: Sequence[str], tokens: int, at_once: int, while_it_runs: Callable[[], None] = lambda: None
) -> list[_Stream]:
    left, streams = iter(texts), []
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                text = next(left, None)
            if text is None:
                return
            streams.append(_ask(port, text, tokens))

    threads = [threading.Thread(target=work) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    while_it_runs()
    for thread in threads:
        thread.join()
    return streams


def _rate(port: int, boards: int, tag: str) -> float:
    requests, tokens = 24 * boards, 30
    began = time.monotonic()
    streams = _ask_many(port, [f"{tag} {number}" for number in range(requests)], tokens, 4 * boards)
    return sum(len(stream.events) for stream in streams) / (time.monotonic() - began)


def _added(gateway: int, board: int) -> dict[str, Figure]:
    firsts: dict[int, list[float]] = defaultdict(list)
    gaps: dict[int, list[float]] = defaultdict(list)
    for number in range(15):
        for port in (gateway, board) if number % 2 else (board, gateway):
            stream = _ask(port, f"single {number}", 30)
            firsts[port].append(stream.events[0])
            gaps[port] += [after - before for before, after in itertools.pairwise(stream.events)]
    p99 = {port: quantiles(values, n=100)[98] for port, values in gaps.items()}
    first = median(firsts[gateway]) - median(firsts[board])
    return {_NAMES[1]: first * 1e3, _NAMES[2]: (p99[gateway] - p99[board]) * 1e3}


def _drained(port: int, drain: Callable[[str, str], None]) -> dict[str, Figure]:
    def meanwhile() -> None:
        time.sleep(2)
        drain("drain", "rock2")
        time.sleep(3)
        drain("undrain", "rock2")

    texts = [f"conversation {number % 40}" for number in range(160)]
    streams = _ask_many(port, texts, 10, 8, meanwhile)
    cut = sum(not stream.is_whole for stream in streams)
    alone, together = (_same_board(port, texts[:count], at_once) for count, at_once in ((80, 1), (160, 4)))
    return {_NAMES[3]: cut, _NAMES[4]: alone, "the same with 4 conversations at once, %": together}


def _same_board(port: int, texts: Sequence[str], at_once: int) -> float:
    boards: dict[str, Counter[str]] = defaultdict(Counter)
    for stream in _ask_many(port, texts, 5, at_once):
        boards[stream.text][stream.board] += 1
    return 100.0 * sum(max(counter.values()) for counter in boards.values()) / len(texts)


def _killed(port: int, requests: int, board: Server) -> dict[str, Figure]:
    def kill() -> None:
        time.sleep(5)
        os.kill(board.process, signal.SIGKILL)

    streams = _ask_many(port, [f"kill {number}" for number in range(requests)], 4, 24, kill)
    lost = sum(not stream.is_whole and not stream.events for stream in streams)
    return {_NAMES[5]: lost, "board killed, streams with an error event": sum(not s.is_whole for s in streams) - lost}


def _frozen(port: int, board: Server, name: str) -> dict[str, Figure]:
    """The last moment at which a new request was held for more than a second more than usual."""
    held: list[_Stream] = []
    texts = (f"held {number}" for number in itertools.count())
    text = next(text for text in texts if _ask(port, text, 1).board == name)
    holding = threading.Thread(target=lambda: held.append(_ask(port, text, 2000)))
    holding.start()
    time.sleep(2)
    stopped = time.monotonic()
    os.kill(board.process, signal.SIGSTOP)
    probes: list[_Stream] = []
    threads = []
    for number in range(40):
        threads.append(threading.Thread(target=lambda n=number: probes.append(_ask(port, f"probe {n}", 1))))
        threads[-1].start()
        time.sleep(0.1)
    for thread in [*threads, holding]:
        thread.join()
    ended = held[0].began + held[0].ended - stopped
    os.kill(board.process, signal.SIGCONT)
    late = [probe.began - stopped for probe in probes if probe.ended > 5 or not probe.is_whole]
    return {_NAMES[6]: max(late, default=0.0), _NAMES[7]: ended}


def _memory(port: int, gateway: int, streams: int) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}

    def look() -> None:
        time.sleep(6)
        figures[_NAMES[8]] = sum(_private_megabytes(pid) for pid in (gateway, *_descendants(gateway)))

    _ask_many(port, [f"open {number}" for number in range(streams)], 15, streams, look)
    return figures


def _descendants(process: int) -> list[int]:
    return [pid for child in children(process) for pid in (child, *_descendants(child))]


def _private_megabytes(process: int) -> float:
    """Its part of what it shares (PSS)."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8")
    return int(re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)[1]) / 1024  # type: ignore[index] # the kernel's form


@contextlib.contextmanager
def _gateway(environment: dict[str, str], folder: Path) -> Iterator[tuple[int, int]]:
    """Its port and process."""
    log = folder / "gateway.log"
    with log.open("w") as stream:
        command = [str(TRILITHON), "fleet", "serve", "--port", "0"]
        process = subprocess.Popen(command, stderr=stream, env={**os.environ, **environment})
    try:
        while (match := _ADDRESS.search(text := log.read_text(encoding="utf-8"))) is None:
            if process.poll() is not None:
                raise CannotMeasure(f"trilithon fleet serve did not start: {'; '.join(text.splitlines())}")
            time.sleep(0.05)
        yield int(match[1]), process.pid
    finally:
        process.terminate()
        process.wait()


def _measure(requests: int, streams: int) -> dict[str, Figure]:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as running:
        folder = Path(name)
        model = folder / "tiny.gguf"
        write_tiny_model(model)
        boards: list[Server] = []
        environment = private_folders(folder / "gateway")

        def fleet(*words: str) -> None:
            command = [str(TRILITHON), "fleet", *words]
            subprocess.run(command, check=True, env={**os.environ, **environment}, capture_output=True)

        for number in range(1, 5):
            home = private_folders(folder / f"rock{number}")
            words = (model, "--no-pages", "--placement", _PLACEMENT, "--keep-alive", "-1", "--pin", "tiny")
            boards.append(running.enter_context(serving(*words, environment=home)))
            fleet("add", f"rock{number}={boards[-1].url}")
        for number in range(2, 5):
            fleet("drain", f"rock{number}")
        port, process = running.enter_context(_gateway(environment, folder))
        _ask(port, "the model is loaded", 1)
        one = _rate(port, 1, "one")
        figures: dict[str, Figure] = attempted(_NAMES[1:3], _added, port, boards[0].port)
        fleet("undrain", "rock2")
        fleet("undrain", "rock3")
        fleet("undrain", "rock4")
        time.sleep(2)
        four = _rate(port, 4, "four")
        figures |= {"1 board, tokens/s": one, "4 boards, tokens/s": four, _NAMES[0]: four / one}
        figures |= attempted(_NAMES[3:5], _drained, port, lambda order, board: fleet(order, board))
        figures |= attempted(_NAMES[8:], _memory, port, process, streams)
        figures |= attempted(_NAMES[6:8], _frozen, port, boards[1], "rock2")
        time.sleep(5)
        figures |= attempted(_NAMES[5:6], _killed, port, requests, boards[2])
        return figures


def main() -> int:
    parser = arguments(str(__doc__))
    parser.add_argument("--requests", type=count, default=500, help="requests while a board is killed")
    parser.add_argument("--streams", type=count, default=200, help="open streams while memory is read")
    options = parser.parse_args()
    return report(_measure(options.requests, options.streams), _BOUNDS, as_json=options.json)


if __name__ == "__main__":
    run(main)
