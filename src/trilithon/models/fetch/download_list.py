"""What a pull will fetch: made by `hub` and `registry`, carried out by `pull`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from trilithon.models.fetch.choose import Target
from trilithon.models.fetch.download import Download
from trilithon.models.fetch.http_client import DownloadSource
from trilithon.models.fetch.public_hosts import PublicHosts
from trilithon.models.names import ModelName
from trilithon.models.store.manifest import FileFormat, PresetMessage, Role
from trilithon.models.store.parameters import Parameter

__all__ = ["DownloadItem", "DownloadList", "PullOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """`insecure` allows plain http to other machines than this one. `hosts` restricts the hosts that are asked."""

    target: Target
    transfer: Download = field(default_factory=Download)
    insecure: bool = False
    hosts: PublicHosts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadItem:
    """One file to fetch. `digest` is its SHA-256 where the server says it. `git_blob` is the SHA-1 that git names its
    content by, the only checksum that the hub has for small files. Without either, the digest is computed from the
    received bytes. `without` is set for optional files: it says what is missing if the server denies access."""

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
    """`why` is one sentence on why these files were chosen; `notes` are for the user, one line each."""

    name: ModelName
    items: tuple[DownloadItem, ...]
    origin: str
    why: str = ""
    notes: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    system: str = ""
    messages: tuple[PresetMessage, ...] = ()
