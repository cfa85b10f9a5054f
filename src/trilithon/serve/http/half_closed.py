"""Whether a client that sends no more still reads: one that has shut down its own direction waits for its answer, one
that has closed its socket has left. TCP tells both with the same segment (FIN)."""

import contextlib
import ipaddress
import select
import socket
import time
from pathlib import Path

__all__ = ["CHECK_AFTER_SECONDS", "CHECK_EVERY_SECONDS", "reads_on", "watch"]

CHECK_AFTER_SECONDS = 0.02
"""Before the first look: a process that closes a socket sends the FIN a moment before the kernel lets go of it."""
CHECK_EVERY_SECONDS = 1.0
# Clients of other machines can not be looked at. One that sends its request and nothing else does so at once.
_AT_ONCE_SECONDS = 1.0
_TABLE_SECONDS = CHECK_AFTER_SECONDS / 2
_CLOSED = 7  # TCP_CLOSE in the kernel's include/net/tcp_states.h, as tcp_info's first byte
_PROBES = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))

_table: tuple[float, frozenset[tuple[int, int]]] = (-1.0, frozenset())


def watch(connection: socket.socket) -> None:
    """Have the kernel find out that the peer is gone: some seconds after it was restarted, a minute after it closed
    (net.ipv4.tcp_fin_timeout)."""
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in _PROBES:
            connection.setsockopt(socket.IPPROTO_TCP, option, seconds)


def reads_on(connection: socket.socket, seconds_after_request: float) -> bool:
    """Of a connection on which FIN arrived so long after the request's last byte."""
    if connection.family == socket.AF_UNIX:
        poll = select.poll()
        poll.register(connection.fileno(), 0)
        return not any(events & select.POLLHUP for _, events in poll.poll(0))
    if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSED:
        return False
    peer, here = connection.getpeername(), connection.getsockname()
    if peer[0] == here[0] or ipaddress.ip_address(peer[0].partition("%")[0]).is_loopback:
        return (peer[1], here[1]) in _held_here()
    return seconds_after_request < _AT_ONCE_SECONDS


def _held_here() -> frozenset[tuple[int, int]]:
    """The ports, own and peer's, of this machine's TCP sockets that a process still holds: those have an inode
    (Documentation/networking/proc_net_tcp.rst)."""
    global _table
    if time.monotonic() - _table[0] > _TABLE_SECONDS:  # many clients may leave at once
        rows: list[list[str]] = []
        for name in ("tcp", "tcp6"):
            with contextlib.suppress(FileNotFoundError):  # without IPv6 there is no second one
                rows += [line.split() for line in Path("/proc/self/net", name).read_text("ascii").splitlines()[1:]]
        held = frozenset((_port(row[1]), _port(row[2])) for row in rows if row[9] != "0")
        _table = (time.monotonic(), held)
    return _table[1]


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)
