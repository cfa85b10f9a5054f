"""What a board says of itself: version, machine, models, and how fast each one is there."""

import http.client
import json
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from trilithon.errors import TrilithonError, UserError
from trilithon.fleet.boards import FleetBoard, board_key

__all__ = [
    "BoardModel",
    "BoardState",
    "BoardUnreachable",
    "ask_board",
    "connect",
    "plain_name",
    "require_server",
    "states_of",
]

_MOST_BYTES = 8 << 20
_SECONDS = 5.0
_AT_ONCE = 32
# Names that HAProxy's maps can hold; trilithon's own are a part of them.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,254}")


class BoardUnreachable(TrilithonError):
    """Why, in words that follow the board's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardModel:
    """`placement` is what runs it, by a plan where `is_planned`; `tokens_per_second` was measured there, None where it
    was not. `refusal` says why nothing there runs it; empty where something does. `row` is Ollama's entry of it."""

    name: str
    placement: str = ""
    is_planned: bool = False
    tokens_per_second: float | None = None
    is_loaded: bool = False
    refusal: str = ""
    row: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardState:
    """`problem` says why it could not be asked the last time. `api_version` is that of the Ollama whose API it has.
    `slots` is how many requests one model answers at once there."""

    name: str
    version: str = ""
    machine: str = ""
    chip: str = ""
    api_version: str = ""
    memory_bytes: int = 0
    slots: int = 1
    models: tuple[BoardModel, ...] = ()
    problem: str = ""

    def with_problem(self, problem: str) -> "BoardState":
        return replace(self, problem=problem)

    def as_json(self) -> dict[str, Any]:
        names = ("version", "machine", "chip", "memory_bytes", "slots", "problem")
        models = [
            {part: getattr(model, part) for part in BoardModel.__dataclass_fields__ if part != "row"}
            for model in self.models
        ]
        return {name: getattr(self, name) for name in names} | {"models": models}


def plain_name(name: str) -> str:
    """One spelling for each model: lower case, with a tag."""
    lowered = name.lower()
    return lowered if ":" in lowered.rpartition("/")[2] else f"{lowered}:latest"


def ask_board(board: FleetBoard, key: str, seconds: float = _SECONDS) -> BoardState:
    """Raises BoardUnreachable."""
    asking = _BoardClient(board, key, seconds)
    plans = asking.get("/api/plans")
    about = asking.get("/api/version")
    rows = {str(row.get("name", "")): row for row in _objects(asking.get("/api/tags").get("models"))}
    if "models" not in plans:
        version = about.get("trilithon")
        if isinstance(version, str):
            raise BoardUnreachable(
                "runs Trilithon {version}, which is too old for a fleet; update it there", version=_text(version)
            )
        raise BoardUnreachable("is no Trilithon server; name the address of a trilithon serve")
    machine = plans.get("board") if isinstance(plans.get("board"), dict) else {}
    assert isinstance(machine, dict)
    listed = {str(entry.get("name", "")): entry for entry in _objects(plans["models"])}
    models = tuple(_model(name, listed.get(name, {}), row) for name, row in rows.items() if _NAME.fullmatch(name))
    return BoardState(
        name=board.name,
        version=_text(plans.get("version")),
        machine=_text(machine.get("model")),
        api_version=_text(about.get("version")),
        chip=_text(machine.get("chip")),
        memory_bytes=_count(machine.get("memory_bytes")),
        slots=max(1, min(64, _count(plans.get("slots")))),
        models=models,
    )


def require_server(board: FleetBoard) -> None:
    """Ask what needs no key. Raises BoardUnreachable."""
    if not _BoardClient(board, "", _SECONDS).get("/health"):
        raise BoardUnreachable("is no Trilithon server; name the address of a trilithon serve")


def states_of(known: Sequence[FleetBoard]) -> list[BoardState]:
    """Of all boards at once, with the problem where one does not answer."""

    def ask(board: FleetBoard) -> BoardState:
        try:
            return ask_board(board, board_key(board))
        except (BoardUnreachable, UserError) as problem:
            return BoardState(name=board.name, problem=problem.args[0])

    with ThreadPoolExecutor(max_workers=max(1, min(_AT_ONCE, len(known)))) as pool:
        return list(pool.map(ask, known))


def connect(board: FleetBoard, seconds: float) -> http.client.HTTPConnection:
    """Raises BoardUnreachable for certificates that cannot be read."""
    host, port = board.address
    if not board.is_tls:
        return http.client.HTTPConnection(host, port, timeout=seconds)
    try:
        context = ssl.create_default_context(cafile=board.ca_file or None)
    except (OSError, ValueError) as error:
        raise BoardUnreachable(
            "has certificates that cannot be read: {path}: {reason}", path=board.ca_file, reason=error
        ) from error
    return http.client.HTTPSConnection(host, port, timeout=seconds, context=context)


class _BoardClient:
    def __init__(self, board: FleetBoard, key: str, seconds: float):
        self._board = board
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._seconds = seconds

    def get(self, path: str) -> dict[str, Any]:
        """Empty for an address that it does not have."""
        connection = connect(self._board, self._seconds)
        try:
            connection.request("GET", path, headers=self._headers)
            answer = connection.getresponse()
            content = answer.read(_MOST_BYTES + 1)
        except ssl.SSLError as error:
            raise BoardUnreachable(
                "has a certificate that is not trusted ({reason}); name who signed it with --ca",
                reason=getattr(error, "verify_message", "") or error.reason or str(error),
            ) from error
        except (OSError, http.client.HTTPException, socket.gaierror) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise BoardUnreachable("does not answer at {url}: {reason}", url=self._board.url, reason=reason) from error
        finally:
            connection.close()
        if answer.status == 404:
            return {}
        if answer.status in (401, 403):
            raise BoardUnreachable(
                "refuses the request ({status}): {reason}", status=answer.status, reason=_reason(content)
            )
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            body = None
        if answer.status != 200 or not isinstance(body, dict):
            raise BoardUnreachable(
                "answers {path} with status {status}: {reason}",
                path=path,
                status=answer.status,
                reason=_reason(content),
            )
        return body


def _model(name: str, plan: Mapping[str, Any], row: Mapping[str, Any]) -> BoardModel:
    rate = plan.get("tokens_per_second")
    return BoardModel(
        name=name,
        placement=_text(plan.get("placement")),
        is_planned=plan.get("is_planned") is True,
        tokens_per_second=float(rate) if isinstance(rate, int | float) and 0 < rate < 1e9 else None,
        is_loaded=plan.get("is_loaded") is True,
        refusal=_text(plan.get("refusal")),
        row=row,
    )


def _objects(entries: object) -> list[Mapping[str, Any]]:
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _text(value: object) -> str:
    return "".join(letter for letter in value if letter.isprintable())[:200] if isinstance(value, str) else ""


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


def _reason(content: bytes) -> str:
    try:
        error = json.loads(content)["error"]
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, TypeError, LookupError, RecursionError):
        text = content[:100].decode(errors="replace")
    return _text(" ".join(text.split())) or "no reason given"
