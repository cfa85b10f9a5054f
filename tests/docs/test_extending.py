"""The examples of docs/extending.md work: each section is applied to a copy of the repository, and its commands run."""

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("src", "tests", "docs", "scripts", "packaging", "README.md", "CHANGELOG.md", "Makefile", "pyproject.toml")
FENCE = re.compile(r"(?:^`(?P<path>[^`\n]+)`:\n\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
STANDIN = ROOT / "tests" / "engines" / "rk_llamacpp" / "standin" / "llama_server.py"
# A llama-server as far as its command line goes; the wheel's server does the work.
SERVER = """#!{python} -P
import runpy, sys
standin = runpy.run_path({standin!r})
if sys.argv[1] == "--version":
    print("version: 8673 (8df5be13c)")
else:
    standin["become_a_server"](standin["options"](sys.argv[1:]), set())
"""


def _sections() -> dict[str, str]:
    """The text by title, after the page's introduction, whose commands each section needs."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    introduction, *parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    return {title: introduction + text for title, text in zip(parts[::2], parts[1::2], strict=True)}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository, with the server that the first example names on PATH."""
    root = tmp_path / "repository"
    root.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, symlinks=True)  # one page of the documents is in the package too
        else:
            shutil.copy(source, root / name)
    program = tmp_path / "bin" / "myfork-server"
    program.parent.mkdir()
    program.write_text(SERVER.format(python=sys.executable, standin=str(STANDIN)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return root


def _edit(file: Path, diff: str) -> None:
    """Replace the lines with " " and "-" by those with " " and "+". They occur once in the file."""
    lines = [(line[:1] or " ", line[1:]) for line in diff.splitlines()]
    old = "".join(f"{text}\n" for mark, text in lines if mark != "+")
    new = "".join(f"{text}\n" for mark, text in lines if mark != "-")
    content = file.read_text(encoding="utf-8")
    assert content.count(old) == 1, f"{file.name} has {content.count(old)} times:\n{old}"
    file.write_text(content.replace(old, new), encoding="utf-8")


def _run(words: Sequence[str], root: Path) -> str:
    """Its stdout."""
    folder = root.parent
    packages = folder / "packages"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRILITHON_", "PYTEST_"))}
    environment |= {
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{root / 'src'}:{packages}",
        "PIP_TARGET": str(packages),  # nothing is installed into the environment that runs the tests
        "PIP_NO_INDEX": "1",
    }
    done = subprocess.run(
        words, cwd=root, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("title", _sections())
def test_an_example_works(title: str, copy: Path) -> None:
    blocks = list(FENCE.finditer(_sections()[title]))
    assert "sh" in {block["kind"] for block in blocks[-2:]}, "an example ends with the commands that check it"
    output, changed = "", set[str]()
    for block in blocks:
        path, kind, text = block["path"], block["kind"], block["text"]
        if kind == "sh":
            output = _run(["bash", "-euo", "pipefail", "-c", text], copy)
        elif kind == "text":
            assert text in output
        elif kind == "diff":
            _edit(copy / path, text)
        else:
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            (copy / path).write_text(text, encoding="utf-8")
        changed |= {path} if path and path.endswith(".py") else set()
    _run(["ruff", "check", *changed], copy)
    _run(["ruff", "format", "--check", *changed], copy)
