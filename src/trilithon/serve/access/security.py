"""The door: who may ask what, from where and how much, before any route sees the request.

Plain ASGI: Starlette's BaseHTTPMiddleware would put a queue between a stream and its client, and a task beside each."""

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trilithon.errors import UserError
from trilithon.serve.access.hosts import HostNames, is_loopback, names_address
from trilithon.serve.access.keys import Key, Keyring
from trilithon.serve.access.limits import BodyLimits, BoundedBody, Buckets, caller_at
from trilithon.serve.access.origins import LOCAL_APPS, Origins, answer_headers, preflight_headers
from trilithon.serve.access.proxies import BehindProxies, checked_proxies, checked_root_path, is_forwarded
from trilithon.serve.access.scopes import is_allowed, scope_of_page, scope_of_request
from trilithon.serve.access.sessions import LOGIN_PATH, LOGOUT_PATH, Sessions
from trilithon.serve.http.early_errors import refuse
from trilithon.serve.http.errors import ApiError
from trilithon.serve.monitoring.metrics import Metrics
from trilithon.serve.monitoring.observing import Observed

__all__ = ["AccessRules", "Guard", "SecurityOptions", "install", "keyring", "require_safe_bind"]

# What a probe of liveness asks, and Ollama's clients before anything else; neither says anything of this machine.
_PUBLIC = {(method, path) for method in ("GET", "HEAD") for path in ("/", "/health", "/v1/health")}
CLIENT_HEADER = "x-trilithon-client"
_CLIENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UPLOADS = "/api/blobs/"
_LONGEST_PATH = 8000  # RFC 9112, section 3, recommends to take as much
_LONGEST_HEAD = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityOptions:
    """`key_store` is where `trilithon key` keeps keys, `api_key_file` a plain file of them. `keys_required` None asks
    for a key as soon as there is one. `host_names` and `cors_origins` come besides this machine's own.
    `trusted_proxies` and `root_path` are for reverse proxies, see `serve.access.proxies`.
    `requests_per_minute` is for each key (each address where none is asked for), 0 without limit. `fetch_images` lets
    answers fetch pictures from the internet. `upload_limit_bytes` is for the files of models, which go to the disk
    while they come."""

    key_store: Path | None = None
    api_key_file: Path | None = None
    keys_required: bool | None = None
    cors_origins: tuple[str, ...] = ()
    host_names: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    root_path: str = ""
    body_limit_bytes: int = 64 << 20
    upload_limit_bytes: int = 1 << 40
    body_silence_seconds: float = 30.0
    requests_per_minute: int = 0
    fetch_images: bool = False


def keyring(options: SecurityOptions) -> Keyring:
    """Raises UserError for a file of keys that is no good."""
    return Keyring(options.key_store, options.api_key_file, required=options.keys_required)


def require_safe_bind(host: str, keys: Keyring, allow_without_key: bool) -> None:
    """Raises UserError when other machines could reach the server without authentication."""
    if is_loopback(host) or allow_without_key or (keys.required and len(keys)):
        return
    raise UserError(
        f"{host or 'every address'} is reachable from other machines without authentication; create a key with "
        "`trilithon key add NAME`, or disable authentication with --no-key"
    )


def install(app: Starlette, options: SecurityOptions, keys: Keyring | None = None) -> None:
    """Put the door and the counting in front of the application; `app.state.metrics` counts, `app.state.access` are
    the rules, `app.state.sessions` the browsers that showed a key. Raises UserError for options that are no good."""
    metrics, rules = Metrics(), AccessRules(options)
    keys = keyring(options) if keys is None else keys
    sessions = Sessions(keys)
    app.state.metrics, app.state.access, app.state.sessions = metrics, rules, sessions
    app.add_middleware(Guard, rules=rules, keys=keys, sessions=sessions)
    app.add_middleware(Observed, metrics=metrics)  # around the guard: refusals are counted too
    proxies, root_path = checked_proxies(options.trusted_proxies), checked_root_path(options.root_path)
    app.add_middleware(BehindProxies, trusted=proxies, root_path=root_path)


class AccessRules:
    """The options that a running server can change, as the guard uses them. Raises UserError for bad ones."""

    def __init__(self, options: SecurityOptions):
        self.use(options)

    def use(self, options: SecurityOptions) -> None:
        """From now on. Raises UserError, and changes nothing then."""
        self.hosts, self.origins = HostNames(options.host_names), Origins(options.cors_origins)
        self.limits = BodyLimits(most_bytes=options.body_limit_bytes, silence_seconds=options.body_silence_seconds)
        self.upload_limits = replace(self.limits, most_bytes=options.upload_limit_bytes)
        self.buckets = Buckets(options.requests_per_minute) if options.requests_per_minute > 0 else None
        self.fetch_images = options.fetch_images


class Guard:
    """Leaves `key_name` and `key_scope` in the request's state: of the key it came with, or empty and "admin". A
    browser that has none for a page is sent to where keys are shown."""

    def __init__(self, app: ASGIApp, *, rules: AccessRules, keys: Keyring, sessions: Sessions | None = None):
        self._app = app
        self._rules = rules
        self._local_apps = Origins(LOCAL_APPS)
        self._keys = keys
        self._sessions = Sessions(keys) if sessions is None else sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            _require_short_head(scope)
            self._require_known_host(scope, headers)
            origin = self._origin(scope, headers)
            if origin:
                send = _with_origin(send, origin)
            if origin and _is_preflight(scope, headers):
                await _answer_preflight(send, origin, headers)
                return
            self._admit(scope, headers)
            _require_plain_body(headers)
        except ApiError as problem:
            if self._is_for_login(scope, problem) and _goes_there(scope, headers):
                await _send_to_login(scope, send)
            else:
                await refuse(scope, send, problem)
            return
        if scope["type"] == "websocket":
            await self._app(scope, self._as_long_as_allowed(receive, headers), send)
        else:
            await self._within_limits(scope, receive, send, headers)

    def _is_for_login(self, scope: Scope, problem: ApiError) -> bool:
        """Whether another key would help: there is none, or it is for less than this page."""
        key_scope = scope.get("state", {}).get("key_scope", "admin")
        return self._sessions.is_pages(scope) and (
            problem.status == 401 or (problem.status == 403 and not is_allowed(key_scope, scope_of_page(scope["path"])))
        )

    def _require_known_host(self, scope: Scope, headers: Headers) -> None:
        """No browser leaves `Host` out, so who does is no page of a stranger's."""
        named = headers.getlist("host")
        if len(named) > 1 or not scope["path"].startswith("/"):
            raise ApiError("the request is ambiguous; send one Host header, and a path", status=400)
        server = scope.get("server")
        if not named or named[0] in self._rules.hosts or (server and names_address(named[0], server[0])):
            return
        raise ApiError(
            f"this server does not accept the host name {named[0][:100]!r}; start it with --host-name NAME to allow it",
            status=403,
            kind="permission_error",
        )

    def _origin(self, scope: Scope, headers: Headers) -> str:
        """Of the page that asks, empty when none does."""
        given = headers.getlist("origin")
        if not given:
            return ""
        host = headers.get("host", "")
        if len(given) == 1 and (
            self._rules.origins.allows(given[0], host)
            # Not the pages: browsers send their cookie to every port of a host.
            or (
                self._is_free_here(scope)
                and not self._sessions.is_pages(scope)
                and self._local_apps.allows(given[0], host)
            )
        ):
            return given[0]
        raise ApiError(_about_origin(given[0][:100], host[:100], headers), status=403, kind="permission_error")

    def _is_free_here(self, scope: Scope) -> bool:
        """Whether the request comes from this machine, and needs no key."""
        server, client = scope.get("server"), scope.get("client")
        is_near = all(is_loopback(end[0]) for end in (server, client) if end)
        return is_near and not is_forwarded(scope) and not self._keys.required

    def _admit(self, scope: Scope, headers: Headers) -> None:
        state = scope.setdefault("state", {})
        state["key_name"], state["key_scope"] = "", "admin"
        is_pages = self._sessions.is_pages(scope)
        is_public = (scope.get("method"), scope["path"]) in _PUBLIC and not is_pages
        if is_public or scope["path"] in (LOGIN_PATH, LOGOUT_PATH):
            return
        key = self._key(headers, is_pages=is_pages)
        if key is not None:
            state["key_name"], state["key_scope"] = key.name, key.scope if self._keys.required else "admin"
            if key.scope == "gateway":
                state["key_name"] = _client_of(key, headers)
        _require_scope(state["key_scope"], scope["path"], is_pages=is_pages)
        if is_pages:  # one page is a hundred requests
            return
        client = scope.get("client")
        self._require_pace(state["key_name"] or (caller_at(client[0]) if client else "local"))

    def _as_long_as_allowed(self, receive: Receive, headers: Headers) -> Receive:
        """A connection that stays open ends with the key that opened it."""

        async def receiving() -> Message:
            message = await receive()
            try:
                self._key(headers, is_pages=True)
            except ApiError:
                return {"type": "websocket.disconnect", "code": 1008}
            return message

        return receiving

    def _key(self, headers: Headers, *, is_pages: bool) -> Key | None:
        shown = _shown_keys(headers) or ([self._sessions.key_of(headers)] if is_pages else [])
        for secret in shown:
            key = self._keys.key_of(secret)
            if key is not None:
                return key
        if not self._keys.required:
            return None  # clients that insist on a key send a made-up one
        needed = "an API key is required: Authorization: Bearer KEY, or x-api-key: KEY"
        raise ApiError("invalid API key" if any(shown) else needed, status=401, kind="authentication_error")

    def _require_pace(self, caller: str) -> None:
        if self._rules.buckets is None:
            return
        wait_seconds = self._rules.buckets.take(caller, time.monotonic_ns())
        if wait_seconds > 0:
            raise ApiError(
                f"too many requests; retry in {wait_seconds:.0f} s",
                status=429,
                kind="rate_limit_error",
                retry_after_seconds=wait_seconds,
            )

    async def _within_limits(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        limits = self._rules.upload_limits if scope["path"].startswith(_UPLOADS) else self._rules.limits
        body = BoundedBody(receive, limits, _announced(headers))
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            if body.problem is None or begun:
                begun = True
                await send(message)

        try:
            await self._app(scope, body, answer)
        except ApiError as problem:
            if problem is not body.problem or begun:
                raise
        if body.problem is not None and not begun:
            await refuse(scope, send, body.problem, lingering=receive)


def _client_of(gateway: Key, headers: Headers) -> str:
    """Who asks through the gateway: it is told from its key alone. Such a client is none of this machine's keys."""
    client = headers.get(CLIENT_HEADER, "")
    return f"{gateway.name}/{client}" if _CLIENT.fullmatch(client) else gateway.name


def _require_scope(scope: str, path: str, *, is_pages: bool) -> None:
    needed = scope_of_page(path) if is_pages else scope_of_request(path)
    if not is_allowed(scope, needed):
        raise ApiError(
            f"this key is for {scope} only; create one for this with: trilithon key add NAME --scope {needed}",
            status=403,
            kind="permission_error",
        )


def _about_origin(origin: str, host: str, headers: Headers) -> str:
    if headers.get("sec-fetch-site") == "same-origin":  # which no page can claim
        return (
            f"a reverse proxy changed the Host header of {origin} into {host!r}; have it pass on the header, in nginx: "
            "proxy_set_header Host $http_host;"
        )
    return (
        f"pages of {origin!r} are not allowed to send requests; start the server with --cors {origin} to allow them, "
        "or have the reverse proxy pass on the Host header"
    )


def _require_short_head(scope: Scope) -> None:
    """What arrives at once is not bounded by the reader of heads."""
    if len(scope.get("raw_path") or b"") + len(scope.get("query_string", b"")) > _LONGEST_PATH:
        raise ApiError(f"the path is longer than {_LONGEST_PATH} bytes; send less", status=414)
    if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > _LONGEST_HEAD:
        raise ApiError(f"the headers are longer than {_LONGEST_HEAD >> 10} KiB; send less", status=431)


def _require_plain_body(headers: Headers) -> None:
    """A compressed body could unpack into any size."""
    encodings = {word.strip().lower() for value in headers.getlist("content-encoding") for word in value.split(",")}
    if encodings - {"", "identity"}:
        raise ApiError(
            f"Content-Encoding {', '.join(sorted(encodings))[:100]} is not supported; send the body uncompressed",
            status=415,
        )


def _shown_keys(headers: Headers) -> list[str]:
    shown = [value.strip() for value in headers.getlist("x-api-key")]
    for value in headers.getlist("authorization"):
        scheme, _, secret = value.strip().partition(" ")
        if scheme.lower() == "bearer":
            shown.append(secret.strip())
    return [value for value in shown if value]


def _goes_there(scope: Scope, headers: Headers) -> bool:
    return scope.get("method") == "GET" and "text/html" in headers.get("accept", "")


async def _send_to_login(scope: Scope, send: Send) -> None:
    place = f"{scope.get('root_path', '')}{LOGIN_PATH}?next={quote(scope['path'])}".encode()
    headers = [(b"location", place), (b"cache-control", b"no-store"), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _announced(headers: Headers) -> int | None:
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else None


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    return scope.get("method") == "OPTIONS" and "access-control-request-method" in headers


async def _answer_preflight(send: Send, origin: str, headers: Headers) -> None:
    granted = preflight_headers(
        origin,
        headers["access-control-request-method"],
        headers.get("access-control-request-headers", ""),
        private_network=headers.get("access-control-request-private-network") == "true",
    )
    page_headers = [
        header for header in granted if header not in answer_headers(origin)
    ]  # those are on every answer to this page
    await send({"type": "http.response.start", "status": 204, "headers": page_headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _with_origin(send: Send, origin: str) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *answer_headers(origin)]}
        await send(message)

    return sending
