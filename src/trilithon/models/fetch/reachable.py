"""Whether a server can be reached, decided within a fraction of a second: without a network, commands answer at once
from what they know."""

import os
import socket
import threading
from urllib.parse import urlsplit

__all__ = ["is_reachable"]

_PORTS = {"http": 80, "https": 443}


def is_reachable(url: str, limit_seconds: float) -> bool:
    """Whether the host of `url`, or the proxy of the environment, takes a connection. Its name is resolved in a thread
    that may outlive the call, since that has no time-out of its own. No address of a server is not reachable."""
    try:
        host, port = _address(url)
    except ValueError:
        return False
    connected = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=limit_seconds).close()
        except (OSError, UnicodeError):
            done.set()
            return
        connected.set()
        done.set()

    done = threading.Event()
    threading.Thread(target=connect, daemon=True).start()
    done.wait(limit_seconds)
    return connected.is_set()


def _address(url: str) -> tuple[str, int]:
    """Of the proxy if there is one: then the host itself need not be reachable from here."""
    parts = urlsplit(url)
    names = (f"{parts.scheme}_proxy", "all_proxy")
    proxies = [os.environ.get(name) or os.environ.get(name.upper(), "") for name in names]
    proxy = next((text for text in proxies if text), "")
    if proxy and not _bypassed(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 1080)


def _bypassed(host: str) -> bool:
    """By NO_PROXY: hosts and suffixes of hosts, or a star."""
    text = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    names = [name.strip().lstrip(".").lower() for name in text.split(",")]
    return any(name and (name == "*" or host.lower() == name or host.lower().endswith(f".{name}")) for name in names)
