"""Compiles llama.cpp or a fork for this CPU, and llama.cpp for Vulkan.

A wheel is built for any CPU: compiled for the CPU itself, prefill was 1.6 and decode 1.2 times as fast on a PC. A
compilation that fails or is stopped leaves only its log."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trilithon.board.snapshot import read_board
from trilithon.board.sysfs import THIS_MACHINE, Machine
from trilithon.engines.conversion import Progress
from trilithon.engines.inspection import PROGRAM, check_program
from trilithon.engines.llamacpp.instructions import target_of
from trilithon.engines.llamacpp.source import LLAMA_CPP, SourcePackage, SourceTree, fetch, open_source
from trilithon.engines.llamacpp.toolchain import Toolchain, choose_jobs, compiler_accepts, find_toolchain, require_space
from trilithon.engines.registry import Registered, add, built_folder, check_name, registered
from trilithon.engines.toolrun import run_tool
from trilithon.errors import TrilithonError, UserError
from trilithon.files import file_lock, sync
from trilithon.settings import Configuration

__all__ = ["Compiled", "Recipe", "compile_llamacpp", "delete_build", "replace_build", "require_compiled"]

_RPC_TARGET = "ggml-rpc-server"
# Variables with flags for CMake and compilers; they are recorded.
_VARIABLES = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to compile. `version` is that of the package, None for the one that was tested; `source` is a folder or an
    archive to use instead of it, and `origin` where that is from. `march` are the instructions on Arm, "" for
    GGML_NATIVE. `force` compiles a build that exists again."""

    package: SourcePackage = LLAMA_CPP
    version: str | None = None
    source: Path | None = None
    origin: str = ""
    name: str | None = None
    vulkan: bool = False
    rpc: bool = False
    kleidiai: bool = False
    march: str = ""
    jobs: int | None = None
    force: bool = False

    @property
    def flags(self) -> dict[str, str]:
        """For CMake, without those that only label the build."""
        options = {"GGML_VULKAN": self.vulkan, "GGML_RPC": self.rpc, "GGML_CPU_KLEIDIAI": self.kleidiai}
        flags = dict(self.package.flags) | {name: "ON" for name, enabled in options.items() if enabled}
        if self.march:
            flag, value = self.package.instructions
            flags |= {"GGML_NATIVE": "OFF", flag: value.replace("$MARCH", self.march)}
        return flags

    @property
    def targets(self) -> tuple[str, ...]:
        return (*self.package.targets, _RPC_TARGET) if self.rpc else self.package.targets

    def name_of(self, version: str) -> str:
        """The build's name: "native-0.3.36-vulkan", unless the user chose one."""
        options = {"vulkan": self.vulkan, "rpc": self.rpc, "kleidiai": self.kleidiai}
        return self.name or "-".join(
            [self.package.prefix, version, *(name for name, enabled in options.items() if enabled)]
        )


@dataclass(frozen=True, slots=True)
class Compiled:
    """`fresh` is False for a build that existed."""

    entry: Registered
    fresh: bool
    log: Path


def compile_llamacpp(
    recipe: Recipe, configuration: Configuration, progress: Progress, machine: Machine = THIS_MACHINE
) -> Compiled:
    """Downloads, compiles, installs and registers a build. Raises UserError for problems that are found before the
    compilation, TrilithonError when it fails. It may be interrupted at any time. `machine` says for which
    instructions."""
    if recipe.kleidiai and os.uname().machine != "aarch64":
        raise UserError("KleidiAI has kernels for 64-bit Arm only; leave --kleidiai out on this machine")
    if not recipe.package.options and (recipe.vulkan or recipe.rpc or recipe.kleidiai):
        raise UserError(f"{recipe.package.program} is compiled for the CPU; leave --vulkan, --rpc and --kleidiai out")
    if recipe.source is None and not recipe.package.name:
        raise UserError(f"{recipe.package.program} is fetched with: trilithon engines install {recipe.package.program}")
    version = recipe.version or recipe.package.version
    target = target_of(machine, compiler_accepts)
    recipe = replace(recipe, march=target.march)
    if recipe.source is None and (build := _existing(recipe, version, configuration)):
        return build
    toolchain = find_toolchain(vulkan=recipe.vulkan)
    jobs = choose_jobs(recipe.jobs)
    if target.words:
        progress(target.words, None)
    with _work_folder(configuration, vulkan=recipe.vulkan) as work:
        progress("fetching the source" if recipe.source is None else "unpacking the source", None)
        place = recipe.source or fetch(version, configuration.cache, recipe.package)
        source = open_source(place, work / "source", recipe.package)
        if recipe.source is not None and (build := _existing(recipe, source.version, configuration)):
            return build
        name = recipe.name_of(source.version)
        _require_name(name, configuration)
        log = _log_file(configuration, name)
        log.unlink(missing_ok=True)
        started_ns = time.monotonic_ns()
        unsupported = _compile(recipe, source, toolchain, work / "build", jobs, log, progress)
        seconds = (time.monotonic_ns() - started_ns) / 1e9
        facts = _facts(recipe, source, toolchain, seconds, unsupported)
        progress("installing", 1.0)
        bundled = [source.folder / path for path in recipe.package.bundled]
        return Compiled(_install(name, work / "build/bin", bundled, facts, recipe, configuration), fresh=True, log=log)


def require_compiled(name: str, configuration: Configuration) -> None:
    """Raises UserError when there is a build of that name that was not compiled here."""
    for entry in registered(configuration):
        compiled_here = (
            entry.folder == _built_folder(configuration, name) and {"flags", "installed"} & entry.facts.keys()
        )
        if entry.name == name and not compiled_here:
            raise UserError(f"{name} was not compiled here, so its folder {entry.folder} is kept; leave --delete out")


def delete_build(entry: Registered) -> None:
    """Deletes the folder of a build that was compiled here (see `require_compiled`)."""
    if entry.folder.exists():
        hidden = entry.folder.with_name(f".gone-{entry.name}")
        shutil.rmtree(hidden, ignore_errors=True)  # left by a deletion that was cut short
        entry.folder.rename(hidden)  # atomic, while deleting takes a while
        shutil.rmtree(hidden)


def _existing(recipe: Recipe, version: str, configuration: Configuration) -> Compiled | None:
    """The build of the same name, version and flags, if there is one and `force` is not set."""
    name = recipe.name_of(version)
    for entry in registered(configuration):
        same = (entry.name, entry.facts.get("version"), entry.facts.get("flags")) == (name, version, recipe.flags)
        if same and not recipe.force and (entry.folder / PROGRAM).is_file():
            return Compiled(entry, fresh=False, log=_log_file(configuration, name))
    return None


def _require_name(name: str, configuration: Configuration) -> None:
    """Raises UserError for a name that is invalid or in use: now, and not after ten minutes of compiling."""
    check_name(name)
    for entry in registered(configuration):
        if entry.name == name and entry.folder != _built_folder(configuration, name):
            raise UserError(f"{name} is already the build in {entry.folder}; choose another name with --name")


@contextlib.contextmanager
def _work_folder(configuration: Configuration, *, vulkan: bool) -> Iterator[Path]:
    """A temporary folder for one compilation at a time. What killed compilations left is deleted first."""
    base, builds = configuration.cache / "builds", configuration.data / "builds"
    try:
        base.mkdir(parents=True, exist_ok=True)
        builds.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; name another folder with TRILITHON_CACHE") from error
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(base / "lock", wait=False))
        except BlockingIOError:
            raise UserError("this user runs another compilation; wait until it has ended") from None
        _clean_up(base, builds)
        require_space(base, vulkan=vulkan)
        with tempfile.TemporaryDirectory(dir=base, prefix="work-") as work:
            yield Path(work)


def _clean_up(base: Path, builds: Path) -> None:
    for path in [*base.glob("work-*"), *builds.glob(".new-*"), *builds.glob(".gone-*")]:
        shutil.rmtree(path, ignore_errors=True)  # tried again by the next compilation
    for old in builds.glob(".old-*"):
        target = builds / old.name.removeprefix(".old-")
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)  # `replace_build` was cut short between its two renames


def _compile(
    recipe: Recipe, source: SourceTree, toolchain: Toolchain, folder: Path, jobs: int, log: Path, progress: Progress
) -> list[str]:
    """Configures and compiles in `folder`; gives the features that CMake left out because glslc is too old."""
    labels = {"LLAMA_BUILD_COMMIT": source.commit, "LLAMA_BUILD_NUMBER": "0"} if source.commit else {}
    command = ["cmake", "-S", str(source.folder), "-B", str(folder), "-G", toolchain.generator]
    command += [f"-D{name}={value}" for name, value in (recipe.flags | labels).items()]
    progress("configuring", None)
    unsupported: list[str] = []

    def configured(line: str) -> None:
        feature, message, _ = line.removeprefix("-- ").partition(" not supported by glslc")
        if message:
            unsupported.append(feature)

    run_tool(command, log, configured)
    progress("compiling", 0.0)
    command = ["cmake", "--build", str(folder), "--parallel", str(jobs), "--target", *recipe.targets]
    run_tool(command, log, _CompileSteps(progress))
    return unsupported


class _CompileSteps:
    """Reads progress from the output of the build tool: "[12/345]" (ninja) or "[ 12%]" (make)."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._most_steps = 0
        self._fraction = 0.0

    def __call__(self, line: str) -> None:
        step, bracket, _ = line.removeprefix("[").partition("]")
        if not bracket or step == line:
            return
        done, _, total = step.partition("/")
        if done.isdecimal() and total.isdecimal():
            if int(total) < max(self._most_steps, 1):  # a nested build, such as the generator of the shaders
                return
            self._most_steps = int(total)
            fraction = int(done) / int(total)
        elif step.strip().removesuffix("%").isdecimal() and "%" in step:
            fraction = int(step.strip().removesuffix("%")) / 100
        else:
            return
        self._fraction = max(self._fraction, min(fraction, 1.0))
        self._progress("compiling", self._fraction)


def _facts(
    recipe: Recipe, source: SourceTree, toolchain: Toolchain, seconds: float, unsupported: list[str]
) -> dict[str, Any]:
    board = read_board()
    environment = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    facts = {
        "version": source.version,
        "commit": source.commit,
        "source": recipe.origin or (str(recipe.source) if recipe.source else recipe.package.name),
        "source_sha256": source.sha256,
        "flags": recipe.flags,
        "march": recipe.march,
        "environment": environment,
        "compiler": toolchain.compiler,
        "cmake": toolchain.cmake,
        "glslc": toolchain.glslc,
        "without": unsupported,
        "chip": board.chip,
        "cpu": board.describe_cores(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }
    return {name: value for name, value in facts.items() if value not in ("", [], {})}


def _install(
    name: str, programs: Path, bundled: list[Path], facts: dict[str, Any], recipe: Recipe, configuration: Configuration
) -> Registered:
    """Copies the programs and their libraries to their folder, all or none, and registers the build when the server has
    run once."""
    target = _built_folder(configuration, name)
    new = target.with_name(f".new-{name}")
    entry = Registered(name=name, folder=target, facts=facts)
    try:
        new.mkdir()
        for program in recipe.targets:
            _copy(programs / program, new / program)
        libraries = sorted(programs.glob(recipe.package.libraries)) if recipe.package.libraries else []
        for library in (*libraries, *bundled):
            _copy(library, new / library.name)
        try:
            check_program(new / PROGRAM)
        except UserError as error:
            raise TrilithonError(f"the compiled server does not work: {error}") from error
        replace_build(new, target, lambda: add(configuration, entry))
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return entry


def replace_build(new: Path, target: Path, register: Callable[[], None]) -> None:
    """Moves `new` to `target` and registers it; an earlier `target` is restored when that fails."""
    old = target.with_name(f".old-{target.name}")
    had_old = target.exists()
    try:
        if had_old:
            target.rename(old)
        new.rename(target)
        register()
    except BaseException:
        if old.exists() or not had_old:
            shutil.rmtree(target, ignore_errors=True)
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise TrilithonError(f"the compilation wrote no {source.name}; use another --version")
    shutil.copy2(source, target, follow_symlinks=False)
    if target.is_symlink():  # of a library's name without its version
        return
    sync(target)  # before the registry names it: after a power cut, what it names must exist


def _built_folder(configuration: Configuration, name: str) -> Path:
    return built_folder(configuration, name).absolute()


def _log_file(configuration: Configuration, name: str) -> Path:
    return configuration.cache / "builds" / f"{name}.log"
