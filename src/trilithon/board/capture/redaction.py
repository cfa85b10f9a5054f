"""What an owner does not want to publish, taken out of the values of a report."""

import base64
import contextlib
import getpass
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

__all__ = ["COMMON_NAMES", "Redactor", "redacted_capture"]

# The names that images, installers and services give: they say nothing about the owner, and stand in texts of every
# kernel and in the names of engines and placements.
COMMON_NAMES = re.compile(
    r"armbian|banana(?:pi)?|board|cpu|debian|dietpi|firefly|gpu|home|host|khadas|linaro|linux|llama|localhost|mainline|"
    r"model|nanopi|nobody|npu|ollama|orange(?:pi)?[\w-]*|pi|radxa|rkllm|rock(?:chip)?|rock-\w+|root|server|test|"
    r"trilithon|ubuntu|user|vllm"
)
_SHORTEST_NAME = 3

_MAC = re.compile(r"(?<![\w:.-])[0-9a-f]{2}(?:([:-])[0-9a-f]{2})(?:\1[0-9a-f]{2}){4}(?![\w:-])", re.IGNORECASE)
_SERIAL = re.compile(r"^(Serial\s*:\s*)\S.*$", re.MULTILINE)  # of /proc/cpuinfo
# `androidboot.serialno=`, `serial=`, `password=`, `PARTUUID=`… of a kernel's or a program's command line
_NAMED_SECRET = re.compile(
    r"(?<![\w.-])"  # else the time for a long word without a blank grows with its square
    r"(?P<name>[\w.-]*(?:serial(?:no)?|uuid|mac(?:addr)?|passw(?:or)?d|token|secret|api[-_]?key)[=:]\s?)[^\s\"',;]+",
    re.IGNORECASE,
)
_UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.IGNORECASE)
# Keys of this server, of OpenAI, Anthropic and Hugging Face
_KEY = re.compile(r"\b(?:trl|sk|hf|ghp|gho)[-_][A-Za-z0-9_-]{16,}")
_BEARER = re.compile(r"(?i)\bbearer\s+[A-Za-z0-9._~+/=-]{8,}")
_HOMES = re.compile(r"(?<![\w.-])/(?:home|Users)/(?!user\b)[^/\s:,;\"']+")
_SERIAL_PATHS = re.compile(
    r".*/(?:serial(?:[-_]number|no)?|product_serial|board_serial|product_uuid|address|machine-id)"
)

_ENVIRONMENT = re.compile(r"/proc/(?:self|\d+)/environ")
_KEPT_VARIABLES = frozenset({"LD_LIBRARY_PATH", "container"})
_MARKING_VARIABLE = re.compile(
    r"KUBERNETES_\w+|SUPERVISOR_\w+|HASSIO_\w+"
)  # their presence says what runs the container
_MOUNTS = re.compile(r"/proc/(?:self|\d+)/mountinfo")
_NETWORK_FILE_SYSTEM = re.compile(r"nfs4?|cifs|smb3|9p|fuse\.\w+|ceph")


class Redactor:
    """Replaces names of the host and its users, home folders, MAC addresses, serial numbers and keys in texts."""

    def __init__(self, *, names: Iterable[str], home: Path):
        self._home = str(home)
        secret = {name for name in names if len(name) >= _SHORTEST_NAME and not COMMON_NAMES.fullmatch(name.lower())}
        longest_first = sorted(secret, key=len, reverse=True)
        words = "|".join(map(re.escape, longest_first))
        self._names = re.compile(rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])", re.IGNORECASE) if words else None

    @classmethod
    def of_this_user(cls) -> Self:
        """With the names of the host and of this user, also the one behind sudo."""
        names = {platform.node(), platform.node().partition(".")[0], os.environ.get("SUDO_USER", ""), Path.home().name}
        with contextlib.suppress(KeyError, OSError):  # a user number without a name
            names.add(getpass.getuser())
        return cls(names=names, home=Path.home())

    def text(self, text: str) -> str:
        if len(self._home) > 1:
            text = re.sub(rf"(?<![\w.-]){re.escape(self._home)}(?![\w-])", "/home/user", text)
        text = _HOMES.sub("/home/user", text)
        substitutions: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
            (_SERIAL, r"\g<1>removed"),
            (_NAMED_SECRET, r"\g<name>removed"),
            (_BEARER, "Bearer removed"),
            (_KEY, "removed-key"),
            (_UUID, "removed-uuid"),
            (_MAC, "removed-mac"),
        )
        for pattern, replacement in substitutions:
            text = pattern.sub(replacement, text)
        return self._names.sub("removed", text) if self._names else text

    def values(self, value: Any) -> Any:
        """The same JSON value with every text and every key redacted."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.values(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.values(item) for item in value]
        return value


def redacted_capture(capture: Mapping[str, Any], redactor: Redactor) -> dict[str, Any]:
    """The values of `Recorder.capture` without what the redactor removes, without environment variables that no reader
    uses and the sources of network shares, and without the content of files that have a serial number or an address by
    their name. Content that is not UTF-8 is searched as Latin-1."""
    paths = {}
    for path, entry in capture["paths"].items():
        if _SERIAL_PATHS.fullmatch(path):
            paths[path] = {"access": entry["access"]}
        elif "base64" in entry:
            text = redactor.text(_without_private_parts(path, base64.b64decode(entry["base64"]).decode("latin-1")))
            paths[path] = entry | {"base64": base64.b64encode(text.encode("latin-1")).decode()}
        elif entry.get("text"):
            paths[path] = entry | {"text": _without_private_parts(path, entry["text"])}
        else:
            paths[path] = entry
    redacted: dict[str, Any] = redactor.values({**capture, "paths": paths})
    return redacted


def _without_private_parts(path: str, text: str) -> str:
    if _ENVIRONMENT.fullmatch(path):
        return "\0".join(filter(None, map(_variable, text.split("\0"))))
    return "".join(map(_mount, text.splitlines(keepends=True))) if _MOUNTS.fullmatch(path) else text


def _variable(assignment: str) -> str:
    name = assignment.partition("=")[0]
    if name in _KEPT_VARIABLES:
        return assignment
    return f"{name}=removed" if _MARKING_VARIABLE.fullmatch(name) else ""


def _mount(line: str) -> str:
    """Without source and options of a file system from a network, which name its server and user; of the others the
    options tell which program made a container. proc(5), /proc/PID/mountinfo."""
    before, separator, after = line.partition(" - ")
    kind = after.partition(" ")[0]
    return f"{before} - {kind} removed rw\n" if separator and _NETWORK_FILE_SYSTEM.fullmatch(kind) else line
