"""The boards that this machine knows: names, addresses and keys, in one small file."""

import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trilithon.errors import UserError
from trilithon.files import JsonStore, read_text, save_text
from trilithon.language import Message
from trilithon.settings import Configuration
from trilithon.suggestions import alternatives

__all__ = [
    "KEY_VARIABLE",
    "FleetBoard",
    "add_board",
    "board_key",
    "boards",
    "boards_path",
    "change_board",
    "is_loopback",
    "keep_key",
    "named_boards",
    "parse_board",
    "remove_board",
]

KEY_VARIABLE = "TRILITHON_BOARD_KEY"
"""The key of a board that is being added."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
# Labels of 1 to 63 characters: RFC 1035, 2.3.4.
_HOST = re.compile(r"(?!-)[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})*(?<!-)|[0-9a-f:]*:[0-9a-f:.]*")
# The gateway writes it into HAProxy's configuration, where other characters have a meaning.
_KEY = re.compile(r"[A-Za-z0-9._~+/=-]{8,256}")
_SSH = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9\[][A-Za-z0-9.:_\]-]*")
_DEFAULT_PORT = 11435
_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetBoard:
    """`url` is http(s)://HOST:PORT of its `trilithon serve`. `key_file` holds its key, `ca_file` the certificates that
    its own must be signed by; both are empty for none. `ssh` is what OpenSSH takes: USER@HOST. `private_network`: the
    user stated that nobody else listens between here and there. A `drained` board gets no new requests."""

    name: str
    url: str
    key_file: str = ""
    ca_file: str = ""
    ssh: str = ""
    private_network: bool = False
    drained: bool = False

    @property
    def is_tls(self) -> bool:
        return self.url.startswith("https:")

    @property
    def address(self) -> tuple[str, int]:
        """Host, without brackets, and port."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port


def boards_path(configuration: Configuration) -> Path:
    return configuration.data / "fleet.json"


def boards(configuration: Configuration) -> tuple[FleetBoard, ...]:
    """In the order they were added. Raises UserError for a damaged file."""
    return _store(configuration).read() or ()


def named_boards(configuration: Configuration, names: Sequence[str] = ()) -> tuple[FleetBoard, ...]:
    """These, or all where no name is given. Raises UserError for an unknown name, and where there is no board."""
    known = boards(configuration)
    if not known:
        raise UserError("there are no boards yet; add one: trilithon fleet add NAME=https://HOST:PORT")
    for name in names:
        _require_known(name, known)
    return tuple(board for board in known if not names or board.name in names)


def parse_board(text: str, *, ssh: str = "", ca_file: Path | None = None, private_network: bool = False) -> FleetBoard:
    """NAME=URL. Raises UserError for anything else, and for addresses on which a key could be read on its way."""
    name, equals, address = (part.strip() for part in text.partition("="))
    if not equals:
        raise UserError("{text!r}: write NAME=https://HOST:PORT, as in rock1=https://10.0.0.11:11435", text=text)
    if not _NAME.fullmatch(name):
        raise UserError(
            "{name!r} is no name for a board: write lower-case letters, digits, dash and underscore, 32 at most",
            name=name,
        )
    url, host = _parsed_url(address)
    if ssh and not _SSH.fullmatch(ssh):
        raise UserError("--ssh {ssh!r}: write USER@HOST", ssh=ssh)
    if url.startswith("http:") and not private_network and not is_loopback(host):
        raise UserError(
            "{url} is not encrypted: who listens on the way reads the key and every chat; use https:// "
            "(trilithon serve --tls-cert), or state that the network is private with --private-network",
            url=url,
        )
    if ca_file is not None and not url.startswith("https:"):
        raise UserError("--ca {path} is for https:// addresses; leave it out", path=ca_file)
    return FleetBoard(
        name=name, url=url, ssh=ssh, ca_file=str(ca_file.absolute()) if ca_file else "", private_network=private_network
    )


def add_board(configuration: Configuration, board: FleetBoard) -> None:
    """Raises UserError for a name or an address that is taken."""
    store = _store(configuration)
    with store.locked():
        known = store.read() or ()
        for other in known:
            if other.name == board.name or other.url == board.url:
                raise UserError(
                    "there is already a board {name} at {url}; remove it first: trilithon fleet rm {name}",
                    name=other.name,
                    url=other.url,
                )
        store.write([asdict(entry) for entry in (*known, board)])


def change_board(configuration: Configuration, name: str, change: Callable[[FleetBoard], FleetBoard]) -> FleetBoard:
    """The board as it is then. Raises UserError for an unknown name."""
    store = _store(configuration)
    with store.locked():
        known = store.read() or ()
        _require_known(name, known)
        changed = tuple(change(board) if board.name == name else board for board in known)
        if changed != known:
            store.write([asdict(board) for board in changed])
    return next(board for board in changed if board.name == name)


def remove_board(configuration: Configuration, name: str) -> None:
    """With the copy of its key. Raises UserError for an unknown name."""
    store = _store(configuration)
    with store.locked():
        known = store.read() or ()
        _require_known(name, known)
        store.write([asdict(board) for board in known if board.name != name])
    _key_path(configuration, name).unlink(missing_ok=True)


def keep_key(configuration: Configuration, board: FleetBoard, key: str) -> FleetBoard:
    """Write the key to a file of its own, for this user alone (mode 600). Raises UserError for one that is none."""
    _require_key(key, Message("the key of {name}", name=board.name))
    path = _key_path(configuration, board.name)
    save_text(path, f"{key}\n")
    return replace(board, key_file=str(path))


def board_key(board: FleetBoard) -> str:
    """Empty for a board without one. Raises UserError for a file that is missing, no key, or open to other users."""
    if not board.key_file:
        return ""
    path = Path(board.key_file)
    try:
        key = read_text(path, most_bytes=1024, closed_to=_OF_OTHERS).strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            "the key of {name}, {path}: {reason}; add the board again", name=board.name, path=path, reason=reason
        ) from error
    _require_key(key, str(path))
    return key


def _require_key(key: str, source: str) -> None:
    if not _KEY.fullmatch(key):
        raise UserError("{source} holds no key; make one on the board: trilithon key add NAME", source=source)


def _parsed_url(text: str) -> tuple[str, str]:
    """In one form, and its host."""
    wrong = UserError("{text!r} is no address of a board; write https://HOST:PORT", text=text)
    try:
        parts = urlsplit(text)
        port, host = parts.port, (parts.hostname or "").lower()
    except ValueError as error:
        raise wrong from error
    extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None
    if parts.scheme not in ("http", "https") or extra or not _HOST.fullmatch(host) or port == 0:
        raise wrong
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port or _DEFAULT_PORT}", host


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _require_known(name: str, known: Sequence[FleetBoard]) -> None:
    if not any(board.name == name for board in known):
        fix = alternatives(name, (board.name for board in known))
        raise UserError("there is no board {name}; {fix}", name=name, fix=fix)


def _key_path(configuration: Configuration, name: str) -> Path:
    return configuration.data / "fleet" / f"{name}.key"


def _store(configuration: Configuration) -> JsonStore[tuple[FleetBoard, ...]]:
    fix = "remove it, and add the boards again"
    path = boards_path(configuration)
    return JsonStore(path=path, parse=_parsed, fix=fix, closed_to=stat.S_IWGRP | stat.S_IWOTH)


def _parsed(entries: Any) -> tuple[FleetBoard, ...]:
    return tuple(map(_board, entries))


def _board(entry: dict[str, Any]) -> FleetBoard:
    """What is read has to be as what is added: it goes into HAProxy's configuration."""
    known = {field.name: field.type for field in fields(FleetBoard)}
    values = {name: value for name, value in entry.items() if name in known}
    if any(type(value).__name__ != getattr(known[name], "__name__", known[name]) for name, value in values.items()):
        raise ValueError("a value of another type")
    board = FleetBoard(**values)
    try:
        is_url = _parsed_url(board.url)[0] == board.url
    except UserError:
        is_url = False
    if not (is_url and _NAME.fullmatch(board.name)):
        raise ValueError("a name or an address that is none")
    paths = [path for path in (board.key_file, board.ca_file) if path]
    if any(not Path(path).is_absolute() or not path.isprintable() for path in paths):
        raise ValueError("a path that is none")
    if board.ssh and not _SSH.fullmatch(board.ssh):
        raise ValueError("an address for ssh that is none")
    return board
