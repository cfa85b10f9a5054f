"""What the scripts share: a virtual environment that is removed again, uv, and an end with one line."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

__all__ = ["ROOT", "environment", "output_of", "refuse", "run_fast_tests", "uv"]

ROOT = Path(__file__).resolve().parent.parent

_FAST_TESTS = ["-q", "-m", "not slow", "--hypothesis-profile=usual", "--dist", "loadfile", "--no-loadscope-reorder"]


@contextlib.contextmanager
def environment(python: str) -> Iterator[Path]:
    """A virtual environment with only pip, for this Python (a version or a path). Gives the folder of its programs."""
    with tempfile.TemporaryDirectory(prefix="trilithon-") as folder:
        uv("venv", "--quiet", "--no-project", "--no-python-downloads", "--python", python, f"{folder}/venv")
        # Trilithon fetches llama.cpp's source with it.
        uv("pip", "install", "--quiet", "--python", f"{folder}/venv/bin/python", "pip")
        yield Path(folder, "venv", "bin")


def uv(*words: str | Path) -> None:
    """uv from the environment that runs the script, else from PATH."""
    program = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    if program is None:
        refuse("uv is missing; run the script with .venv/bin/python after `make check`, or install uv")
    if subprocess.run([program, *words], cwd=ROOT).returncode:
        refuse(f"`uv {' '.join(map(str, words))}` failed, see above")


def output_of(*words: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(words, cwd=cwd, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        refuse(f"`{' '.join(map(str, words))}` failed with exit code {done.returncode}, see above")
    return done.stdout


def run_fast_tests(programs: Path, words: Sequence[str]) -> int:
    """With the interpreter of an environment; `words` go to pytest. Returns pytest's exit code."""
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(programs / "python"), "-m", "pytest", *_FAST_TESTS, *words]
    return subprocess.run(command, cwd=ROOT, env=surroundings).returncode


def refuse(reason: str) -> NoReturn:
    print(f"error: {reason}", file=sys.stderr)
    raise SystemExit(2)
