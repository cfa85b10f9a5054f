"""What the pages cost: a browser's work per token in a long answer, opening long conversations and 10,000 results,
and memory.

    python benchmarks/web.py [--model FILE] [--tokens 20000] [--results 10000] [--json]

Needs Chromium and playwright. The streamed words come from a list at a steady rate instead of an engine; everything
from there to the browser is what `trilithon serve` runs. The browser's work is the time of its main thread
(TaskDuration of the Chrome DevTools protocol) in the first and in the last tenth of the answer. Memory is the resident
set of a real `trilithon serve` with every page open once in one browser, compared with one without pages.
"""

import asyncio
import contextlib
import itertools
import os
import random
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from _figures import Bound, CannotMeasure, Figure, arguments, attempted, count, not_measured, report, run
from _placements import demo_path
from _server import private_folders, resident_megabytes, serving
from web_results import MOST_SECONDS, fill_store, page_seconds

from trilithon.board.snapshot import read_board
from trilithon.packages import install_line
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

if TYPE_CHECKING:  # the tests' extra: --help works without it
    from playwright.sync_api import Page

_TOKENS_PER_SECOND = 400
_PARTS = 10
_PATIENCE_SECONDS = 60
_PAGES = ("/", "/board", "/models", "/results")
_WORK, _OPEN, _MEMORY = (
    "browser's work per token, last tenth to first",
    "seconds to open the results",
    "memory of the pages, MB",
)
_BOUNDS = [Bound(_WORK, most=1.5), Bound(_OPEN, most=MOST_SECONDS), Bound(_MEMORY, most=150.0)]


class Steady(Question):
    """Words from a list, in paragraphs and code blocks, at a steady rate."""

    tokens = 20_000
    given = 0

    async def pieces(self) -> AsyncIterator[Piece]:
        words, started = random.Random(1), time.monotonic()
        for number in range(self.tokens):
            ahead = started + number / _TOKENS_PER_SECOND - time.monotonic()
            if ahead > 0:
                await asyncio.sleep(ahead)
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
    configuration = load_configuration({**os.environ, **private_folders(folder)})
    board = read_board()
    with workspace() as private, socket.create_server(("127.0.0.1", 0)) as listening:
        catalog = Catalog(configuration, board, paths=[model], placement="scripted/cpu")
        service = Service(catalog, Pool(configuration, private))
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


def streamed(page: "Page", url: str, tokens: int) -> dict[str, Figure]:
    """The browser's seconds per token, and what it takes to open the conversation again."""
    Steady.tokens = tokens
    page.goto(url)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    page.get_by_label("Ask something").fill("a long story")
    page.get_by_label("Ask something").press("Enter")
    marks: dict[int, float] = {}
    for part in range(_PARTS + 1):
        _wait_for_tokens(page, max(part * tokens // _PARTS, 1))
        marks[Steady.given] = _busy_seconds(session)
    page.locator(".message.assistant .figures", has_text="tokens/s").wait_for(timeout=60_000)
    started = time.monotonic()
    page.goto(url)
    page.locator(".side .open").first.click()
    page.locator(".message.assistant .figures", has_text="tokens/s").wait_for(timeout=60_000)
    return work_figures(marks) | {f"seconds to open {tokens} tokens": time.monotonic() - started}


def _wait_for_tokens(page: "Page", number: int) -> None:
    given, deadline = Steady.given, time.monotonic() + _PATIENCE_SECONDS
    while Steady.given < number:
        page.wait_for_timeout(20)
        if Steady.given > given:
            given, deadline = Steady.given, time.monotonic() + _PATIENCE_SECONDS
        elif time.monotonic() > deadline:
            raise CannotMeasure(f"no token came for {_PATIENCE_SECONDS} s; {given} of {Steady.tokens} were streamed")


def work_figures(marks: Mapping[int, float]) -> dict[str, Figure]:
    """The browser's work per token, from its seconds at numbers of tokens."""
    works = [(later[1] - earlier[1]) / (later[0] - earlier[0]) for earlier, later in itertools.pairwise(marks.items())]
    if len(works) < 2:
        return {_WORK: not_measured("the answer was over before the browser; use more --tokens")}
    return {
        "browser's work per token, first tenth, ms": 1e3 * works[0],
        "browser's work per token, last tenth, ms": 1e3 * works[-1],
        _WORK: works[-1] / works[0],
    }


def _busy_seconds(session: Any) -> float:
    metrics = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    return float(metrics["TaskDuration"])


@contextlib.contextmanager
def browser_errors() -> Iterator[None]:
    """What the browser could not do is a reason for a part that was not measured."""
    from playwright.sync_api import Error

    try:
        yield
    except Error as error:
        raise CannotMeasure(f"the browser: {error.message.partition(chr(10))[0]}") from error


@browser_errors()
def memory(page: "Page", model: Path, folder: Path) -> dict[str, Figure]:
    sizes = {}
    for option in ("--no-pages", "--pages"):
        options = (option,) if option == "--no-pages" else ()
        with serving(model, *options, environment=private_folders(folder)) as server:
            for path in () if options else _PAGES:
                page.goto(server.url + path, wait_until="networkidle")
            page.wait_for_timeout(2000)
            sizes[option] = resident_megabytes(server.process)
    return {
        "resident MB, only the API": sizes["--no-pages"],
        "resident MB, every page open in one browser": sizes["--pages"],
        _MEMORY: sizes["--pages"] - sizes["--no-pages"],
    }


@contextlib.contextmanager
def browser_page() -> Iterator["Page"]:
    """A page of a headless Chromium: the system's, or playwright's own."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise CannotMeasure(f"playwright is not installed; run: {install_line('playwright')}") from error
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        except Error as error:
            raise CannotMeasure(f"no Chromium starts here; run: playwright install chromium ({error})") from error
        try:
            yield browser.new_page(locale="en-US")
        finally:
            browser.close()


@browser_errors()
def of_pages(page: "Page", model: Path, folder: Path, tokens: int, results: int) -> dict[str, Figure]:
    chat_page.Question = Steady  # type: ignore[attr-defined]
    with pages(folder, model) as url:
        return streamed(page, url, tokens) | {_OPEN: page_seconds(page, url, min(results, 50))}


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--tokens", type=count, default=20_000)
    parser.add_argument("--results", type=count, default=10_000)
    parser.add_argument(
        "--model", type=Path, metavar="FILE", help="what the server offers; nothing is computed with it"
    )
    options = parser.parse_args()
    model = options.model or demo_path(load_configuration())
    figures: dict[str, Figure] = {"results": options.results}
    with tempfile.TemporaryDirectory() as name, browser_page() as page:
        folder = Path(name)
        (folder / "data/trilithon").mkdir(parents=True)
        figures |= attempted([_MEMORY], memory, page, model, folder)
        fill_store(folder / "data/trilithon/results.sqlite", options.results)
        figures |= attempted([_WORK, _OPEN], of_pages, page, model, folder, options.tokens, options.results)
    return report(figures, _BOUNDS, as_json=options.json)


if __name__ == "__main__":
    run(main)
