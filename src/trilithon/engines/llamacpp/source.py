"""The source of llama.cpp or of a fork to compile: from the sdist of a Python package that carries it, which pip
downloads, or from a folder or archive of the user. Archives are checked before they are unpacked, because their content
will be run."""

import collections
import hashlib
import importlib.util
import lzma
import re
import shutil
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from trilithon.engines.toolrun import run_tool
from trilithon.errors import TrilithonError, UserError

__all__ = ["DEFAULT_VERSION", "LLAMA_CPP", "SourcePackage", "SourceTree", "fetch", "open_source"]

DEFAULT_VERSION = "0.3.36"
"""Of llama-cpp-python; it contains llama.cpp 0c1e570."""

_VERSION = re.compile(r"\d+(\.\d+){1,3}((a|b|rc|\.post|\.dev)\d+)?")
_ARCHIVE_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)  # what damaged archives raise
# The real one has 3,700 files and 176 MiB.
_MOST_FILES, _MOST_BYTES = 50_000, 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePackage:
    """A Python package whose sdist carries the source of `program` in the folder `carried`, and what is compiled of it.

    `sha256` are the hashes of versions that are known in advance; that of another version is recorded at its first
    download. A build is called `prefix`-VERSION. `flags` are for CMake; on Arm `instructions` takes the place of
    GGML_NATIVE: a flag and its value, in which `$MARCH` is the compiler's -march. `generated` are files that the sdist
    lacks, by their paths in the source; `$VERSION` in their text is the version. `repairs` are faults of the source: a
    file, the text at fault and what takes its place, wherever it occurs. With `options` the build may have Vulkan, RPC
    and KleidiAI. `libraries` is the pattern of shared libraries beside the compiled programs, and `bundled` are files
    of the source that are installed with them. A package without a `name` is compiled from a folder or archive only."""

    name: str
    program: str
    version: str
    sha256: Mapping[str, str]
    carried: PurePosixPath
    prefix: str
    targets: tuple[str, ...]
    flags: Mapping[str, str]
    instructions: tuple[str, str]
    generated: Mapping[str, str] = field(default_factory=dict)
    repairs: tuple[tuple[str, re.Pattern[str], str], ...] = ()
    options: bool = True
    libraries: str = ""
    bundled: tuple[str, ...] = ()


LLAMA_CPP = SourcePackage(
    name="llama-cpp-python",
    program="llama.cpp",
    version=DEFAULT_VERSION,
    sha256={"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"},
    carried=PurePosixPath("vendor/llama.cpp"),
    prefix="native",
    targets=("llama-server", "llama-bench", "llama-quantize", "llama-perplexity"),
    flags={
        "CMAKE_BUILD_TYPE": "Release",
        "GGML_NATIVE": "ON",
        "BUILD_SHARED_LIBS": "OFF",
        "LLAMA_BUILD_UI": "OFF",
        "LLAMA_USE_PREBUILT_UI": "OFF",
        "LLAMA_CURL": "OFF",
        "LLAMA_OPENSSL": "OFF",
        "LLAMA_BUILD_TESTS": "OFF",
        "LLAMA_BUILD_EXAMPLES": "OFF",
    },
    instructions=("GGML_CPU_ARM_ARCH", "$MARCH"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTree:
    """`folder` has the program's CMakeLists.txt. `version` is that of the package, or "local"; `commit` is empty
    where it is unknown, and `sha256` where the source is a folder."""

    folder: Path
    version: str
    commit: str = ""
    sha256: str = ""


def fetch(version: str, cache: Path, package: SourcePackage = LLAMA_CPP) -> Path:
    """The sdist of that version in `cache`/sources; pip downloads it where it is missing or was changed.

    pip compares the file with the hash of its index, and Trilithon with the hash that it knows. (pip asks the package's
    build backend for metadata, and downloads that backend for this.) Raises UserError and TrilithonError."""
    if not _VERSION.fullmatch(version):
        raise UserError(f"{version!r} is not a version of {package.name}; write for example {package.version}")
    folder = cache / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    sdist = folder / f"{package.name.replace('-', '_')}-{version}.tar.gz"
    record = sdist.with_suffix(".sha256")
    if sdist.exists() and record.exists() and sha256_of(sdist) == record.read_text(encoding="ascii").strip():
        return sdist
    expected = package.sha256.get(version) or (record.read_text(encoding="ascii").strip() if record.exists() else "")
    with tempfile.TemporaryDirectory(dir=folder, prefix="fetching-") as temporary:
        download = _download(version, Path(temporary), package)
        digest = sha256_of(download)
        if expected and digest != expected:
            raise TrilithonError(
                f"{download.name} has another SHA-256 ({digest[:12]}…) than expected ({expected[:12]}…): the package "
                "index serves another file; check pip's configuration"
            )
        record.write_text(f"{digest}\n", encoding="ascii")
        return download.replace(sdist)


def open_source(place: Path, work: Path, package: SourcePackage = LLAMA_CPP) -> SourceTree:
    """The source in `place`: a folder, which is used where it is, or a tar archive, which is unpacked into `work`; of
    the program itself or of an sdist that contains it. What is unpacked is repaired. Raises UserError for anything
    else."""
    tree = _opened(place.expanduser().absolute(), work, package)
    for path, fault, repaired in package.repairs if tree.sha256 else ():
        file = tree.folder / path
        if file.exists():
            file.write_text(fault.sub(repaired, file.read_text(encoding="utf-8")), encoding="utf-8")
    for path, text in package.generated.items():
        target = tree.folder / path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text.replace("$VERSION", tree.version), encoding="utf-8")
    return tree


def _opened(place: Path, work: Path, package: SourcePackage) -> SourceTree:
    carried = package.carried
    if place.is_dir():
        for folder in (place, place / carried):
            if (folder / "CMakeLists.txt").is_file() and not (folder / carried / "CMakeLists.txt").is_file():
                commit = _commit_in(place, folder, carried)
                return SourceTree(folder=folder, version=_version_in(place), commit=commit)
        raise UserError(f"{place} is not a source of {package.program}: it has no CMakeLists.txt; name another folder")
    try:
        with tarfile.open(place) as archive:
            folder, top = _unpack(archive, work, carried)
    except _ARCHIVE_ERRORS as error:
        why = str(error).partition("\n")[0].rstrip(":")  # the following lines are one per kind of compression
        raise UserError(f"{place} cannot be unpacked: {why}; download it again") from error
    commit = _commit_in(top, folder, carried)
    return SourceTree(folder=folder, version=_version_in(top), commit=commit, sha256=sha256_of(place))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(version: str, folder: Path, package: SourcePackage) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"this Python has no pip to download the source with; run: {sys.executable} -m ensurepip, or name a source "
            "with --source"
        )
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--no-binary", package.name, "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{package.name}=={version}"]
    lines: list[str] = []
    try:
        run_tool(command, folder / "log", lines.append)
        (sdist,) = folder.glob("*.tar.gz")
    except (TrilithonError, ValueError) as error:
        raise _download_error(version, lines, package.name) from error
    return sdist


def _download_error(version: str, lines: list[str], name: str) -> TrilithonError:
    offered = re.search(r"\(from versions: (.+)\)", "\n".join(lines))
    if offered and offered[1] != "none" and version not in offered[1].split(", "):
        return UserError(f"there is no {name} {version}; leave --version out, or write another one")
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    why = errors[-1] if errors else "no reason given"
    return TrilithonError(f"pip cannot download {name} {version}: {why}; check the network, or use --source")


def _unpack(archive: tarfile.TarFile, work: Path, carried: PurePosixPath) -> tuple[Path, Path]:
    """Unpacks what is needed; gives the folder of the program and the top folder of the archive. Raises TarError."""
    members = archive.getmembers()
    tops = {PurePosixPath(member.name).parts[:1] for member in members}
    if (
        len(tops) != 1
        or tops == {()}
        or len(members) > _MOST_FILES
        or sum(member.size for member in members) > _MOST_BYTES
    ):
        raise tarfile.TarError("it is not a source archive: one folder with at most 2 GiB in it")
    ((name,),) = tops
    top = PurePosixPath(name)
    names = {member.name for member in members}
    root = top / carried if str(top / carried / "CMakeLists.txt") in names else top
    if str(root / "CMakeLists.txt") not in names:
        raise tarfile.TarError("there is no CMakeLists.txt in it")
    for member in _needed(members, root, top / "PKG-INFO", top / ".git/modules" / carried / "HEAD"):
        _write(archive, member, work)
    if archive.fileobj is not None:  # read to the end: the checksum of the compressed data comes last
        collections.deque(iter(lambda: archive.fileobj.read(1 << 20), b""), maxlen=0)
    return work / root, work / top


def _needed(members: list[tarfile.TarInfo], root: PurePosixPath, *metadata: PurePosixPath) -> Iterator[tarfile.TarInfo]:
    """The program's files, and those with its version and commit. Raises TarError for a path outside of the archive, a
    link or a device."""
    for member in members:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            raise tarfile.TarError(f"{member.name} is a path outside of the archive")
        if path not in metadata and (not path.is_relative_to(root) or ".git" in path.relative_to(root).parts):
            continue
        if not member.isfile() and not member.isdir():
            raise tarfile.TarError(f"{member.name} is neither a file nor a folder")
        yield member


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, work: Path) -> None:
    target = work / member.name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    content = archive.extractfile(member)
    if content is None:
        raise tarfile.TarError(f"{member.name} has no content")
    target.parent.mkdir(parents=True, exist_ok=True)
    with content, target.open("wb") as file:
        shutil.copyfileobj(content, file)
    if member.mode & 0o100:
        target.chmod(0o755)


def _version_in(top: Path) -> str:
    try:
        text = (top / "PKG-INFO").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return "local"
    match = re.search(r"^Version: (\S+)$", text, re.MULTILINE)
    return match[1] if match and _VERSION.fullmatch(match[1]) else "local"


def _commit_in(top: Path, folder: Path, carried: PurePosixPath) -> str:
    """The commit of the program in `folder`: an sdist has the HEAD of the git submodule, a checkout its own HEAD."""
    git = top / ".git/modules" / carried if folder != top else top / ".git"
    text = _text_of(git / "HEAD")
    if text.startswith("ref: "):
        text = _text_of(git / text.removeprefix("ref: "))
    return text[:9] if re.fullmatch(r"[0-9a-f]{40}", text) else ""


def _text_of(path: Path) -> str:
    """Empty where there is no such file."""
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
