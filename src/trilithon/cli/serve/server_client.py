"""A running server as the command line sees it: where it is, and Ollama's API spoken to it."""

import contextlib
import json
import os
import socket
import ssl
import urllib.parse
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from trilithon.errors import NoSuchModel, TrilithonError, UserError

__all__ = ["Address", "NobodyListens", "Server", "address", "running_server"]

_DEFAULT = "127.0.0.1:11435"
_DEFAULT_PORT = 11435
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
# Whoever binds to every address is asked at the nearest.
_ANYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
# An answer may take as long as a model loads and thinks; the server knows when one hangs.
_PATIENT = httpx.Timeout(10, read=None)
_BRISK = httpx.Timeout(10, read=60)
_USER_ERRORS = frozenset({400, 404, 413, 422})


@dataclass(frozen=True, slots=True)
class Address:
    """`url` without a slash at its end, or a `socket` of this machine. `named`: by the user, not by default."""

    url: str
    socket: Path | None = None
    named: bool = True

    def __str__(self) -> str:
        return f"unix:{self.socket}" if self.socket else self.url


def address(environment: Mapping[str, str] = os.environ) -> Address:
    """What TRILITHON_HOST says: HOST[:PORT], http(s)://HOST:PORT or unix:PATH; without it, where the settings have
    `trilithon serve` listen. Raises UserError for other words."""
    named = environment.get("TRILITHON_HOST", "").strip()
    text = named or _from_settings(environment)
    if text.startswith("unix:"):
        return Address(
            "http://localhost", Path(text.removeprefix("unix:").removeprefix("//")).expanduser(), bool(named)
        )
    wrong = UserError("TRILITHON_HOST={text}: write HOST:PORT, http://HOST:PORT or unix:PATH", text=text)
    try:
        parts = urllib.parse.urlsplit(text if "://" in text else f"http://{text or _DEFAULT}")
        port = parts.port or (_DEFAULT_PORT if "://" not in text else 443 if parts.scheme == "https" else 80)
        host = _ANYWHERE.get(parts.hostname or "", parts.hostname or "")
    except ValueError as error:
        raise wrong from error
    if parts.scheme not in ("http", "https") or parts.path not in ("", "/") or parts.query or parts.username:
        raise wrong
    return Address(f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}", named=bool(named))


def _from_settings(environment: Mapping[str, str]) -> str:
    """In the form of TRILITHON_HOST; empty for the default place."""
    from trilithon.cli.serve.serve import serve
    from trilithon.cli.serve.settings import stated

    settings = {name: part.value for name, part in stated(serve, environment).items()}
    if settings.get("unix") is not None and not {"host", "port"} & settings.keys():
        return f"unix:{settings['unix']}"
    if not {"host", "port", "tls_cert"} & settings.keys():
        return ""
    host = str(settings.get("host", "127.0.0.1")).strip("[]")
    scheme = "https" if "tls_cert" in settings else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.get('port', _DEFAULT_PORT)}"


def running_server(environment: Mapping[str, str] = os.environ) -> "Server | None":
    """The one that TRILITHON_HOST names, or the one where the settings have it listen; None where none listens there.
    Raises TrilithonError where one was named and none listens, or another program does."""
    place = address(environment)
    try:
        if place.socket is not None:
            _require_listener(place.socket)
        with contextlib.ExitStack() as closing:
            server = closing.enter_context(Server(place, environment.get("TRILITHON_API_KEY", "")))
            server.version()
            closing.pop_all()
    except NobodyListens:
        if place.named:
            raise
        return None
    return server


class NobodyListens(TrilithonError):
    pass


class Server:
    """Raises UserError for what the server calls the client's mistake, else TrilithonError."""

    def __init__(self, place: Address, key: str = ""):
        self.place = place
        try:
            self._http = httpx.Client(
                base_url=place.url,
                transport=_transport(place),
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=_BRISK,
            )
        except (OSError, ValueError, ssl.SSLError, httpx.InvalidURL) as error:
            raise UserError(
                "{place}: {reason}; check TRILITHON_HOST, TRILITHON_API_KEY, and the proxy that is set",
                place=place,
                reason=error,
            ) from error

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def version(self) -> str:
        return str(self._json("GET", "/api/version").get("version", ""))

    def loaded(self) -> list[dict[str, Any]]:
        """Ollama's entries of /api/ps."""
        models = self._json("GET", "/api/ps").get("models") or []
        return [model for model in models if isinstance(model, dict)]

    def show(self, model: str) -> dict[str, Any]:
        return self._json("POST", "/api/show", {"model": model})

    def load(self, model: str, keep_alive: str | float | None = None, context: int | None = None) -> None:
        """Returns when it is loaded."""
        body: dict[str, Any] = {"model": model, "stream": False}
        if keep_alive is not None:
            body["keep_alive"] = keep_alive
        if context is not None:
            body["options"] = {"num_ctx": context}
        self._json("POST", "/api/generate", body, _PATIENT)

    def unload(self, model: str) -> None:
        self._json("POST", "/api/generate", {"model": model, "keep_alive": 0, "stream": False}, _PATIENT)

    def pull(self, model: str) -> Iterator[dict[str, Any]]:
        """Ollama's lines of progress, until the model is there."""
        with (
            self._translated(),
            self._http.stream("POST", "/api/pull", json={"model": model}, timeout=_PATIENT) as answer,
        ):
            if answer.status_code >= 400:
                raise self._refusal(answer.status_code, answer.read())
            for line in _lines(answer.iter_bytes()):
                message = _object(line, self.place)
                if "error" in message:
                    raise TrilithonError(str(message["error"]))
                yield message

    def chat(self, body: Mapping[str, Any]) -> Generator[dict[str, Any]]:
        """Ollama's streamed messages, the one with "done" last. Closing it cancels the answer."""
        with self._translated(), self._http.stream("POST", "/api/chat", json=body, timeout=_PATIENT) as answer:
            if answer.status_code >= 400:
                raise self._refusal(answer.status_code, answer.read())
            done = False
            for line in _lines(answer.iter_bytes()):
                message = _object(line, self.place)
                if "error" in message:
                    raise TrilithonError(str(message["error"]))
                yield message
                done = bool(message.get("done"))
        if not done:
            raise TrilithonError("the answer was interrupted by the server; see its log")

    def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout: httpx.Timeout = _BRISK
    ) -> dict[str, Any]:
        with self._translated():
            answer = self._http.request(method, path, json=body, timeout=timeout)
        if answer.status_code >= 400:
            raise self._refusal(answer.status_code, answer.content)
        return _object(answer.content, self.place)

    def _translated(self) -> "_Translated":
        return _Translated(self.place)

    def _refusal(self, status: int, content: bytes) -> TrilithonError:
        text = _error_text(content) or f"{self.place} returned status {status}"
        if status == 401:
            return UserError("{text}; set TRILITHON_API_KEY", text=text)
        if status == 404:
            return NoSuchModel("{text}; see trilithon list for what is here, and trilithon pull for more", text=text)
        return (UserError if status in _USER_ERRORS else TrilithonError)(text)


@dataclass(frozen=True, slots=True)
class _Translated:
    """httpx's errors as ours."""

    place: Address

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        match error:
            case UnicodeError() if "idna" in str(error):
                raise UserError("{place} is not an address; check TRILITHON_HOST", place=self.place) from error
            case UnicodeEncodeError():  # of bytes on the command line
                raise UserError("the model's name or the text is not UTF-8; convert it with iconv") from error
            case httpx.ConnectError() | httpx.ConnectTimeout() if "CERTIFICATE" not in str(error).upper():
                raise NobodyListens(
                    "no server answers at {place}; start one: trilithon serve", place=self.place
                ) from error
            case httpx.ConnectError():
                raise TrilithonError(
                    "{place} has a certificate that is not trusted; set SSL_CERT_FILE to it", place=self.place
                ) from error
            case httpx.TimeoutException():
                raise TrilithonError("{place} does not answer in time; see its log", place=self.place) from error
            case httpx.RemoteProtocolError() | httpx.ReadError() | httpx.WriteError():
                raise TrilithonError(
                    "{place} closed the connection ({reason}); see its log", place=self.place, reason=error
                ) from error
            case httpx.HTTPError() | httpx.InvalidURL():
                raise TrilithonError("{place}: {reason}", place=self.place, reason=error) from error


def _transport(place: Address) -> httpx.HTTPTransport | None:
    """On this machine one of its own, which no proxy of the environment gets into."""
    if place.socket is not None or urllib.parse.urlsplit(place.url).hostname in _LOOPBACK:
        return httpx.HTTPTransport(uds=str(place.socket) if place.socket else None)
    return None


def _require_listener(path: Path) -> None:
    """httpcore 1.0 leaves its socket open when nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError as error:
            raise NobodyListens("no server answers at unix:{path}; start one: trilithon serve", path=path) from error


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """By line feeds alone: httpx would also cut at characters that may stand in a text."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from filter(None, lines)
    if rest.strip():
        yield rest


def _object(content: bytes, place: Address) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise TrilithonError(
            "the server at {place} is not a Trilithon server; set TRILITHON_HOST to where yours is", place=place
        )
    return parsed


def _error_text(content: bytes) -> str:
    try:
        parsed = json.loads(content)
    except ValueError:
        return ""
    error = parsed.get("error", "") if isinstance(parsed, dict) else ""
    text = error.get("message", "") if isinstance(error, dict) else error
    return " ".join(str(text).split())[:500]
