"""Fetches an engine, compares it with what the table says, and adds it: a library as it is, a fork compiled."""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from trilithon.board.libraries import stated_version
from trilithon.board.sysfs import THIS_MACHINE
from trilithon.engines.conversion import Progress
from trilithon.engines.elf import elf_machine
from trilithon.engines.install.sources import EngineSource, known_digests
from trilithon.engines.llamacpp.compile import Recipe, compile_llamacpp, replace_build
from trilithon.engines.llamacpp.source import sha256_of
from trilithon.engines.registry import Registered, add, built_folder, registered
from trilithon.engines.table import COMPILED
from trilithon.engines.toolrun import run_tool
from trilithon.errors import ModelError, NoRoom, TrilithonError, UserError
from trilithon.files import sync
from trilithon.models.fetch.download import Download, download
from trilithon.models.fetch.http_client import DownloadSource, is_loopback, redacted_url
from trilithon.models.fetch.transfer_rate import ReportProgress, TransferProgress
from trilithon.models.store.model_store import ModelStore
from trilithon.settings import Configuration
from trilithon.units import format_bytes

__all__ = ["InstalledEngine", "LocalLibrary", "install_compiled", "install_library", "local_library", "require_machine"]

_CONNECTIONS = 2
_GIT_TRIES = 3
_MOST_LIBRARY_BYTES = 64 << 20  # librkllmrt.so has 7 MB


@dataclass(frozen=True, slots=True)
class InstalledEngine:
    """`fresh` is False for one that was there already."""

    entry: Registered
    fresh: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalLibrary:
    """A file of the user. `known` is the release of the table with the same content, empty for another file."""

    path: Path
    sha256: str
    version: str
    known: str


def require_machine(source: EngineSource) -> None:
    """Raises UserError for an engine of another kind of machine, before anything is fetched."""
    machine = os.uname().machine
    if machine != source.machine:
        raise UserError(
            "{engine} is for {machine} machines with its chip, and this one is {this_one}",
            engine=source.engine,
            machine=source.machine,
            this_one=machine,
        )


def local_library(source: EngineSource, place: Path, configuration: Configuration) -> LocalLibrary:
    """The library that the user names: the file, or one in a folder of the vendor's layout. Raises UserError."""
    path = place.expanduser().absolute()
    candidates = [path] if path.is_file() else sorted(path.rglob(source.file)) if path.is_dir() else []
    fitting = [file for file in candidates if elf_machine(file) == source.machine]
    if not fitting:
        why = f"{elf_machine(candidates[0]) or 'no library'}" if candidates else f"there is no {source.file}"
        raise UserError(
            "{place} does not have {file} for {machine} ({why}); name the file itself",
            place=place,
            file=source.file,
            machine=source.machine,
            why=why,
        )
    digest = sha256_of(fitting[0])
    version = stated_version(THIS_MACHINE, str(fitting[0]), source.file) or "unknown"
    known = known_digests(source.engine, configuration).get(digest, "")
    return LocalLibrary(path=fitting[0], sha256=digest, version=version, known=known)


def install_library(
    source: EngineSource, configuration: Configuration, report: ReportProgress, local: LocalLibrary | None = None
) -> InstalledEngine:
    """Fetches the library, or takes the `local` one, and adds it as a build. Raises UserError and TrilithonError: then
    nothing is added, and the received bytes are kept for the next try."""
    name = source.build_name
    digest = local.sha256 if local else source.sha256
    for entry in registered(configuration):
        if entry.name == name and entry.facts.get("sha256") == digest and (entry.folder / source.file).is_file():
            return InstalledEngine(entry, fresh=False)
    place = local.path if local else _fetched(source, configuration, report)
    facts: dict[str, Any] = {
        "version": source.version,
        "source": str(local.path) if local else source.address,
        "sha256": digest,
        "licence": source.licence,
        "installed": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    target = built_folder(configuration, name).absolute()
    entry, new = Registered(name=name, folder=target, facts=facts), target.with_name(f".new-{name}")
    try:
        shutil.rmtree(new, ignore_errors=True)  # left by a process that was killed
        new.mkdir(parents=True)
        shutil.copyfile(place, new / source.file)
        sync(new / source.file)
        _require_library(source, new / source.file, digest)
        replace_build(new, target, lambda: add(configuration, entry))
    except OSError as error:
        raise TrilithonError(
            "{target}: {reason}; free some space, and run this again", target=target, reason=error.strerror or error
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return InstalledEngine(entry, fresh=True)


def install_compiled(
    source: EngineSource, configuration: Configuration, progress: Progress, local: Path | None = None
) -> InstalledEngine:
    """Fetches the commit, or takes the `local` folder or archive, compiles it and adds the build. Raises UserError and
    TrilithonError."""
    module, _, name = COMPILED[source.compiled].partition(":")
    package = getattr(import_module(module), name)
    place = local or _commit(source, configuration, progress)
    recipe = Recipe(package=package, source=place, name=source.build_name, origin=str(local or source.address))
    made = compile_llamacpp(recipe, configuration, progress)
    return InstalledEngine(made.entry, fresh=made.fresh)


def _fetched(source: EngineSource, configuration: Configuration, report: ReportProgress) -> Path:
    """The file with the right digest, in the cache. Raises ModelError and TrilithonError."""
    with ModelStore(configuration.cache / "engines") as store:
        try:
            with store.receive(source.sha256, source.size_bytes) as partial:
                where = DownloadSource(url=source.address)
                download(where, partial, transfer=Download(connections=_CONNECTIONS), report=_bounded(report))
                digest = partial.finish()
        except NoRoom as error:
            why = str(error).partition(";")[0]
            raise NoRoom("{why}; free some, or name another folder with TRILITHON_CACHE", why=why) from error
        except ModelError as error:
            why = str(error).replace("pull it again", "run this again, or use --from FILE")
            raise type(error)(f"{redacted_url(source.address)}: {why}") from error
        return store.blob_path(digest)


def _bounded(report: ReportProgress) -> ReportProgress:
    """The same; it raises ModelError when more comes than any library has: not every size is in the table."""

    def bounded(progress: TransferProgress) -> None:
        if max(progress.done_bytes, progress.total_bytes or 0) > _MOST_LIBRARY_BYTES:
            raise ModelError(
                "it has over {size} and is no library; use --from FILE", size=format_bytes(_MOST_LIBRARY_BYTES)
            )
        report(progress)

    return bounded


def _require_library(source: EngineSource, path: Path, digest: str) -> None:
    """Raises UserError for a library of another machine, and where the disk returns other bytes than were written."""
    if elf_machine(path) != source.machine:
        raise UserError(
            "{file} is for {other}, not for {machine}",
            file=source.file,
            other=elf_machine(path) or "no machine",
            machine=source.machine,
        )
    if sha256_of(path) != digest:
        raise UserError("{path} has other content than was written; check the disk", path=path)


def _commit(source: EngineSource, configuration: Configuration, progress: Progress) -> Path:
    """The folder with the source at this commit, in the cache. Raises UserError and TrilithonError."""
    folder = configuration.cache / "sources" / f"{source.build_name}-{source.commit[:12]}"
    if folder.is_dir():
        return folder
    if shutil.which("git") is None:
        raise UserError("git is missing, which fetches the source; install it: sudo apt install git")
    if not source.address.startswith("https://") and not is_loopback(source.address):
        raise UserError(
            "{address}: only https is protected against changes; correct engine_table", address=source.address
        )
    progress("fetching the source", None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetching-") as temporary:
        work = Path(temporary) / "source"
        log = Path(temporary) / "log"
        _git(log, "init", "--quiet", "--template=", str(work))
        fetch = ("-C", str(work), "fetch", "--depth=1", "--no-tags", "--progress", source.address, source.commit)
        _fetch_with_retries(lambda: _git(log, *fetch, on_line=_GitSteps(progress)), source)
        _git(log, "-C", str(work), "checkout", "--quiet", "--detach", source.commit)
        work.replace(folder)
    return folder


def _fetch_with_retries(fetch: Callable[[], None], source: EngineSource) -> None:
    for attempt in range(1, _GIT_TRIES + 1):
        try:
            fetch()
            return
        except TrilithonError as error:
            if attempt == _GIT_TRIES:
                why = str(error).partition(" (log: ")[0]
                raise TrilithonError(
                    "{address}: {why}; run this again, or use --from FOLDER", address=source.address, why=why
                ) from error


def _git(log: Path, *words: str, on_line: Callable[[str], None] = lambda _: None) -> None:
    """Without hooks, filters for line ends, and protocols other than http(s): the rest of the user's settings hold."""
    settings = [
        "core.hooksPath=/dev/null",
        "core.autocrlf=false",
        "protocol.allow=never",
        "protocol.https.allow=always",
    ]
    settings += ["protocol.http.allow=always"] * any(is_loopback(word) for word in words if "://" in word)
    options = [word for setting in settings for word in ("-c", setting)]
    run_tool(["git", *options, *words], log, on_line, in_place=True)


class _GitSteps:
    """Reads progress from lines such as "Receiving objects:  45% (450/1000), 12.00 MiB"."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, line: str) -> None:
        step, _, rest = line.removeprefix("remote: ").partition(":")
        percent = rest.strip().partition("%")[0]
        if step == "Receiving objects" and percent.isdecimal():
            self._progress("fetching the source", int(percent) / 100)
