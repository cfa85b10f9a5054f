"""A small project with the scripts in it, in a git repository of its own."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_SCRIPTS = Path(__file__).parents[2] / "scripts"
_PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "trilithon"
version = "1.2.0"
"""
# Packs the source archive, and the wheel from it, without a package that would have to be installed first.
_BACKEND = """\
import tarfile, zipfile
from pathlib import Path

LEFT_OUT = set()

def build_sdist(folder, settings=None):
    with tarfile.open(Path(folder, "trilithon-1.2.0.tar.gz"), "w:gz") as archive:
        for name in ("pyproject.toml", "backend.py", "src"):
            archive.add(name, f"trilithon-1.2.0/{name}")
    return "trilithon-1.2.0.tar.gz"

def build_wheel(folder, settings=None, metadata=None):
    name = "trilithon-1.2.0-py3-none-any.whl"
    with zipfile.ZipFile(Path(folder, name), "w") as wheel:
        for path in Path("src").rglob("*.*"):
            if path.name not in LEFT_OUT:
                wheel.write(path, path.relative_to("src"))
        metadata = "Metadata-Version: 2.4\\nName: trilithon\\nVersion: 1.2.0\\n"
        wheel.writestr("trilithon-1.2.0.dist-info/METADATA", metadata)
        tags = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr("trilithon-1.2.0.dist-info/WHEEL", tags)
        wheel.writestr("trilithon-1.2.0.dist-info/RECORD", "")
    return name
"""


@dataclass(frozen=True, slots=True)
class Project:
    root: Path

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def git(self, *words: str) -> None:
        identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
        subprocess.run(["git", *identity, *words], cwd=self.root, check=True, capture_output=True)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "All of it")

    def run(self, script: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, self.root / "scripts" / script, *words]
        return subprocess.run(command, capture_output=True, text=True)

    def refusal(self, *words: str) -> str:
        """What release.py says when it refuses: one line."""
        done = self.run("release.py", *words)
        assert done.returncode == 2, done.stderr
        *before, last = done.stderr.splitlines()
        assert before == [], done.stderr
        return last


def release_project(root: Path) -> Project:
    """Ready to be released, but for its tag."""
    made = Project(root)
    shutil.copytree(_SCRIPTS, root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    made.write("pyproject.toml", _PYPROJECT)
    made.write("backend.py", _BACKEND)
    made.write("CHANGELOG.md", "# Changelog\n\n## 1.2.0 – 2026-12-01\n\nNew.\n\n## 1.1.0 – 2026-11-01\n\nOld.\n")
    made.write("src/trilithon/__init__.py", "")
    made.write("src/trilithon/facts.toml", "")
    made.write(".gitignore", "__pycache__/\ndist/\n")
    made.git("init", "--quiet")
    made.commit()
    return made
