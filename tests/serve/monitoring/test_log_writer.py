"""A reader of the log that stops reading holds nobody up: a pager that waits, a terminal after Ctrl-S, a full pipe."""

import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from trilithon.serve.monitoring.log_writer import LogWriter
from trilithon.serve.monitoring.logs import logged_to

TIMEOUT = 60.0
SMALLEST_PIPE = 4096


def ends(read: int, write: int) -> tuple[int, int]:
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, SMALLEST_PIPE)
    return read, write


def terminal() -> tuple[int, int]:
    read, write = os.openpty()
    tty.setraw(write)
    return read, write


@pytest.fixture(params=["pipe", "non-blocking pipe", "terminal", "stopped terminal"])
def unread(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Where to read and where to write."""
    read, write = ends(*os.pipe()) if "pipe" in request.param else terminal()
    os.set_blocking(write, request.param != "non-blocking pipe")
    if request.param == "stopped terminal":
        termios.tcflow(write, termios.TCOOFF)
    yield read, write
    if request.param == "stopped terminal":
        termios.tcflow(write, termios.TCOON)  # else closing waits for what is still to be sent
    os.close(read)
    os.close(write)


@contextlib.contextmanager
def collected(descriptor: int) -> Iterator[bytearray]:
    """What is read there meanwhile, up to a line that ends with "end"."""
    octets = bytearray()

    def collect() -> None:
        while not octets.endswith((b"end\n", b'"end"}\n')):
            octets.extend(os.read(descriptor, 65536))

    thread = threading.Thread(target=collect)
    thread.start()
    yield octets
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def test_who_writes_does_not_wait_and_the_reader_gets_the_oldest_lines(unread: tuple[int, int]) -> None:
    read, write = unread
    writer = LogWriter(write, most_lines=100)
    for number in range(1000):
        writer.write(f"{number} " + "x" * 1000)  # returns, or the test never ends
    assert writer.take_left_out() == 0  # not yet: others wait
    if os.isatty(write):
        termios.tcflow(write, termios.TCOON)
    with collected(read) as octets:
        while not writer.flush():
            pass
        left_out = writer.take_left_out()
        writer.write("end")
    numbers = [int(line.split()[0]) for line in octets.splitlines()[:-1]]
    assert numbers[:100] == list(range(100))
    assert len(numbers) + left_out == 1000
    writer.close()


def test_lines_that_were_left_out_are_counted_in_the_log() -> None:
    read, write = ends(*os.pipe())
    with os.fdopen(write, "w") as stream, logged_to(stream) as writer:
        for _ in range(6_000):
            logging.getLogger("x").warning("full")
        with collected(read) as octets:
            while not writer.flush():
                pass
            logging.getLogger("x").warning("end")
    os.close(read)
    lines = [json.loads(line) for line in octets.splitlines()]
    *_, left_out, last = lines
    assert last["message"] == "end"
    assert left_out["logger"] == "trilithon.log"
    assert left_out["lines"] == 6_000 - (len(lines) - 2)


@pytest.mark.parametrize("path", ["/dev/full", "a pipe without a reader"])
def test_what_cannot_be_written_stops_nobody(path: str) -> None:
    if path.startswith("/"):
        descriptor = os.open(path, os.O_WRONLY)
    else:
        read, descriptor = os.pipe()
        os.close(read)
    writer = LogWriter(descriptor)
    for _ in range(3):
        writer.write("x")
    writer.flush()
    assert writer.take_left_out() == 0
    writer.close()
    os.close(descriptor)


@pytest.mark.slow  # a whole server
def test_a_server_whose_log_is_not_read_answers_and_ends(tiny: Path, home: Path) -> None:
    read, write = ends(*os.pipe())
    words = ["serve", str(tiny), "--placement", "scripted/cpu", "--port", "0", "--no-pages", "--verbose"]
    command = [str(Path(sys.executable).with_name("trilithon")), *words]
    with subprocess.Popen(command, stderr=write) as process, os.fdopen(read) as reader:
        os.close(write)
        url = next(line.split()[-1] for line in reader if " at http://" in line)
        with httpx.Client(base_url=url, timeout=TIMEOUT, trust_env=False) as http:
            for _ in range(60):  # 300 bytes of the log each
                assert http.get("/health").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0
