"""HAProxy's configuration for these boards: which of them have a model, how much each one takes, what it is told."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from trilithon.errors import TrilithonError, UserError
from trilithon.files import replace_file
from trilithon.fleet.boards import FleetBoard
from trilithon.fleet.relay import BOARD_HEADER
from trilithon.fleet.state import BoardState, plain_name

__all__ = ["KEY_REQUIRED", "Door", "HaproxyFiles", "Share", "find_haproxy", "shares"]

KEY_REQUIRED = "required"
"""Beside the hashes of keys: HAProxy looks it up, so that the first key counts without a reload."""

_PROGRAM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin")
_MOST_WEIGHT = 256  # HAProxy's
_PATHS = (
    *("/api/chat", "/api/embed", "/api/embeddings", "/api/generate", "/api/show"),
    *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens"),
    *("/v1/rerank", "/v1/responses", "/apply-template", "/chat/completions", "/completion", "/detokenize"),
    *("/rerank", "/tokenize"),
)
"""What is asked of a model: these requests are routed by it, and all others are not routed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Where clients come in: `descriptors` are listening sockets that HAProxy inherits, `certificate` a file with the
    certificate and its key, or None for plain HTTP. `no_key`: none is asked for, whichever keys there are."""

    descriptors: Sequence[int]
    certificate: Path | None = None
    no_key: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one board takes of the requests for one model: `weight` of 256, 0 for no new ones; `slots` at once."""

    backend: str
    model: str
    board: str
    weight: int
    slots: int


def find_haproxy() -> str:
    """Raises UserError where it is not installed."""
    path = shutil.which("haproxy") or shutil.which("haproxy", path=":".join(_PROGRAM_FOLDERS))
    if path is None:
        raise UserError(
            "the gateway needs HAProxy 2.6 or newer; run: {command}", command="sudo apt-get install haproxy"
        )
    return path


def shares(boards: Sequence[FleetBoard], states: Mapping[str, BoardState]) -> tuple[Share, ...]:
    """For each model the boards that can run it. Weights are as the measured speeds; a board without one counts as the
    mean of the others."""
    models: dict[str, list[tuple[FleetBoard, float | None, int]]] = {}
    for board in boards:
        state = states.get(board.name)
        for model in state.models if state else ():
            if not model.refusal:
                assert state is not None
                models.setdefault(plain_name(model.name), []).append((board, model.tokens_per_second, state.slots))
    rows = []
    for name, takers in sorted(models.items()):
        rates = [rate for _, rate, _ in takers if rate]
        usual = sum(rates) / len(rates) if rates else 1.0
        most = max(rates, default=usual)
        for board, rate, slots in takers:
            weight = 0 if board.drained else max(1, round(_MOST_WEIGHT * (rate or usual) / most))
            backend = f"m-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
            rows.append(Share(backend=backend, model=name, board=board.name, weight=weight, slots=slots))
    return tuple(rows)


@dataclass(frozen=True, slots=True)
class HaproxyFiles:
    """The files in a private folder that HAProxy reads: its configuration has the keys of boards."""

    folder: Path

    @property
    def configuration(self) -> Path:
        return self.folder / "haproxy.cfg"

    @property
    def admin(self) -> Path:
        return self.folder / "admin.sock"

    @property
    def keys(self) -> Path:
        return self.folder / "keys.map"

    def write_keys(self, clients: Mapping[str, str]) -> None:
        """SHA-256 of each client's key, and the client's name; KEY_REQUIRED where requests without a key are refused.
        Raises OSError."""
        self._write(self.keys.name, "".join(f"{digest} {name}\n" for digest, name in clients.items()))

    def write(
        self,
        boards: Sequence[FleetBoard],
        keys: Mapping[str, str],
        parts: Sequence[Share],
        door: Door,
        health_seconds: float = 0.6,
    ) -> None:
        """Everything but the keys of clients. `keys` are those of boards, by name; a board that takes longer than
        `health_seconds` for its health is down. Raises OSError."""
        names = {part.model: part.backend for part in parts}
        self._write("paths.lst", "".join(f"{path}\n" for path in _PATHS))
        self._write("models.map", "".join(f"{name} {names[model]}\n" for model in names for name in _spellings(model)))
        pieces = [self._common(door)]
        pieces += [_backend(backend, model, parts, self.folder) for model, backend in names.items()]
        pieces += [_listener(board, keys.get(board.name, ""), self.folder, health_seconds) for board in boards]
        self._write("haproxy.cfg", "\n".join(pieces))

    def check(self, program: str, descriptors: Sequence[int] = ()) -> None:
        """Raises OSError, and TrilithonError with HAProxy's words."""
        words = [program, "-c", "-f", str(self.configuration)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, pass_fds=tuple(descriptors))
        if done.returncode:
            alerts = [line for line in done.stderr.splitlines() if "ALERT" in line] or done.stderr.splitlines()
            raise TrilithonError(
                "HAProxy refuses its configuration: {reason}", reason=alerts[0] if alerts else done.returncode
            )

    def _common(self, door: Door) -> str:
        tls = f" ssl crt {_quoted(door.certificate)} alpn http/1.1" if door.certificate else ""
        text = files("trilithon.fleet").joinpath("haproxy.cfg").read_text(encoding="utf-8")
        text = text.replace("<BIND>", "\n".join(f"  bind fd@{number}{tls}" for number in door.descriptors))
        return text.replace("<KEY_REQUIRED>", KEY_REQUIRED).replace("<FOLDER>", str(self.folder))

    def _write(self, name: str, text: str) -> None:
        replace_file(self.folder / name, text, mode=0o600)


def _backend(backend: str, model: str, parts: Sequence[Share], folder: Path) -> str:
    lines = [
        f"backend {backend}  # {model}",
        "  balance hdr(x-trilithon-conversation)",
        "  hash-type consistent sdbm avalanche",
        "  hash-balance-factor 150",
        "  http-reuse never",
        "  retries 2",
        "  option redispatch 1",
        "  retry-on conn-failure empty-response 503",
    ]
    for part in parts:
        if part.backend == backend:
            taken = f"track board-{part.board}/board weight {part.weight} maxconn {part.slots}"
            lines.append(f"  server {part.board} unix@{folder}/board-{part.board}.sock {taken}")
    return "\n".join(lines) + "\n"


def _listener(board: FleetBoard, key: str, folder: Path, health_seconds: float) -> str:
    host, port = board.address
    named = f"[{host}]" if ":" in host else host
    tls = ""
    if board.is_tls:
        authorities = _quoted(Path(board.ca_file)) if board.ca_file else "@system-ca"
        tls = f" ssl verify required ca-file {authorities} verifyhost {host} check-ssl"
        tls += "" if ":" in host or host.replace(".", "").isdecimal() else f" sni str({host}) check-sni {host}"
    authorization = f"  http-request set-header authorization {json.dumps(f'Bearer {key}')}\n" if key else ""
    return (
        f"listen board-{board.name}\n"
        f"  bind unix@{folder}/board-{board.name}.sock mode 600\n"
        "  http-request del-header x-trilithon-backend\n"
        "  http-request del-header x-trilithon-conversation\n"
        "  http-request del-header x-trilithon-for-model\n"
        "  http-request del-header x-trilithon-model\n"
        "  http-request del-header x-api-key\n"
        "  http-request del-header authorization\n"
        f"{authorization}"
        f"  http-request set-header host {named}:{port}\n"
        f"  http-response set-header {BOARD_HEADER} {board.name}\n"
        # What broke off before its head is sent to another board: the backend sees an empty answer.
        "  errorfile 502 /dev/null\n"
        "  errorfile 504 /dev/null\n"
        "  retries 0\n"
        "  option httpchk\n"
        f"  http-check send meth GET uri /health hdr host {named}:{port}\n"
        f"  timeout check {round(health_seconds * 1000)}ms\n"
        f"  server board {named}:{port} check inter 400ms fastinter 50ms downinter 1s fall 2 rise 2"
        f" observe layer4 error-limit 1 on-error mark-down init-addr last,libc,none{tls}\n"
    )


def _spellings(model: str) -> tuple[str, ...]:
    """As clients write it: a name without a tag means the tag "latest"."""
    return (model, model.removesuffix(":latest")) if model.endswith(":latest") else (model,)


def _quoted(path: Path | None) -> str:
    """Within double quotes HAProxy puts in the environment's variables, too."""
    return '"' + re.sub(r'(["$\\])', r"\\\1", str(path)) + '"'
