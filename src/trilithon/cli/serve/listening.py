"""The sockets that a server listens on, made by us or handed over by systemd, and what systemd wants to be told.

The protocols are a variable and a datagram each (sd_listen_fds(3), sd_notify(3)), so no library is needed."""

import contextlib
import errno
import os
import socket
import stat
import urllib.request
from collections.abc import MutableMapping
from pathlib import Path

from trilithon.errors import UserError

__all__ = ["BACKLOG", "activated_sockets", "has_terminal", "listen", "listen_unix", "notify", "url_of"]

OLLAMAS_PORT = 11434

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
BACKLOG = 2048
_UNIX_PATH_BYTES = 107
_OWNER_AND_GROUP = 0o117  # the mask that leaves 660
_PROBE_SECONDS = 2.0
_TERMINAL = Path("/dev/tty")


def activated_sockets(environment: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """Those that systemd opened for us, none where it did not. Its variables go: they are not meant for children."""
    process, count, _ = (environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if process != str(os.getpid()) or not count.isdecimal():
        return []
    sockets = []
    for descriptor in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count)):
        os.set_inheritable(descriptor, False)
        try:
            sockets.append(socket.socket(fileno=descriptor))
        except OSError as error:
            raise UserError(
                "systemd handed over descriptor {descriptor}, which is not a socket ({reason}); write "
                "ListenStream= in the socket unit",
                descriptor=descriptor,
                reason=error.strerror,
            ) from error
    return sockets


def notify(state: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Tell systemd: READY=1, STOPPING=1. Nothing where it does not listen."""
    place = environment.get("NOTIFY_SOCKET", "")
    if not place:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending, contextlib.suppress(OSError):
        sending.connect("\0" + place[1:] if place.startswith("@") else place)
        sending.send(state.encode())


def has_terminal() -> bool:
    """Whether this process has a controlling terminal, which it loses when that is closed."""
    try:
        os.close(os.open(_TERMINAL, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def listen(host: str, port: int) -> list[socket.socket]:
    """One socket for each address of the host; port 0 takes a free one. Raises UserError with the fix."""
    try:
        rows = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(
            "--host {host}: {reason}; write an address of this machine, as in: ip addr", host=host, reason=error
        ) from error
    opened: list[socket.socket] = []
    try:
        for family, place in dict.fromkeys((family, place[:2]) for family, _, _, _, place in rows):
            chosen = opened[0].getsockname()[1] if opened else port
            opened.append(_bound(family, str(place[0]), chosen))
    except OSError as error:
        _close(opened)
        raise UserError(_why_not(host, port, error)) from error
    return opened


def listen_unix(path: Path) -> socket.socket:
    """For its owner and the owner's group. What a killed server left is taken away. Raises UserError."""
    if len(os.fsencode(path)) > _UNIX_PATH_BYTES:
        raise UserError(
            "--unix {path}: a socket's path has {unix_path_bytes} bytes at most; choose a shorter one",
            path=path,
            unix_path_bytes=_UNIX_PATH_BYTES,
        )
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear_away(path)
        before = os.umask(_OWNER_AND_GROUP)
        try:
            made.bind(str(path))
        finally:
            os.umask(before)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise UserError(
            "--unix {path}: {reason}; choose a path in a folder that you can write to", path=path, reason=error.strerror
        ) from error
    except UserError:
        made.close()
        raise
    return made


def url_of(listening: socket.socket, *, tls: bool = False) -> str:
    """What a client on this machine writes."""
    if listening.family == socket.AF_UNIX:
        return f"unix:{listening.getsockname()}"
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http{'s' * tls}://{f'[{host}]' if ':' in host else host}:{port}"


def _bound(family: int, host: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        made.bind((host, port))
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def _why_not(host: str, port: int, error: OSError) -> str:
    place = f"{host or 'every address'}, port {port}"
    match error.errno:
        case errno.EADDRINUSE if _is_ollama(host, port):
            return f"Ollama already listens at {place}; stop it (systemctl stop ollama), or leave --port {port} out"
        case errno.EADDRINUSE:
            return f"another program already listens at {place}; choose another port with --port, or find it: ss -ltnp"
        case errno.EADDRNOTAVAIL:
            return f"this machine has no address {host}; choose one of: ip -brief addr"
        case errno.EACCES:
            return f"port {port} may only be used by root; choose one from 1024 with --port"
    return f"{place}: {error.strerror}; choose another with --host and --port"


def _is_ollama(host: str, port: int) -> bool:
    if port != OLLAMAS_PORT:
        return False
    near = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    asked = f"http://{f'[{near}]' if ':' in near else near}:{port}/"
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(asked, timeout=_PROBE_SECONDS) as answer:
            return b"Ollama" in answer.read(100)
    except (OSError, ValueError):
        return False


def _clear_away(path: Path) -> None:
    """Raises UserError for what is not a dead server's."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UserError("--unix {path}: not a socket; choose a path that does not exist", path=path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError:
            pass
    raise UserError("--unix {path}: a server already listens there; stop it, or choose another path", path=path)


def _close(sockets: list[socket.socket]) -> None:
    for listener in sockets:
        listener.close()
