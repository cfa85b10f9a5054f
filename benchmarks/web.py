"""What the pages cost: a browser's work per token in a long conversation, opening long ones and 10,000 results, memory.

    python benchmarks/web.py [--tokens 20000] [--results 10000] [--json]

Needs Chromium and playwright. The streamed words come from a list at a steady rate in place of an engine; everything
from there to the browser is what `trilithon serve` runs. The browser's work is its main thread's (TaskDuration of the
Chrome DevTools protocol), in the first and in the last tenth of the answer. Memory is the resident set of a real
`trilithon serve`, with every page open once in one browser, beside one without pages.
"""

import asyncio
import contextlib
import itertools
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from _figures import Bound, Figure, arguments, report
from _placements import demo_path
from _web_results import MOST_SECONDS, fill_store, page_seconds
from playwright.sync_api import Page, sync_playwright

from trilithon.board.snapshot import read_board
from trilithon.runtime.pool.pool import Pool
from trilithon.runtime.process import workspace
from trilithon.serve.app import create_app
from trilithon.serve.catalog.catalog import Catalog
from trilithon.serve.generation import Piece
from trilithon.serve.http.protocol import PatientProtocol
from trilithon.serve.service import Service
from trilithon.settings import load_configuration
from trilithon.web.app import install
from trilithon.web.chat import page as chat_page
from trilithon.web.chat.answering import Question
from trilithon.web.context import AppContext

_TOKENS_PER_SECOND = 400
_PARTS = 10
_PAGES = ("/", "/board", "/models", "/results")
_BOUNDS = [
    Bound("browser's work per token, last tenth to first", most=1.5),
    Bound("seconds to open 10,000 results", most=MOST_SECONDS),
    Bound("memory of the pages, MB", most=150.0),
]


class Steady(Question):
    """Words from a list, in paragraphs, lists and listings, at a steady rate."""

    tokens = 20_000
    given = 0

    async def pieces(self) -> AsyncIterator[Piece]:
        words, began = random.Random(1), time.monotonic()
        for number in range(self.tokens):
            late = began + number / _TOKENS_PER_SECOND - time.monotonic()
            if late > 0:
                await asyncio.sleep(late)
            Steady.given = number + 1
            yield Piece(text=_token(number, words))
        self.figures["answer_tokens"] = self.tokens
        self.figures["decode_rate"] = float(_TOKENS_PER_SECOND)


def _token(number: int, words: random.Random) -> str:
    match number % 120:
        case 119:
            return "\n\n"
        case 90:
            return "\n\n```python\n"
        case 118:
            return "\n```\n"
        case at if at > 90 and at % 9 == 0:
            return "\n"
    return words.choice(("stone ", "gate ", "**lintel** ", "weight ", "and ", "of ", "the "))


@contextlib.contextmanager
def pages(folder: Path, model: Path) -> Iterator[str]:
    """The server's address."""
    configuration = load_configuration({**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder / "data")})
    board = read_board()
    with workspace() as private, socket.create_server(("127.0.0.1", 0)) as listening:
        shelf = Catalog(configuration, board, paths=[model], placement="scripted/cpu")
        service = Service(shelf, Pool(configuration, private))
        app = create_app(service)
        store = configuration.results_database
        install(app, AppContext(service=service, configuration=configuration, board=board, store=store))
        server = uvicorn.Server(
            uvicorn.Config(app, http=PatientProtocol, ws="websockets-sansio", loop="asyncio", log_level="error")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def streamed(page: Page, url: str, tokens: int) -> dict[str, Figure]:
    """The browser's seconds per token, and what it takes to open the conversation again."""
    Steady.tokens = tokens
    page.goto(url)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    page.get_by_label("Ask something").fill("a long story")
    page.get_by_label("Ask something").press("Enter")
    marks: list[tuple[int, float]] = []
    for part in range(_PARTS + 1):
        while Steady.given < max(part * tokens // _PARTS, 1):
            page.wait_for_timeout(20)
        marks.append((Steady.given, _busy_seconds(session)))
    works = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(marks)]
    page.locator(".message.assistant .figures", has_text="tokens/s").wait_for(timeout=60_000)
    began = time.monotonic()
    page.goto(url)
    page.locator(".side .open").first.click()
    page.locator(".message.assistant .figures", has_text="tokens/s").wait_for(timeout=60_000)
    opened = time.monotonic() - began
    return {
        "browser's work per token, first tenth, ms": 1e3 * works[0],
        "browser's work per token, last tenth, ms": 1e3 * works[-1],
        "browser's work per token, last tenth to first": works[-1] / works[0],
        f"seconds to open {tokens} tokens": opened,
    }


def _busy_seconds(session: Any) -> float:
    found = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    return float(found["TaskDuration"])


def resident(page: Page, model: Path, folder: Path) -> dict[str, Figure]:
    sizes = {}
    for name, more in (("without", ("--no-pages",)), ("with", ())):
        with _serving(model, folder, *more) as (url, process):
            for path in _PAGES if not more else ():
                page.goto(url + path, wait_until="networkidle")
            page.wait_for_timeout(2000)
            text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
            match = re.search(r"VmRSS:\s+(\d+) kB", text)
            assert match is not None
            sizes[name] = int(match[1]) / 1000
    return {
        "resident MB, the API alone": sizes["without"],
        "resident MB, every page open in one browser": sizes["with"],
        "memory of the pages, MB": sizes["with"] - sizes["without"],
    }


@contextlib.contextmanager
def _serving(model: Path, folder: Path, *more: str) -> Iterator[tuple[str, int]]:
    words = [str(Path(sys.executable).with_name("trilithon")), "serve", str(model), "--port", "0", *more]
    environment = os.environ | {"HOME": str(folder), "XDG_DATA_HOME": str(folder / "data")}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if match := re.search(r"serves .* at (http://\S+)", line):
                    yield match[1], process.pid
                    return
            sys.exit("the server did not start")
        finally:
            process.terminate()


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--results", type=int, default=10_000)
    words = parser.parse_args()
    model = demo_path(load_configuration())
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        (folder / "data/trilithon").mkdir(parents=True)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(locale="en-US")
        figures |= resident(page, model, folder)
        fill_store(folder / "data/trilithon/results.sqlite", words.results)
        chat_page.Asked = Steady  # type: ignore[attr-defined,misc]
        with pages(folder, model) as url:
            figures |= streamed(page, url, words.tokens)
            figures["seconds to open 10,000 results"] = page_seconds(page, url)
            page.close()
        browser.close()
    return report(figures, _BOUNDS, as_json=words.json)


if __name__ == "__main__":
    sys.exit(main())
