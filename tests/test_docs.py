"""The documents match the program: commands parse, generated pages are current, named files and links exist."""

import ast
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from parsed_source import parsed

from trilithon.cli.main import main

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "README.ru.md", *sorted((ROOT / "docs").glob("*.md"))]


def _commands() -> list[str]:
    """Every line in a code block of a document that calls trilithon, without its prompt and comment."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```(?:console|sh)\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL):
            lines = [line.removeprefix("$ ").strip() for line in block.splitlines()]
            found += [line for line in lines if line.startswith("trilithon ")]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("line", _commands())
def test_a_documented_command_parses(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LANGUAGE", "TRILITHON_LANG"):  # which --lang sets
        monkeypatch.setenv(name, "")
    words = shlex.split(line.partition(" > ")[0].partition(" | ")[0], comments=True)[1:]
    command: click.Command = main
    # With its settings: click remembers in a command how its help was first asked for.
    context = click.Context(main, info_name="trilithon", **main.context_settings)
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0]) if words else None
        if found is None:
            break
        command, words = found, words[1:]
    try:
        command.make_context("trilithon", list(words), parent=context)
    except click.exceptions.Exit as done:  # --help, --version
        assert done.exit_code == 0


def test_there_are_documented_commands() -> None:
    assert len(_commands()) >= 5


def test_the_command_reference_is_fresh() -> None:
    # In a process of its own, as `make docs` does: click remembers in a command how its help was first asked for.
    words = [sys.executable, str(ROOT / "scripts" / "commands_page.py")]
    made = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == made, "run: make docs"


def test_the_picture_of_the_imports_is_fresh() -> None:
    words = [sys.executable, str(ROOT / "scripts" / "architecture.py")]
    drawn = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "pictures" / "architecture.svg").read_text(encoding="utf-8") == drawn, "run: make docs"


EVIDENCE = runpy.run_path(str(ROOT / "scripts" / "evidence_page.py"))


def test_the_page_of_evidence_is_fresh() -> None:
    words = [sys.executable, str(ROOT / "scripts" / "evidence_page.py")]
    made = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8") == made, "run: make docs"
    kinds = re.findall(r"^\| (\w+) \| ", made, re.MULTILINE)
    assert [kind for kind, _ in groupby(kinds)] == list(EVIDENCE["KINDS"])


@pytest.mark.parametrize("path", EVIDENCE["standins"](), ids=lambda path: str(path.relative_to(ROOT / "tests")))
def test_a_stand_in_says_where_its_behaviours_are_known_from(path: Path) -> None:
    assert list(EVIDENCE["read"](path)), "write for each behaviour: known(KIND): ADDRESS: BEHAVIOUR"


def test_the_stand_ins_of_foreign_programs_are_noticed() -> None:
    names = {str(path.relative_to(ROOT / "tests")) for path in EVIDENCE["standins"]()}
    assert names >= {
        "engines/rkllm/standin/standin.c",
        "engines/rkllm/standin/abi.h",
        "engines/rkllm/child/test_vision.py",
        "engines/rkllm/test_convert.py",
        "engines/rk_llamacpp/standin/llama_server.py",
        "engines/llamacpp/test_convert.py",
        "engines/llamacpp/test_compile.py",
        "engines/llamacpp/test_gpu.py",
        "engines/llamacpp/test_quantize.py",
        "models/standins/standin_hub.py",
        "models/standins/standin_registry.py",
        "models/standins/standin_web.py",
        "standins/standin_quantizer.py",
    }
    assert not names & {"test_docs.py", "standins/device_tree.py", "standins/process_table.py"}


@pytest.mark.parametrize(
    ("text", "kind", "addresses", "behaviour"),
    [
        ("# known(guess): it may hang: anywhere", "guess", (), "it may hang: anywhere"),
        ("/* known(log): a/b#1, c.d/e-f#22: says: no */", "log", ("a/b#1", "c.d/e-f#22"), "says: no"),
        (" * known(header): x.h 1.2.0 to 1.2.3: sizes", "header", ("x.h 1.2.0 to 1.2.3",), "sizes"),
        ("// known(source): a/b@0123abc d/e.cpp: text", "source", ("a/b@0123abc d/e.cpp",), "text"),
        ("    # known(source): a-b_c 2.4.0 d/e.py: x", "source", ("a-b_c 2.4.0 d/e.py",), "x"),
        ("# known(documentation): Some guide 1.3.0: x", "documentation", ("Some guide 1.3.0",), "x"),
        ("# known(ran): GLIBC 2.36: x", "ran", ("GLIBC 2.36",), "x"),
    ],
)
def test_a_statement_is_read(tmp_path: Path, text: str, kind: str, addresses: tuple[str, ...], behaviour: str) -> None:
    (tmp_path / "standin.c").write_text(f"int x;\n{text}\nint y; /* it is not known(guess): here */\n")
    (statement,) = EVIDENCE["read"](tmp_path / "standin.c")
    assert (statement.line, statement.kind, statement.addresses) == (2, kind, addresses)
    assert statement.behaviour == behaviour


@pytest.mark.parametrize(
    "text",
    [
        "# known(rumour): a/b#1: x",
        "# known(log): a/b: x",
        "# known(log): b#1: x",
        "# known(log): a/b#1 c/d#2: x",
        "# known(log): a/b#1",
        "# known(report): x",
        "# known(report): : x",
        "# known(header): rkllm.h: x",
        "# known(source): somewhere: x",
        "# known(ran): here: x",
        "# known(documentation): the manual: x",
        "# known(guess) x",
        "# known (guess): x",
        "# known(guess): ",
    ],
)
def test_a_statement_that_is_not_well_formed_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "standin.py").write_text(f"\n{text}\n")
    with pytest.raises(ValueError, match=r"^standin\.py:2: "):
        list(EVIDENCE["read"](tmp_path / "standin.py"))


def test_the_table_of_packages_is_that_of_the_layers() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("| packages | purpose |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = [set(re.findall(r"`(\w+)`", line.split("|")[1])) for line in table.splitlines()]
    layers = parsed(ROOT / "tests" / "test_layers.py")
    floors = next(
        ast.literal_eval(node.value)
        for node in layers.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "FLOORS"
    )
    assert rows == floors[::-1]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_named_source_files_exist(document: Path) -> None:
    """`bench/checks.py` is below src/trilithon, `tests/test_layers.py` below the repository's root. A name with a colon
    at the end of its line is that of an example's file."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for name in re.findall(r"`((?:\w+/)+\w+\.(?:py|txt|toml))`(?!:\n)", text):
        assert (ROOT / name).exists() or (ROOT / "src" / "trilithon" / name).exists(), name


def test_every_dependency_has_its_line_in_the_readme() -> None:
    extras = PROJECT["optional-dependencies"]
    for requirement in [*PROJECT["dependencies"], *extras["demo"]]:
        name = re.split(r"[<>=\[ ;]", requirement)[0]
        assert re.search(rf"^\| `{re.escape(name)}` \|", README, re.MULTILINE), name


def test_the_version_heads_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## (\S+)", changelog, re.MULTILINE)
    assert heads[0] == PROJECT["version"]


def _links(document: Path) -> list[str]:
    """The targets of a document's links and pictures, less the addresses of other hosts."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text)
    return [target for target in targets if "://" not in target]


def _anchors(document: Path) -> set[str]:
    """What GitHub makes of headings: lower case, words joined by hyphens, punctuation dropped."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_pictures_and_links_exist(document: Path) -> None:
    for target in _links(document):
        path, _, anchor = target.partition("#")
        linked = (document.parent / path) if path else document
        assert linked.exists(), target
        assert not anchor or anchor in _anchors(linked), target


def test_the_site_has_every_page() -> None:
    def pages(entries: list[Any]) -> Iterator[str]:
        for entry in entries:
            yield from [entry] if isinstance(entry, str) else pages(next(iter(entry.values())))

    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = [*pages(site["nav"])]
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_index_links_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in _links(index)}
    assert {path.resolve() for path in DOCUMENTS} - {index.resolve(), ROOT / "README.ru.md"} <= linked
    assert index.resolve() in {(ROOT / target).resolve() for target in _links(ROOT / "README.md")}
