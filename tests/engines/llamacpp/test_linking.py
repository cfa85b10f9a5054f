"""Builds that lack a shared library of the system: real libraries and programs, made by the compiler."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

from trilithon.engines.causes import CAUSES_FILE, read_causes
from trilithon.engines.llamacpp import engine as module
from trilithon.engines.llamacpp import programs as programs_module
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.engines.llamacpp.linking import missing_libraries
from trilithon.engines.rk_llamacpp.engine import RkLlamaCpp
from trilithon.settings import Configuration

PACKAGES = read_causes(files("trilithon.engines.llamacpp") / CAUSES_FILE).packages


def is_absent(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return True
    return False


@pytest.fixture(scope="module")
def known() -> str:
    """A library whose package is known, and that this machine does not have."""
    absent = next(filter(is_absent, PACKAGES), None)
    return absent or pytest.skip("every library is installed here")


@pytest.fixture
def linked(tmp_path: Path) -> Callable[..., Path]:
    """Makes a library or program that needs others, which are removed."""
    if shutil.which("cc") is None or shutil.which("ldd") is None:
        pytest.skip("the C compiler or ldd is missing")

    def make(path: Path, *needed: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = []
        for number, soname in enumerate(needed):
            parts.append(tmp_path / f"part{number}.so")
            source = parts[-1].with_suffix(".c")
            source.write_text(f"int part{number}(void) {{ return 0; }}\n")
            subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", parts[-1], source], check=True)
        calls = "".join(f"int part{number}(void); " for number in range(len(needed)))
        uses = " + ".join(["0", *(f"part{number}()" for number in range(len(needed)))])
        source = tmp_path / "whole.c"
        source.write_text(f"{calls} int main(void) {{ return {uses}; }}\n")
        kind = ["-shared", "-fPIC"] if path.suffix == ".so" else []
        subprocess.run(["cc", *kind, "-o", path, source, *parts], check=True)
        for part in parts:
            part.unlink()
        return path

    return make


@pytest.fixture
def lacking(linked: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LlamaCpp]:
    """The engine with a package that needs these libraries, and no other build."""

    def make(*needed: str, builds: tuple[Path, ...] = ()) -> LlamaCpp:
        extension = linked(tmp_path / "site" / "xllamacpp" / "xllamacpp.abi3.so", *needed)
        extension.with_name("__init__.py").write_text("raise AssertionError('only the child loads it')\n")
        monkeypatch.syspath_prepend(tmp_path / "site")
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setattr(programs_module, "_WHEEL", "no-such-package")
        monkeypatch.setattr(module, "version", lambda _: "0")
        return LlamaCpp(Configuration(data=tmp_path / "data", cache=tmp_path / "cache", builds=builds))

    return make


def test_libraries_and_their_packages(linked: Callable[..., Path], tmp_path: Path, known: str) -> None:
    assert missing_libraries(linked(tmp_path / "a" / "whole.so")) == ""
    assert missing_libraries(linked(tmp_path / "b" / "whole.so", "libnone.so.7")) == "libnone.so.7 is missing"
    both = missing_libraries(linked(tmp_path / "c" / "whole.so", "libnone.so.7", known))
    assert both == f"libnone.so.7, {known} are missing; run: sudo apt install {PACKAGES[known]}"
    assert missing_libraries(tmp_path / "absent.so") == ""


def test_a_package_that_cannot_be_loaded_is_no_build(lacking: Callable[..., LlamaCpp], known: str) -> None:
    engine = lacking(known)
    assert engine.builds() == []
    assert engine.missing() == (
        f"the xllamacpp package cannot be loaded: {known} is missing; run: sudo apt install {PACKAGES[known]}"
    )
    assert engine.problems() == ()


def test_a_package_with_all_its_libraries_is_a_build(lacking: Callable[..., LlamaCpp]) -> None:
    engine = lacking()
    assert [build.name for build in engine.builds()] == ["embedded"]
    assert (engine.missing(), engine.problems()) == ("", ())


def test_a_program_that_cannot_be_loaded_is_no_build(
    linked: Callable[..., Path], lacking: Callable[..., LlamaCpp], tmp_path: Path
) -> None:
    path = linked(tmp_path / "mine" / "llama-server", "libnone.so.7")
    engine = lacking(builds=(path.parent,))
    assert [build.name for build in engine.builds()] == ["embedded"]
    assert engine.problems() == (f"{path} cannot be started: libnone.so.7 is missing",)
    path.with_name("libggml-rknpu2.so").touch()
    assert RkLlamaCpp(engine._configuration).builds() == []


def test_what_another_build_lacks_is_a_problem(
    linked: Callable[..., Path], lacking: Callable[..., LlamaCpp], tmp_path: Path
) -> None:
    path = linked(tmp_path / "mine" / "llama-server")
    engine = lacking("libnone.so.7", builds=(path.parent,))
    assert [build.name for build in engine.builds()] == ["native"]
    assert engine.problems() == ("the xllamacpp package cannot be loaded: libnone.so.7 is missing",)
