"""What a key is for: each request needs one of these scopes, and a key has some of them."""

from collections.abc import Mapping
from typing import Final, Literal

__all__ = ["SCOPES", "Scope", "is_allowed", "scope_of_page", "scope_of_request"]

Scope = Literal["chat", "models", "metrics", "admin", "gateway"]

SCOPES: Final[Mapping[str, str]] = {
    "chat": "ask models, and see which there are",
    "models": "the same, and pull, create, copy and remove models",
    "metrics": "read /metrics",
    "gateway": "ask models, for the clients that it names: trilithon fleet serve on another machine",
    "admin": "everything, with the pages of the board and of results",
}
"""What a key with this scope may do."""

_ALLOWED: Mapping[str, frozenset[str]] = {
    "chat": frozenset({"chat"}),
    "models": frozenset({"chat", "models"}),
    "metrics": frozenset({"metrics"}),
    "gateway": frozenset({"chat"}),
    "admin": frozenset({"chat", "models", "metrics", "gateway", "admin"}),
}
_OF_MODELS = ("/api/blobs/", "/api/copy", "/api/create", "/api/delete", "/api/pull", "/api/push")
_OF_CHATS = (
    *(
        "/api/chat",
        "/api/embed",
        "/api/embeddings",
        "/api/generate",
        "/api/plans",
        "/api/ps",
        "/api/show",
        "/api/status",
        "/api/tags",
    ),
    *("/api/version", "/apply-template", "/chat/completions", "/completion", "/detokenize", "/health", "/models"),
    *("/openapi.json", "/props", "/rerank", "/tokenize", "/v1/"),
)
_PAGES: Mapping[str, Scope] = {"/models": "models", "/board": "admin", "/results": "admin", "/atlas": "models"}


def scope_of_request(path: str) -> Scope:
    """Of a request to the API. What nobody listed needs the whole key."""
    if path == "/metrics":
        return "metrics"
    if path.startswith(_OF_MODELS):
        return "models"
    return "chat" if path == "/" or path.startswith(_OF_CHATS) else "admin"


def scope_of_page(path: str) -> Scope:
    """Of a page, of its files, and of its connection, which is of use to nobody without the page."""
    return next((scope for page, scope in _PAGES.items() if path == page or path.startswith(f"{page}/")), "chat")


def is_allowed(scope: str, needed: str) -> bool:
    """Whether a key with `scope` may do what needs `needed`."""
    return needed in _ALLOWED[scope]
