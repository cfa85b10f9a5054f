"""scripts/release.py refuses, in one line with the fix, what is not ready to be released."""

from pathlib import Path

import pytest
from release_project import Project, release_project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return release_project(tmp_path / "project")


@pytest.mark.parametrize("words", [[], ["--dry-run"]], ids=["release", "dry run"])
@pytest.mark.parametrize(
    ("changelog", "reason"),
    [
        ("# Changelog\n\n## 1.1.0 – 2026-11-01\n", "pyproject.toml says 1.2.0, CHANGELOG.md begins with 1.1.0"),
        ("# Changelog\n\n## 1.2.0rc1 – 2026-12-01\n", "CHANGELOG.md begins with 1.2.0rc1"),
        ("# Changelog\n", "CHANGELOG.md has no head"),
    ],
    ids=["older", "similar", "none"],
)
def test_another_version_in_the_changelog(project: Project, changelog: str, reason: str, words: list[str]) -> None:
    project.write("CHANGELOG.md", changelog)
    project.commit()
    refusal = project.refusal(*words)
    assert reason in refusal
    assert "write `## 1.2.0 – YYYY-MM-DD`" in refusal


def test_no_date(project: Project) -> None:
    project.write("CHANGELOG.md", "## 1.2.0 – unreleased\n")
    project.commit()
    project.git("tag", "v1.2.0")
    assert "CHANGELOG.md calls 1.2.0 'unreleased'" in project.refusal()


@pytest.mark.parametrize(
    ("name", "text"), [("new.txt", "new"), ("CHANGELOG.md", "## 1.2.0 – 2026-12-02\n")], ids=["untracked", "changed"]
)
def test_changes_that_are_not_committed(project: Project, name: str, text: str) -> None:
    project.git("tag", "v1.2.0")
    project.write(name, text)
    assert "not committed" in project.refusal()
    assert "not committed" in project.refusal("--dry-run")


def test_no_tag(project: Project) -> None:
    assert project.refusal().endswith("needs the tag v1.2.0 and has none; run: git tag -a v1.2.0 -m v1.2.0")


def test_another_tag(project: Project) -> None:
    project.git("tag", "v1.1.0")
    assert "needs the tag v1.2.0 and has only v1.1.0" in project.refusal()


def test_the_tag_of_an_earlier_commit(project: Project) -> None:
    project.git("tag", "v1.2.0")
    project.write("src/trilithon/late.py", "")
    project.commit()
    assert "needs the tag v1.2.0 and has none" in project.refusal()


def test_files_of_another_release(project: Project) -> None:
    project.git("tag", "v1.2.0")
    project.write("dist/trilithon-1.1.0.tar.gz", "")
    assert "dist/ holds the files of another release" in project.refusal()


@pytest.mark.parametrize("left_out", ["facts.toml", "__init__.py"])
def test_a_wheel_that_lacks_a_file(project: Project, left_out: str) -> None:
    backend = (project.root / "backend.py").read_text(encoding="utf-8")
    project.write("backend.py", backend.replace("LEFT_OUT = set()", f"LEFT_OUT = {{{left_out!r}}}"))
    project.commit()
    refusal = project.refusal("--dry-run")
    assert f"trilithon-1.2.0-py3-none-any.whl lacks src/trilithon/{left_out}" in refusal
    assert not (project.root / "dist").exists()


def test_a_source_archive_that_lacks_a_file(project: Project) -> None:
    backend = (project.root / "backend.py").read_text(encoding="utf-8")
    keep = 'filter=lambda member: None if "facts" in member.name else member'
    project.write("backend.py", backend.replace('/{name}")', f'/{{name}}", {keep})'))
    project.commit()
    # The wheel is made from it, and so lacks the file too.
    assert "lacks src/trilithon/facts.toml" in project.refusal("--dry-run")


def test_a_file_that_git_does_not_know(project: Project) -> None:
    backend = (project.root / "backend.py").read_text(encoding="utf-8")
    more = 'wheel.writestr("trilithon/debug.py", ""); wheel.writestr("trilithon-1.2.0.dist-info/RECORD"'
    project.write("backend.py", backend.replace('wheel.writestr("trilithon-1.2.0.dist-info/RECORD"', more))
    project.commit()
    refusal = project.refusal("--dry-run")
    assert "has src/trilithon/debug.py, which git does not know" in refusal
