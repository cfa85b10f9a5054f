"""What an engine is to the rest of the house: it finds builds, judges files, and turns a placement into a launch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from trilithon.models.files.model_file import ModelFile

__all__ = [
    "Build",
    "Device",
    "Engine",
    "FallbackStep",
    "Feature",
    "FlashAttention",
    "Launch",
    "ModelFile",
    "Placement",
    "Settings",
    "Task",
    "Unit",
]

Unit = Literal["cpu", "gpu", "npu"]
Feature = Literal["logprobs", "handover", "grammar", "vision", "embeddings", "speculation"]
FlashAttention = Literal["auto", "on", "off"]
Task = Literal["generate", "embed", "rank"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a build says it can compute on besides the CPU. `id` is its word for it ("Vulkan0"), `name` the device's
    own; `software` means that it runs on the CPU (Mesa's llvmpipe). `driver` is name and version, or empty."""

    id: str
    unit: Unit
    name: str
    driver: str = ""
    software: bool = False
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One installed copy of an engine. `name` is what `@BUILD` says; `where` is a path or a package; `fingerprint`
    tells copies of one version apart where the version alone does not. A unit whose only devices are software is
    never measured unless the user asks for it by name."""

    engine: str
    name: str
    version: str
    units: tuple[Unit, ...]
    features: frozenset[Feature]
    where: str
    fingerprint: str = ""
    devices: tuple[Device, ...] = ()

    def only_when_named(self, unit: Unit) -> bool:
        own = [device for device in self.devices if device.unit == unit]
        return bool(own) and all(device.software for device in own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be turned. None means: the engine's or the board's own choice.

    `cpus` are the CPU numbers that the child may use; `options` are words that only one engine knows.
    `slots` is the number of KV caches of `context` tokens each, for as many conversations.
    What is loaded to `embed` makes vectors of texts, and to `rank` says how well texts answer a
    query; it chats no more.
    `full_window_cache` keeps the KV cache of sliding-window layers in full: only then can a prefix be taken up again.
    `speculation` is how tokens are guessed ahead, so that one step checks several (see `speculation.SPECULATIONS`).
    """

    threads: int | None = None
    cpus: tuple[int, ...] | None = None
    context: int | None = None
    batch: int = 2048
    micro_batch: int = 512
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    flash_attention: FlashAttention = "auto"
    full_window_cache: bool = False
    slots: int = 1
    task: Task = "generate"
    speculation: str | None = None
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One way to run a model: file × build × unit × settings. `name` is unique within a campaign.

    With `prefill`, a handover: that placement prefills, and this one decodes.
    """

    name: str
    file: ModelFile
    build: Build
    unit: Unit
    settings: Settings
    prefill: "Placement | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackStep:
    """A safer way to run the same placement: `settings` in place of its own; `name` says in words what is given up
    ("flash attention off")."""

    name: str
    settings: Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start a placement's child. The child serves the wire on the Unix socket `socket`.

    `environment` is added to the caller's, less the variables whose names begin with one of `hidden`; `open_files` is
    the limit to ask for (soft, up to the hard one). `exclusive` names what only one process of the machine may work
    on at a time; the runner then holds its lock while it loads and during every request.
    """

    argv: tuple[str, ...]
    socket: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    cpus: tuple[int, ...] | None = None
    open_files: int | None = None
    exclusive: Literal["npu"] | None = None


@runtime_checkable
class Engine(Protocol):
    """An engine module's face. One instance per engine, listed in `engines.table`."""

    name: str
    only_when_named: bool
    """True for an engine that is never measured unless the user asks for it by name."""

    def builds(self) -> list[Build]:
        """The copies of this engine that are usable now; quick (no native library is loaded)."""

    def missing(self) -> str:
        """Why there is no build, ending with "; run: COMMAND"; empty when there is one."""

    def problems(self) -> tuple[str, ...]:
        """What is wrong with copies that are installed, one line each, ending with "; run: COMMAND" where one helps."""

    def refusal(self, file: ModelFile, build: Build, unit: Unit, settings: Settings) -> str:
        """Why this file cannot run there with these settings; empty when it can."""

    def launch(self, placement: Placement, folder: Path) -> Launch:
        """The child to start; it may keep files in `folder`, which is private and goes with the runner."""

    def fallback_steps(self, placement: Placement) -> tuple[FallbackStep, ...]:
        """Safer settings to try when the placement dies, hangs or answers wrongly, the least loss first. Each step
        includes what the ones before it gave up. Empty where nothing is known to help."""

    def remarks(self, placement: Placement, log: str) -> tuple[str, ...]:
        """What the user should know about this placement, one line each; `log` is what its child has written so
        far, empty before it starts."""
