"""What a pull is going to fetch: made by the hub's and the registry's modules, carried out by `pull`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from trilithon.models.fetch.choose import Target
from trilithon.models.fetch.download import Download
from trilithon.models.fetch.http_client import DownloadSource
from trilithon.models.names import ModelName
from trilithon.models.store.manifest import FileFormat, PresetMessage, Role
from trilithon.models.store.parameters import Parameter

__all__ = ["DownloadList", "Item", "PullOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """`insecure` lets plain http be spoken with others than this machine."""

    wanted: Target
    transfer: Download = field(default_factory=Download)
    insecure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file. `digest` is its SHA-256 where the server tells it; `git_blob` is git's name for its content (a SHA-1),
    which is all that the hub tells of small files. Of a file with neither, the sum is computed from what came. Where
    the server denies a file that has `without`, which says what its lack means, the model is kept without it."""

    source: DownloadSource
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
class DownloadList:
    """`why` says in one sentence why these files; `notes` are what the user should know, one line each."""

    name: ModelName
    items: tuple[Item, ...]
    origin: str
    why: str = ""
    notes: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    system: str = ""
    messages: tuple[PresetMessage, ...] = ()
