"""What a pull is going to fetch: made by the hub's and the registry's modules, carried out by `pull`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from trilithon.models.choose import Wanted
from trilithon.models.download import Transfer
from trilithon.models.http_client import Source
from trilithon.models.manifest import FileFormat, Message, Role
from trilithon.models.names import ModelName
from trilithon.models.parameters import Parameter

__all__ = ["Item", "Plan", "PullOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """`insecure` lets plain http be spoken with others than this machine."""

    wanted: Wanted
    transfer: Transfer = field(default_factory=Transfer)
    insecure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file. `digest` is its SHA-256 where the server tells it; `git_blob` is git's name for its content (a SHA-1),
    which is all that the hub tells of small files. Of a file with neither, the sum is computed from what came. Where
    the server denies a file that has `without`, which says what its lack means, the model is kept without it."""

    source: Source
    name: str
    role: Role
    format: FileFormat
    size_bytes: int | None = None
    digest: str = ""
    git_blob: str = ""
    quantization: str = ""
    target_platform: str = ""
    without: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`why` says in one sentence why these files; `notes` are what the user should know, one line each."""

    name: ModelName
    items: tuple[Item, ...]
    origin: str
    why: str = ""
    notes: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    system: str = ""
    messages: tuple[Message, ...] = ()
