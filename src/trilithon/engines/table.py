"""Every engine by name: Trilithon's own, and those that installed packages add as entry points.

A package adds an engine with a line `NAME = "module:Class"` under `[project.entry-points."trilithon.engines"]` in its
pyproject.toml; the class follows `engines.base.Engine`."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from typing import Final

from trilithon.engines.base import Engine
from trilithon.engines.causes import CAUSES_FILE, CauseTable, read_causes
from trilithon.errors import PlacementError
from trilithon.language import Message
from trilithon.settings import Configuration
from trilithon.suggestions import alternatives

__all__ = [
    "COMPILED",
    "ENGINES",
    "BrokenEngine",
    "broken_engines",
    "cause_tables",
    "engine",
    "engines",
    "installed",
    "named_only_engines",
    "simulated_engines",
]

ENGINES: Final = {
    "llama.cpp": "trilithon.engines.llamacpp.engine:LlamaCpp",
    "ik_llama.cpp": "trilithon.engines.ik_llamacpp.engine:IkLlamaCpp",
    "rk-llama.cpp": "trilithon.engines.rk_llamacpp.engine:RkLlamaCpp",
    "rkllm": "trilithon.engines.rkllm.engine:Rkllm",
    "scripted": "trilithon.engines.scripted.engine:ScriptedEngine",
}
_BY_ADDRESS: Final = {"http": "trilithon.engines.remote.engine:HttpServer"}
"""What a placement means that is an address. It has no builds, and is in no list."""
COMPILED: Final = {
    "llama.cpp": "trilithon.engines.llamacpp.source:LLAMA_CPP",
    "ik": "trilithon.engines.ik_llamacpp.source:IK_LLAMA_CPP",
    "rk": "trilithon.engines.rk_llamacpp.source:RK_LLAMA_CPP",
}
"""What `trilithon engines build` compiles, by the words of its `--engine`."""
_GROUP = "trilithon.engines"


@dataclass(frozen=True, slots=True)
class BrokenEngine:
    """An engine of an installed package that cannot be used, and why."""

    name: str
    package: str
    reason: str

    @property
    def problem(self) -> str:
        return f"engine {self.name} of the package {self.package} cannot be loaded: {self.reason}"

    @property
    def fix(self) -> str:
        return f"update the package, or run: pip uninstall {self.package}"


def engine(name: str, configuration: Configuration) -> Engine:
    """The engine called `name`. Raises PlacementError for one that is unknown or cannot be loaded."""
    if target := (ENGINES | _BY_ADDRESS).get(name):
        module, _, attribute = target.partition(":")
        maker: Engine = getattr(import_module(module), attribute)(configuration)
        return maker
    for added in _added(configuration):
        if added.name != name:
            continue
        if isinstance(added, BrokenEngine):
            raise PlacementError("{problem}; {fix}", problem=added.problem, fix=added.fix)
        return added
    names = [*ENGINES, *(point.name for point in installed())]
    raise PlacementError(Message("unknown engine {name}; {fix}", name=name, fix=alternatives(name, names)))


def engines(configuration: Configuration) -> list[Engine]:
    """Every engine that can be loaded."""
    own = [engine(name, configuration) for name in ENGINES]
    return [*own, *(added for added in _added(configuration) if not isinstance(added, BrokenEngine))]


def broken_engines(configuration: Configuration) -> list[BrokenEngine]:
    return [added for added in _added(configuration) if isinstance(added, BrokenEngine)]


def cause_tables() -> list[CauseTable]:
    """The known causes of failures of every engine. A package's table that is malformed is left out: `broken_engines`
    reports it."""
    tables = [_causes(target) for target in ENGINES.values()]
    for point in installed():
        with contextlib.suppress(Exception):
            tables.append(_causes(point.value))
    return tables


def _causes(target: str) -> CauseTable:
    """From the folder of the engine's package. Raises ValueError for a malformed file, ImportError for no package."""
    package = target.partition(":")[0].rpartition(".")[0]
    return read_causes(files(package) / CAUSES_FILE) if package else CauseTable()


@functools.cache
def named_only_engines() -> frozenset[str]:
    """The engines that are used only where the user names them. One that cannot be loaded is not among them."""
    return _with("only_when_named")


@functools.cache
def simulated_engines() -> frozenset[str]:
    """The engines whose figures are those of no hardware."""
    return _with("simulated")


def _with(attribute: str) -> frozenset[str]:
    """The engines whose class has this attribute true."""
    names = [name for name, target in (ENGINES | _BY_ADDRESS).items() if _is_true(target, attribute)]
    for point in installed():
        with contextlib.suppress(Exception):
            names += [point.name] * _is_true(point.value, attribute)
    return frozenset(names)


def _is_true(target: str, attribute: str) -> bool:
    module, _, name = target.partition(":")
    return bool(getattr(getattr(import_module(module), name), attribute, False))


@functools.cache
def installed() -> tuple[EntryPoint, ...]:
    """The entry points of all packages in this environment; reading them takes some milliseconds."""
    return tuple(sorted(entry_points(group=_GROUP), key=lambda point: point.name))


def _added(configuration: Configuration) -> Iterator[Engine | BrokenEngine]:
    for point in installed():
        package = point.dist.name if point.dist else point.value
        if point.name in ENGINES | _BY_ADDRESS:
            yield BrokenEngine(point.name, package, "Trilithon has an engine of that name")
            continue
        try:
            maker = point.load()(configuration)
            _causes(point.value)
        except Exception as error:  # noqa: BLE001 - another package's code may raise anything
            yield BrokenEngine(point.name, package, " ".join(f"{type(error).__name__}: {error}".split())[:300])
            continue
        if not isinstance(maker, Engine) or maker.name != point.name:
            yield BrokenEngine(point.name, package, f"{point.value} is not an engine of that name")
        else:
            yield maker
