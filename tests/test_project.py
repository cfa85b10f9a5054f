"""pyproject.toml, constraints.txt, CONTRIBUTING.md and the issue forms agree with each other and with the code."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from trilithon.cli.main import main

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [
    Requirement(line) for line in [*PROJECT["dependencies"], *(line for name in EXTRAS for line in EXTRAS[name])]
]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
# Trilithon uses private parts of these: a version that nobody has tested may not have them.
PRIVATE = {"h11", "nicegui", "uvicorn", "xllamacpp"}


def constraints() -> dict[str, Version]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [Requirement(line) for line in text.splitlines() if not line.startswith("#")]
    return {canonicalize_name(line.name): Version(str(line.specifier).removeprefix("==")) for line in lines}


def upper_bound(specifiers: SpecifierSet) -> str | None:
    return next((part.version for part in specifiers if part.operator == "<"), None)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_a_dependency_has_a_lower_bound_and_a_version_in_constraints_within_its_bounds(
    requirement: Requirement,
) -> None:
    assert {part.operator for part in requirement.specifier} & {">=", "=="}
    assert constraints()[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("name", sorted(PRIVATE))
def test_an_upper_bound_where_private_parts_are_used(name: str) -> None:
    bounds = [upper_bound(requirement.specifier) for requirement in REQUIREMENTS if requirement.name == name]
    assert bounds and None not in bounds


def test_no_child_imports_from_the_working_folder() -> None:
    """`python -m` looks there first: a json.py in the folder where the server was started would be run."""
    unsafe = re.compile(r'sys\.executable, "-m"')
    paths = (ROOT / "src").rglob("*.py")
    assert [path.name for path in paths if unsafe.search(path.read_text(encoding="utf-8"))] == []


def test_private_modules_of_packages_are_those_with_an_upper_bound() -> None:
    private = re.compile(r"^\s*(?:from|import) (\w+)(?:\.\w+)*\._(?!_)", re.MULTILINE)
    users = {
        name for path in (ROOT / "src").rglob("*.py") for name in private.findall(path.read_text(encoding="utf-8"))
    }
    assert users - {"trilithon"} <= PRIVATE


def test_a_package_has_the_same_bounds_wherever_it_is_named() -> None:
    bounds: dict[str, set[str]] = {}
    for requirement in REQUIREMENTS:
        bounds.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    assert {name: texts for name, texts in bounds.items() if len(texts) > 1} == {}


def test_constraints_are_exact_and_name_no_host() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+( ; .+)?", line) for line in lines)
    assert "://" not in text
    assert not re.search(r"^\s*--", text, re.MULTILINE)


def test_make_installs_with_the_constraints() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(
        r"^INSTALL = PIP_CONSTRAINT=constraints\.txt PIP_BUILD_CONSTRAINT=constraints\.txt", makefile, re.MULTILINE
    )
    assert re.findall(r"pip install", makefile) == ["pip install"], "the one in INSTALL"


def test_the_classifiers_name_the_pythons_that_are_required() -> None:
    named = re.findall(r"^Programming Language :: Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    required = SpecifierSet(PROJECT["requires-python"])
    assert named == [f"3.{minor}" for minor in range(11, 11 + len(named))]
    assert len(named) >= 4
    assert all(version in required for version in named)
    assert "3.10" not in required


def test_contributing_names_targets_and_paths_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^)make ([a-z][a-z-]*)", CONTRIBUTING, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"\b(?:tests|scripts|benchmarks|docs)(?:/[a-z_.]+)+\b", CONTRIBUTING):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`((?:serve|web|engines|cli|runtime|models|board)/[a-z_/]+(?:\.py)?)`", CONTRIBUTING):
        assert (ROOT / "src" / "trilithon" / path).exists(), path


def test_links_of_the_papers_exist() -> None:
    for name in ("CONTRIBUTING.md", "SECURITY.md"):
        for target in re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text(encoding="utf-8")):
            assert "://" in target or (ROOT / target).exists(), f"{name}: {target}"


def test_tests_mirror_the_source() -> None:
    source, tests = ROOT / "src" / "trilithon", ROOT / "tests"
    packages = {path.name for path in source.iterdir() if (path / "__init__.py").exists()}
    assert {name for name in packages if not any((tests / name).rglob("test_*.py"))} == set()
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")}
    of_no_module = {"benchmarks", "compat", "docs", "emulated", "emulated/virtual_board", "scripts", "serve/faults"}
    assert {str(folder) for folder in folders if not (source / folder).is_dir()} <= of_no_module


def test_there_are_issue_forms() -> None:
    assert len(FORMS) >= 3


@pytest.mark.parametrize("form", [form for form in FORMS if form.name != "config.yml"], ids=lambda form: form.name)
def test_an_issue_form_asks_for_what_doctor_says(form: Path) -> None:
    fields = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= fields.keys()
    inputs = [field for field in fields["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in inputs}) == len(inputs)
    asked_for = [f"{field['attributes']['label']} {field['attributes'].get('description')}" for field in inputs]
    assert any("trilithon doctor --json" in text or "trilithon board-report" in text for text in asked_for)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_commands_in_issue_forms_parse(form: Path) -> None:
    for line in re.findall(r"`trilithon ([^`]+)`", form.read_text(encoding="utf-8")):
        words = shlex.split(line)
        command, context = main, main.make_context("trilithon", ["doctor"])
        while hasattr(command, "get_command") and words and not words[0].startswith("-"):
            command, words = command.get_command(context, words[0]), words[1:]
            assert command is not None, line
        known = {option for parameter in command.params for option in parameter.opts} | {"--version"}
        assert {word for word in words if word.startswith("-")} <= known, line
