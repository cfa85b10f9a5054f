"""A live server: the whole application on a real socket, with real children behind it."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import uvicorn

from trilithon.serve.app import ServeOptions, create_app
from trilithon.serve.http.keep_alive import StreamTimes
from trilithon.serve.http.protocol import PatientProtocol
from trilithon.serve.service import Service

FAST = "scripted/cpu:prefill=50000,decode=5000"
# A stream's errors have a status of their own, however slow this machine is.
PATIENT = ServeOptions(stream_times=StreamTimes(open_after_seconds=60.0, silent_seconds=60.0))


class Server:
    """`url` to speak to; `pool` to look into."""

    def __init__(self, url: str, service: Service):
        self.url = url
        self.service = service
        self.pool = service.pool
        self.http = httpx.Client(base_url=url, timeout=60)

    @property
    def model(self) -> str:
        """The name of the only model."""
        (entry,) = self.service.shelf.models()
        return entry.name


Serve = Callable[..., Server]


@contextlib.contextmanager
def running(service: Service, options: ServeOptions | None) -> Iterator[Server]:
    listening = socket.create_server(("127.0.0.1", 0))
    uvicorn_server = uvicorn.Server(
        uvicorn.Config(
            create_app(service, options or PATIENT),
            http=PatientProtocol,
            ws="none",
            loop="asyncio",
            log_level="warning",
            lifespan="on",
        )
    )
    thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listening]}, name="server")
    thread.start()
    server = Server(f"http://127.0.0.1:{listening.getsockname()[1]}", service)
    try:
        deadline = time.monotonic() + 30
        while not uvicorn_server.started and time.monotonic() < deadline:
            time.sleep(0.005)
        assert uvicorn_server.started
        yield server
    finally:
        server.http.close()
        uvicorn_server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
