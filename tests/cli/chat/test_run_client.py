"""The command line's side of the server: addresses, and what comes over the wire that should not."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trilithon.cli.serve.server_client import Address, Server, address, running_server
from trilithon.errors import NoSuchModel, TrilithonError, UserError

Answer = tuple[int, bytes]
Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A server that gives each path the answer stated for it; its URL."""
    with contextlib.ExitStack() as running:

        def start(**answers: Answer) -> str:
            class Handler(BaseHTTPRequestHandler):
                def _answer(self) -> None:
                    length = int(self.headers.get("content-length") or 0)
                    self.rfile.read(length)
                    status, content = answers.get(self.path.rpartition("/")[2], (404, b"none"))
                    self.send_response(status)
                    self.end_headers()
                    self.wfile.write(content)

                do_GET = do_POST = _answer  # noqa: N815 - the standard library's names

                def log_message(self, *_: object) -> None:
                    pass

            server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            running.enter_context(server)
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            running.callback(thread.join)
            running.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield start


@pytest.mark.parametrize(
    ("text", "url", "named"),
    [
        ("", "http://127.0.0.1:11435", False),
        ("rock5", "http://rock5:11435", True),
        ("rock5:80", "http://rock5:80", True),
        ("http://rock5", "http://rock5:80", True),
        ("https://rock5/", "https://rock5:443", True),
        ("0.0.0.0:11434", "http://127.0.0.1:11434", True),
        ("[::]:5", "http://[::1]:5", True),
        ("[fe80::1]", "http://[fe80::1]:11435", True),
        ("unix:/run/trilithon.sock", "http://localhost", True),
    ],
)
def test_addresses(text: str, url: str, named: bool) -> None:
    found = address({"TRILITHON_HOST": text})
    assert (found.url, found.named) == (url, named)
    assert str(found) == (text if text.startswith("unix:") else url)


@pytest.mark.parametrize("text", ["ftp://a", "http://a/b", "a:port", "a:99999", "user@a", "http://[a", "a?b"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UserError, match=r"write HOST:PORT, http://HOST:PORT or unix:PATH$"):
        address({"TRILITHON_HOST": text})


def nobody() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"


def test_nobody_at_a_named_place_is_an_error() -> None:
    with pytest.raises(TrilithonError, match="start one: trilithon serve"):
        running_server({"TRILITHON_HOST": nobody()})
    with pytest.raises(TrilithonError, match="start one: trilithon serve"):
        running_server({"TRILITHON_HOST": "unix:/nowhere/at.all"})


def test_nobody_at_the_default_place_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trilithon.cli.serve.server_client._DEFAULT", nobody())
    assert running_server({}) is None


def test_a_proxy_of_the_environment_does_not_get_between(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://{nobody()}")
    url = serve(version=(200, b'{"version": "1.2.3"}'))
    server = running_server({"TRILITHON_HOST": url})
    assert server is not None
    with server:
        assert server.version() == "1.2.3"


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b"\xff"])
def test_another_program_is_told(serve: Serve, content: bytes) -> None:
    with pytest.raises(TrilithonError, match="is not a Trilithon server; set TRILITHON_HOST"):
        running_server({"TRILITHON_HOST": serve(version=(200, content))})


@pytest.mark.parametrize(
    ("status", "content", "kind", "message"),
    [
        (401, b'{"error": "a key is needed"}', UserError, "a key is needed; set TRILITHON_API_KEY"),
        (404, b'{"error": "model \'x\' not found"}', NoSuchModel, "model 'x' not found"),
        (400, b'{"error": {"message": "bad\\nbody"}}', UserError, "bad body"),
        (503, b'{"error": "busy"}', TrilithonError, "busy"),
        (500, b"oops", TrilithonError, "returned status 500"),
        (500, b"[]", TrilithonError, "returned status 500"),
    ],
)
def test_refusals_are_one_line(
    serve: Serve, status: int, content: bytes, kind: type[TrilithonError], message: str
) -> None:
    place = Address(serve(chat=(status, content), show=(status, content)))
    with Server(place) as server:
        for ask in (lambda: server.show("x"), lambda: list(server.chat({}))):
            with pytest.raises(TrilithonError) as caught:
                ask()
            assert type(caught.value) is kind
            assert message in str(caught.value)
            assert "\n" not in str(caught.value)


def lines(*messages: object) -> bytes:
    return b"".join(json.dumps(each, ensure_ascii=False).encode() + b"\n" for each in messages)


def test_only_line_feeds_part_messages(serve: Serve) -> None:
    text = "one\u2028two\x85three\x0bfour"
    sent = [{"message": {"content": text}}, {"done": True}]
    with Server(Address(serve(chat=(200, lines(*sent))))) as server:
        assert list(server.chat({})) == sent


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines({"message": {}}), "interrupted"),
        (b"", "interrupted"),
        (lines({"message": {}}, {"error": "out of memory"}), "out of memory"),
        (b'{"message": ', "not a Trilithon server"),
    ],
)
def test_answers_that_end_badly(serve: Serve, content: bytes, message: str) -> None:
    with Server(Address(serve(chat=(200, content)))) as server, pytest.raises(TrilithonError, match=message):
        list(server.chat({}))
