"""Build a release and check it as a user would get it: python scripts/release.py [--dry-run].

The version, the head of CHANGELOG.md and the tag must agree, and the tree must be clean. Both archives are built from
the last commit, compared with its files, installed into an empty environment each, and measure the demo model there.
Then they lie in dist/. A dry run needs neither tag nor date, and keeps nothing.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

from _environments import ROOT, environment, output_of, refuse, uv

__all__ = ["check_agreement", "check_files", "check_installed", "main"]

_HEAD = re.compile(r"^## (?P<version>\S+) – (?P<date>.+)$", re.MULTILINE)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_PLACEMENT = "llama.cpp@embedded/cpu"
_BENCH = [
    "bench",
    "-p",
    "64",
    "-n",
    "16",
    "-r",
    "1",
    "--placement",
    _PLACEMENT,
    "--test",
    "pp",
    "--test",
    "tg",
    "-o",
    "json",
]


def check_agreement(*, dry_run: bool) -> str:
    """The version that pyproject.toml, the changelog and, but for a dry run, the tag of the last commit agree on."""
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    head = _HEAD.search((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    if head is None or head["version"] != version:
        where = "has no head" if head is None else f"begins with {head['version']}"
        refuse(
            f"pyproject.toml says {version}, CHANGELOG.md {where}; write `## {version} – YYYY-MM-DD` above the changes"
        )
    if output_of("git", "status", "--porcelain"):
        refuse("the tree has changes that are not committed; commit them, see git status")
    if not dry_run:
        _check_date(version, head["date"])
        _check_tag(version)
        _check_empty(ROOT / "dist")
    return version


def _check_date(version: str, date: str) -> None:
    if not _DATE.fullmatch(date):
        refuse(f"CHANGELOG.md calls {version} {date!r}; write the day of the release, YYYY-MM-DD, and commit it")


def _check_tag(version: str) -> None:
    tags = output_of("git", "tag", "--points-at", "HEAD").split()
    if f"v{version}" not in tags:
        named = f"only {', '.join(tags)}" if tags else "none"
        refuse(f"the last commit needs the tag v{version} and has {named}; run: git tag -a v{version} -m v{version}")


def _check_empty(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        refuse("dist/ holds the files of another release; run: rm -r dist")


def build(folder: Path) -> tuple[Path, Path]:
    """The source archive, and the wheel that is built from it, of the last commit."""
    source = folder / "source"
    source.mkdir()
    archive = folder / "source.tar"
    output_of("git", "archive", "--output", archive, "HEAD")
    with tarfile.open(archive) as file:
        file.extractall(source, filter="data")
    constraints = ("--build-constraints", ROOT / "constraints.txt") if (ROOT / "constraints.txt").exists() else ()
    uv("build", "--quiet", "--out-dir", folder / "dist", *constraints, source)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    return sdist, wheel


def check_files(sdist: Path, wheel: Path) -> None:
    """Both archives have exactly the files that git has below src/: a missing one would fail only where installed."""
    committed = set(output_of("git", "ls-files", "src").splitlines())
    with zipfile.ZipFile(wheel) as file:
        in_wheel = {f"src/{name}" for name in file.namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    in_sdist = {name for name in names if name.startswith("src/") and ".egg-info/" not in name}
    for path, packed in ((wheel, in_wheel), (sdist, in_sdist)):
        if missing := sorted(committed - packed):
            refuse(f"{path.name} lacks {', '.join(missing)}; see package-data in pyproject.toml")
        if extra := sorted(packed - committed):
            refuse(f"{path.name} has {', '.join(extra)}, which git does not know")


def check_installed(artefact: Path, version: str) -> None:
    """Installs it into an empty environment and measures the demo model, with folders of its own."""
    print(f"Checking {artefact.name}", flush=True)
    with environment(sys.executable) as programs, tempfile.TemporaryDirectory(prefix="trilithon-") as home:
        uv("pip", "install", "--quiet", "--python", programs / "python", f"trilithon[demo] @ {artefact.as_uri()}")
        surroundings = _surroundings(home)
        told = output_of(programs / "trilithon", "--version", cwd=Path(home), env=surroundings).split()[-1]
        if told != version:
            refuse(f"{artefact.name} installs version {told}, not {version}")
        rows = json.loads(output_of(programs / "trilithon", *_BENCH, cwd=Path(home), env=surroundings))
        rates = {(row["n_prompt"], row["n_gen"]): row["avg_ts"] for row in rows}
        if not (rates.get((64, 0), 0) > 0 < rates.get((0, 16), 0)):
            refuse(f"{artefact.name} did not measure the demo model: {rates}")


def _surroundings(home: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRILITHON_", "XDG_", "PYTHON"))}
    return kept | {"HOME": home}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="needs neither tag nor date, and keeps nothing")
    words = parser.parse_args()
    version = check_agreement(dry_run=words.dry_run)
    with tempfile.TemporaryDirectory(prefix="trilithon-release-") as folder:
        artefacts = build(Path(folder))
        check_files(*artefacts)
        for artefact in artefacts:
            check_installed(artefact, version)
        if words.dry_run:
            print(f"{version} can be released: set the date in CHANGELOG.md, commit, tag v{version}")
            return 0
        (ROOT / "dist").mkdir(exist_ok=True)
        for artefact in artefacts:
            print(shutil.copy(artefact, ROOT / "dist"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
