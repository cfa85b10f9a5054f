"""Browsers that showed a key once: a page cannot put one into each of its requests, so a cookie stands for it.

The cookie holds 256 random bits and no key. It counts for the pages alone, never for the API: a page of a stranger's
that makes a browser ask the API has nothing to ask it with."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import Scope

from trilithon.serve.access.keys import Keyring
from trilithon.serve.access.limits import Buckets

__all__ = ["COOKIE", "LOGIN_PATH", "LOGOUT_PATH", "Sessions", "token_in"]

COOKIE = "trilithon-session"
LOGIN_PATH, LOGOUT_PATH = "/login", "/logout"
_SECRET_BYTES = 32
_MOST = 1024
_IDLE_SECONDS = 30 * 24 * 3600.0
_TRIES_PER_MINUTE = 20


@dataclass(slots=True)
class _Session:
    key: str
    used: float


class Sessions:
    """Of a running server; when it ends, browsers log in anew. `is_pages` tells the requests of the pages apart; until
    there are pages, there are none."""

    def __init__(self, keys: Keyring):
        self.is_pages: Callable[[Scope], bool] = lambda _: False
        self._keys = keys
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self.tries = Buckets(_TRIES_PER_MINUTE)

    def open(self, key: str) -> str | None:
        """What the cookie holds; None for a key that is not known."""
        if self._keys.name_of(key) is None:
            return None
        token = secrets.token_urlsafe(_SECRET_BYTES)
        self._sessions[token] = _Session(key, time.monotonic())
        while len(self._sessions) > _MOST:
            self._sessions.popitem(last=False)
        return token

    def close(self, token: str) -> None:
        self._sessions.pop(token, None)

    def key_of(self, headers: Headers) -> str:
        """The key that the browser showed; empty for one that showed none. Whether it is still known is for the
        keyring to say."""
        token = token_in(headers)
        session = self._sessions.get(token)
        if session is None:
            return ""
        now = time.monotonic()
        if now - session.used > _IDLE_SECONDS:
            self.close(token)
            return ""
        session.used = now
        self._sessions.move_to_end(token)
        return session.key


def token_in(headers: Headers) -> str:
    """Empty where there is no such cookie."""
    # Other programs of this machine set cookies too, and browsers send what Python's own parser refuses.
    return cookie_parser("; ".join(headers.getlist("cookie"))).get(COOKIE, "")
