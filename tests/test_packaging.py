"""What the container file calls is there, and it is no root."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from trilithon.cli.main import main

CONTAINER = Path(__file__).parent.parent / "packaging/Containerfile"


def called() -> list[str]:
    """Every `trilithon …` in the file, comments too."""
    text = CONTAINER.read_text(encoding="utf-8").replace("\\\n#", " ")
    lines = re.findall(r"(?:/data trilithon|`trilithon) ([a-z][^`#\n]*)", text)
    (words,) = re.findall(r"^CMD (.*)", text, re.MULTILINE)
    return [*dict.fromkeys(line.strip() for line in lines), " ".join(json.loads(words))]


@pytest.mark.parametrize("line", called())
def test_what_is_called_is_there(line: str) -> None:
    command: click.Command = main
    # With its settings: click remembers in a command how its help was first asked for.
    context = click.Context(main, info_name="trilithon", **main.context_settings)
    words = shlex.split(line)
    while isinstance(command, click.Group):
        subcommand = command.get_command(context, words[0])
        assert subcommand is not None, line
        command, words = subcommand, words[1:]
    command.make_context(line, words, parent=context)


def test_there_is_something_called() -> None:
    assert len(called()) >= 4


def test_everything_that_a_link_of_the_sources_leads_to_is_copied() -> None:
    root = CONTAINER.parent.parent
    copied = [line.split()[1:-1] for line in re.findall(r"^COPY (?!--).*", CONTAINER.read_text("utf-8"), re.MULTILINE)]
    places = [root / word for words in copied for word in words]
    links = [path for path in (root / "src").rglob("*") if path.is_symlink()]
    assert links
    assert [link for link in links if not any(link.resolve().is_relative_to(place) for place in places)] == []


def test_the_container_is_no_root() -> None:
    text = CONTAINER.read_text(encoding="utf-8")
    assert re.findall(r"^USER (\d+)", text, re.MULTILINE) == ["10001"]
    assert "--privileged" not in text
    assert "--cap-drop all" in text
