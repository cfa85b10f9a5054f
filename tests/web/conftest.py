"""What the tests of the pages share: a live server with pages, and Debian's Chromium in front of it."""

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from trilithon.board.snapshot import read_board
from trilithon.runtime.pool.pool import Pool
from trilithon.runtime.process import workspace
from trilithon.serve.access.keys import add_key, key_store
from trilithon.serve.access.security import SecurityOptions
from trilithon.serve.app import ServeOptions, create_app
from trilithon.serve.catalog.catalog import Catalog
from trilithon.serve.http.protocol import PatientProtocol
from trilithon.serve.service import Service
from trilithon.settings import Configuration, load_configuration
from trilithon.web.app import install
from trilithon.web.context import AppContext

FAST = "scripted/cpu:prefill=50000,decode=5000"
ARTEFACTS = Path(__file__).parents[2] / "artefacts" / "web"
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)  # its own five seconds are little on a busy machine


@dataclass
class Site:
    """`url` to open; `context` to look into, but for the pool, which lives in the server's loop; `keys` by name."""

    url: str
    context: AppContext
    keys: dict[str, str] = field(default_factory=dict)
    loop: asyncio.AbstractEventLoop | None = None

    @property
    def service(self) -> Service:
        return self.context.service

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    @property
    def model(self) -> str:
        """The name of the only model."""
        (entry,) = self.service.shelf.models()
        return entry.name

    def run(self, work: Any) -> Any:
        """A coroutine, in the server's loop."""
        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)


OpenSite = Callable[..., Site]
OpenPage = Callable[..., Page]


@pytest.fixture
def configuration(home: Path) -> Configuration:
    return load_configuration()


@pytest.fixture
def site(configuration: Configuration) -> Iterator[OpenSite]:
    """`site(*paths, placement=…, keys=("ann",), **of the pool)`: a server with pages until the test ends; one a
    test, since NiceGUI has one application in a process."""
    with contextlib.ExitStack() as live:

        def start(
            *paths: Path,
            placement: str = FAST,
            keys: Sequence[str] = (),
            slots: int = 1,
            shelf: Catalog | None = None,
            security: SecurityOptions | None = None,
            **pool: Any,
        ) -> Site:
            board = read_board()
            secret_keys = {name: add_key(configuration, name) for name in keys}
            shelf = shelf or Catalog(configuration, board, paths=paths, placement=placement, slots=slots)
            folder = live.enter_context(workspace())
            service = Service(shelf, Pool(configuration, folder, **pool))
            context = AppContext(
                service=service, configuration=configuration, board=board, store=configuration.results_database
            )
            security = security or SecurityOptions(key_store=key_store(configuration))
            opened = live.enter_context(_running(context, security))
            opened.keys = secret_keys
            return opened

        yield start


@contextlib.contextmanager
def _running(context: AppContext, security: SecurityOptions) -> Iterator[Site]:
    app = create_app(context.service, ServeOptions(security=security, drain_seconds=2.0))
    install(app, context)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            app, http=PatientProtocol, ws="websockets-sansio", loop="asyncio", log_level="warning", lifespan="on",
            timeout_graceful_shutdown=5,
        )
    )  # fmt: skip
    opened = Site(f"http://127.0.0.1:{listening.getsockname()[1]}", context)

    async def serve() -> None:
        opened.loop = asyncio.get_running_loop()
        await server.serve(sockets=[listening])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="server")
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        assert server.started
        yield opened
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def _chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found:
        return found
    if os.environ.get("TRILITHON_TEST_WITHOUT_BROWSER"):
        pytest.skip("TRILITHON_TEST_WITHOUT_BROWSER is set: no Chromium to be had here")
    pytest.fail("no Chromium; run as root: apt-get install chromium, or set TRILITHON_TEST_WITHOUT_BROWSER=1")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = _chromium()
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture
def browser_page(browser: Browser) -> Iterator[OpenPage]:
    """`browser_page(width=…, height=…, language=…, dark=…, expected=…)`: a page of a browser of its own, which fails
    the test when it asks another host for something or finds an error (one that does not match `expected`)."""
    faults: list[str] = []
    with contextlib.ExitStack() as live:

        def open_page(
            *,
            width: int = 1280,
            height: int = 900,
            language: str = "en-US",
            dark: bool = False,
            expected: str = "",
            **more: Any,
        ) -> Page:
            context = browser.new_context(
                viewport={"width": width, "height": height},
                locale=language,
                color_scheme="dark" if dark else "light",
                reduced_motion="reduce",
                **more,
            )
            live.callback(context.close)
            context.set_default_timeout(PATIENCE_MS)
            page = context.new_page()
            _watch(page, faults, expected)
            return page

        yield open_page
    assert faults == []


def _watch(page: Page, faults: list[str], expected: str) -> None:
    def note(fault: str) -> None:
        if not (expected and re.search(expected, fault)):
            faults.append(fault)

    def asked(url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1":
            note(f"asks another host: {url}")

    page.on("request", lambda request: asked(request.url))
    page.on("websocket", lambda opened: asked(opened.url))
    page.on("console", lambda message: note(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: note(str(error)))


@pytest.fixture
def screenshot() -> Callable[[Page, str], Path]:
    """`screenshot(page, name)` keeps the whole page as artefacts/web/NAME.png."""

    def take(page: Page, name: str) -> Path:
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        path = ARTEFACTS / f"{name}.png"
        unfinished = path.with_suffix(f".{secrets.token_hex(4)}.png")
        page.screenshot(path=unfinished, full_page=True, animations="disabled")
        unfinished.replace(path)
        return path

    return take
