"""What a page is given: the server that it looks into, and who looks."""

from dataclasses import dataclass
from pathlib import Path

from trilithon.board.snapshot import Board
from trilithon.serve.service import Service
from trilithon.settings import Configuration

__all__ = ["AppContext", "PageSession"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppContext:
    """`store` is the database of results, which need not be there yet."""

    service: Service
    configuration: Configuration
    board: Board
    store: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSession:
    """`key_name` is the name of the key that the browser showed, empty where none is asked for; `language` one of
    `texts.LANGUAGES`."""

    key_name: str = ""
    key_scope: str = "admin"
    address: str = "local"
    language: str = "en"

    @property
    def caller(self) -> str:
        """Whom the service answers, as with a request to the API: browsers are served in turn."""
        return self.key_name or self.address
