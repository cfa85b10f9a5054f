"""No endpoint takes a picture from an address, and no engine is told one: it might fetch it itself."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from live_server import Serve


class Inner(BaseHTTPRequestHandler):
    """A server of the network that ours stands in."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def inner() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Asked", (Inner,), {"asked": asked}))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/x.png", asked
    server.shutdown()
    thread.join()
    server.server_close()


def bodies(url: str) -> dict[str, dict[str, Any]]:
    part = {"type": "image_url", "image_url": {"url": url}}
    openai = [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, part]}]
    anthropic = [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": url}}]}]
    responses = [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
    return {
        "/v1/chat/completions": {"messages": openai},
        "/apply-template": {"messages": openai},
        "/v1/messages": {"messages": anthropic, "max_tokens": 4},
        "/v1/responses": {"input": responses},
        "/api/chat": {"messages": [{"role": "user", "content": "what is it?", "images": [url]}]},
        "/api/generate": {"prompt": "what is it?", "images": [url]},
    }


def test_no_endpoint_follows_an_address(serve: Serve, tiny: Path, inner: tuple[str, list[str]]) -> None:
    server, (url, asked) = serve(tiny), inner
    for address in (url, "file:///etc/hostname"):
        for path, body in bodies(address).items():
            answer = server.http.post(path, json={"model": server.model, **body})
            assert answer.status_code == 400, (path, answer.text)
            assert "error" in answer.json()
    assert asked == []
