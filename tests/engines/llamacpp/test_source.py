import io
import re
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trilithon.engines.llamacpp import source
from trilithon.engines.llamacpp.source import fetch, open_source, sha256_of
from trilithon.errors import TrilithonError, UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SDIST = {
    "top/PKG-INFO": "Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 0.9.9\n",
    "top/.git/modules/vendor/llama.cpp/HEAD": f"{COMMIT}\n",
    "top/.git/HEAD": "f" * 40,
    "top/vendor/llama.cpp/CMakeLists.txt": "project(x)\n",
    "top/vendor/llama.cpp/.git": "gitdir: elsewhere\n",
    "top/vendor/llama.cpp/src/a.cpp": "int a;\n",
    "top/docs/long.md": "not needed\n",
}
# A package that pip can take for llama-cpp-python without fetching anything: its build backend is in the tree.
PACKAGE = {
    "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
    "backend.py": (
        "import os\n"
        "def prepare_metadata_for_build_wheel(folder, settings=None):\n"
        "    os.mkdir(os.path.join(folder, 'llama_cpp_python-0.9.9.dist-info'))\n"
        "    with open(os.path.join(folder, 'llama_cpp_python-0.9.9.dist-info', 'METADATA'), 'w') as file:\n"
        "        file.write('Metadata-Version: 2.1\\nName: llama_cpp_python\\nVersion: 0.9.9\\n')\n"
        "    return 'llama_cpp_python-0.9.9.dist-info'\n"
    ),
    "PKG-INFO": SDIST["top/PKG-INFO"],
    "vendor/llama.cpp/CMakeLists.txt": "project(x)\n",
}


def archive(path: Path, files: dict[str, str], *links: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o755 if name.endswith(".sh") else 0o644
            tar.addfile(member, io.BytesIO(content.encode()))
        for link in links:
            tar.addfile(link)
    return path


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


# -- archives and folders


def test_of_an_sdist_only_what_is_needed_is_unpacked(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", SDIST | {"top/vendor/llama.cpp/x.sh": "#!/bin/sh\n"})
    found = open_source(path, tmp_path / "work")
    assert found.folder == tmp_path / "work/top/vendor/llama.cpp"
    assert (found.version, found.commit, found.sha256) == ("0.9.9", COMMIT[:9], sha256_of(path))
    assert files_in(found.folder) == {"CMakeLists.txt", "src/a.cpp", "x.sh"}
    assert (found.folder / "x.sh").stat().st_mode & 0o111
    assert not (tmp_path / "work/top/docs").exists()


def test_an_archive_of_llama_cpp_itself(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", {"llama.cpp-b1/CMakeLists.txt": "x", "llama.cpp-b1/src/a": "y"})
    found = open_source(path, tmp_path / "work")
    assert (found.folder, found.version, found.commit) == (tmp_path / "work/llama.cpp-b1", "local", "")


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_damaged_archive_is_refused_in_a_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.tar.{kind}"
    with tarfile.open(path, f"w:{kind}") as tar:  # type: ignore[call-overload] # one of its modes
        for name in ("CMakeLists.txt", *(f"file{number}" for number in range(8))):
            member = tarfile.TarInfo(f"top/{name}")
            member.size = 40_000
            tar.addfile(member, io.BytesIO(b"".join(f"{name} {line}\n".encode() for line in range(4000))[:40_000]))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(255 - byte for byte in content[middle : middle + 64])
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be unpacked: .*; download it again$"):
        open_source(path, tmp_path / "work")


def test_an_archive_of_nothing_is_refused_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    (tmp_path / "empty").mkdir()
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "empty", ".")
    with pytest.raises(UserError, match="it is not a source archive"):
        open_source(path, tmp_path / "work")


def test_a_folder_is_used_where_it_is(tmp_path: Path) -> None:
    for name, content in SDIST.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    found = open_source(tmp_path / "top", tmp_path / "work")
    assert (found.folder, found.version, found.commit) == (tmp_path / "top/vendor/llama.cpp", "0.9.9", COMMIT[:9])
    assert not (tmp_path / "work").exists()


def test_a_checkout_knows_its_commit(tmp_path: Path) -> None:
    (tmp_path / ".git/refs/heads").mkdir(parents=True)
    (tmp_path / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / "CMakeLists.txt").write_text("")
    assert open_source(tmp_path, tmp_path).commit == ""
    (tmp_path / ".git/refs/heads/main").write_text(f"{COMMIT}\n")
    assert open_source(tmp_path, tmp_path).commit == COMMIT[:9]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"top/readme": "x"}, "no CMakeLists.txt"),
        ({"a/CMakeLists.txt": "x", "b/x": "x"}, "not a source archive"),
        ({}, "not a source archive"),
        ({"top/CMakeLists.txt": "x", "top/../../evil": "x"}, "is a path outside"),
        ({"top/CMakeLists.txt": "x", "top/a/../../b": "x"}, "is a path outside"),
        ({"/CMakeLists.txt": "x"}, "is a path outside"),
    ],
)
def test_an_archive_that_is_refused(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    work = tmp_path / "in/work"
    with pytest.raises(UserError, match=rf"cannot be unpacked: .*{reason}.*; download it again"):
        open_source(archive(tmp_path / "a.tar.gz", files), work)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"a.tar.gz", "CMakeLists.txt", "readme"}
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("top/link")
    link.type, link.linkname = kind, "/etc/passwd"
    with pytest.raises(UserError, match="top/link is neither a file nor a folder"):
        open_source(archive(tmp_path / "a.tar.gz", {"top/CMakeLists.txt": "x"}, link), tmp_path / "work")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["..", ".", "a", "b", "", "top", ".git"]), min_size=1, max_size=5))
def test_nothing_is_written_outside(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    home = tmp_path_factory.mktemp("archive")
    work = home / "x/y/work"
    path = archive(home / "a.tar.gz", {"top/CMakeLists.txt": "x", "/".join(["top", *parts, "evil"]): "x"})
    try:
        open_source(path, work)
    except UserError:
        assert ".." in parts
    outside = [each for each in home.rglob("*") if each.is_file() and not each.is_relative_to(work)]
    assert outside == [path]


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b rubbish", None])
def test_what_is_no_archive(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.tar.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be unpacked"):
        open_source(path, tmp_path / "work")


def test_an_archive_that_is_cut_short(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", SDIST | {"top/vendor/llama.cpp/big": "0123456789" * 5000})
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(UserError, match="cannot be unpacked"):
        open_source(path, tmp_path / "work")


def test_a_folder_without_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a source of llama\.cpp: it has no CMakeLists\.txt"):
        open_source(tmp_path, tmp_path)


# -- pip


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip looks into."""
    folder = tmp_path / "index"
    folder.mkdir()
    files = {f"llama_cpp_python-0.9.9/{name}": content for name, content in PACKAGE.items()}
    archive(folder / "llama_cpp_python-0.9.9.tar.gz", files)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_what_pip_fetched_is_kept(index: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    kept = fetch("0.9.9", cache)
    assert sha256_of(kept) == sha256_of(index / kept.name)
    (index / kept.name).unlink()
    assert fetch("0.9.9", cache) == kept  # no pip now
    assert {path.name for path in (cache / "sources").iterdir()} == {kept.name, "llama_cpp_python-0.9.9.tar.sha256"}


def test_a_kept_file_that_changed_is_fetched_again(index: Path, tmp_path: Path) -> None:
    kept = fetch("0.9.9", tmp_path / "cache")
    kept.write_bytes(b"damaged")
    assert fetch("0.9.9", tmp_path / "cache") == kept
    assert sha256_of(kept) == sha256_of(index / kept.name)


def test_a_file_that_is_not_the_known_one(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(source.LLAMA_CPP.sha256, "0.9.9", "0" * 64)
    with pytest.raises(TrilithonError, match=r"has another SHA-256 .* check pip's configuration"):
        fetch("0.9.9", tmp_path / "cache")
    assert list((tmp_path / "cache/sources").iterdir()) == []


def test_a_version_that_there_is_not(index: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no llama-cpp-python 0\.9\.8; leave --version out"):
        fetch("0.9.8", tmp_path / "cache")


def test_no_index(index: Path, tmp_path: Path) -> None:
    next(index.iterdir()).unlink()
    with pytest.raises(
        TrilithonError, match=r"pip cannot download llama-cpp-python .*; check the network, or use --source"
    ):
        fetch("0.9.9", tmp_path / "cache")


@pytest.mark.parametrize("version", ["", "latest", "--pre", "1.0 --pre", "1;x", "../1", "1"])
def test_what_is_no_version(tmp_path: Path, version: str) -> None:
    with pytest.raises(UserError, match="is not a version of llama-cpp-python"):
        fetch(version, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_python_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"no pip to download the source with; run: {sys.executable} -m ensurepip"):
        fetch("0.9.9", tmp_path)


def test_what_is_unpacked_is_completed_and_repaired(tmp_path: Path) -> None:
    package = replace(
        source.LLAMA_CPP,
        generated={"cmake/made.cmake": 'set(VERSION "$VERSION")'},
        repairs=(("server.cpp", re.compile(r"\n *fault\(\);"), ""), ("absent.cpp", re.compile("x"), "")),
    )
    files = {
        "top/CMakeLists.txt": "x",
        "top/server.cpp": "a;\n  fault();\nb;\n fault();\n",
        "top/PKG-INFO": "Version: 1.2",
    }
    tree = open_source(archive(tmp_path / "a.tar.gz", files), tmp_path / "work", package)
    assert (tree.folder / "server.cpp").read_text() == "a;\nb;\n"
    assert (tree.folder / "cmake/made.cmake").read_text() == 'set(VERSION "1.2")'
    # A folder is the user's: it gets what it lacks, and is not changed.
    (tree.folder / "server.cpp").write_text("a;\n  fault();\n")
    (tree.folder / "cmake/made.cmake").write_text("theirs")
    open_source(tree.folder, tmp_path / "other", package)
    assert (tree.folder / "server.cpp").read_text() == "a;\n  fault();\n"
    assert (tree.folder / "cmake/made.cmake").read_text() == "theirs"
