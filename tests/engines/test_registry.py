import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.engines.registry import Registered, add, check_name, registered, remove
from trilithon.errors import UserError
from trilithon.settings import Configuration


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache")


def entry(name: str, folder: str | None = None, **facts: object) -> Registered:
    return Registered(name=name, folder=Path(folder or f"/builds/{name}"), facts=facts)


def test_what_was_added_is_there_in_order(configuration: Configuration) -> None:
    assert registered(configuration) == []
    entries = [entry("b", seconds=1.5), entry("a", flags={"GGML_NATIVE": "ON"})]
    for each in entries:
        add(configuration, each)
    assert registered(configuration) == entries


def test_a_folder_is_there_once_under_its_last_name(configuration: Configuration) -> None:
    add(configuration, entry("one", "/x"))
    add(configuration, entry("two", "/x"))
    assert [each.name for each in registered(configuration)] == ["two"]


def test_a_name_stays_with_its_folder(configuration: Configuration) -> None:
    add(configuration, entry("one", "/x"))
    with pytest.raises(UserError, match="one is already the build in /x; choose another name with --name"):
        add(configuration, entry("one", "/y"))
    assert registered(configuration) == [entry("one", "/x")]


def test_removing(configuration: Configuration) -> None:
    add(configuration, entry("one"))
    add(configuration, entry("two"))
    assert remove(configuration, "one") == entry("one")
    assert registered(configuration) == [entry("two")]
    with pytest.raises(UserError, match="no build called one was added; there are two"):
        remove(configuration, "one")


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"name": "x"}]', "\0\0\0\0"])
def test_a_damaged_file_is_told(configuration: Configuration, content: str) -> None:
    configuration.data.mkdir()
    file = configuration.data / "builds.json"
    file.write_text(content)
    for act in (registered, lambda c: add(c, entry("x")), lambda c: remove(c, "x")):
        with pytest.raises(UserError, match=r"builds\.json is damaged .* remove it, and add the builds again"):
            act(configuration)
    assert file.read_text() == content


@pytest.mark.parametrize("name", ["", "-x", ".x", "a/b", "a b", "a@b", "a:b", "a,b", "é", "a\n", "x" * 65])
def test_a_name_that_a_placement_cannot_spell(configuration: Configuration, name: str) -> None:
    with pytest.raises(UserError, match="is not a valid name of a build"):
        add(configuration, entry(name, "/x"))
    assert registered(configuration) == []


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True))
def test_any_other_name_can_be_spelled(name: str) -> None:
    from trilithon.engines.placement_spec import parse_placement

    check_name(name)
    assert parse_placement(f"engine@{name}/cpu").build == name


def test_processes_at_once_lose_nothing(configuration: Configuration) -> None:
    code = (
        "import sys; from pathlib import Path; from trilithon.settings import Configuration;"
        "from trilithon.engines.registry import *;"
        "c = Configuration(data=Path(sys.argv[1]), cache=Path(sys.argv[1]));"
        "[add(c, Registered(name=f'{sys.argv[2]}-{n}', folder=Path(f'/{sys.argv[2]}/{n}'))) for n in range(20)];"
        "[remove(c, f'{sys.argv[2]}-{n}') for n in range(10)]"
    )
    words = [sys.executable, "-c", code, str(configuration.data)]
    writers = [subprocess.Popen([*words, name]) for name in "abcd"]
    assert [writer.wait(30) for writer in writers] == [0] * 4
    assert {each.name for each in registered(configuration)} == {f"{w}-{n}" for w in "abcd" for n in range(10, 20)}
    assert {path.name for path in configuration.data.iterdir()} == {"builds.json", "builds.lock"}


def test_a_write_that_fails_leaves_the_old_file(configuration: Configuration, monkeypatch: pytest.MonkeyPatch) -> None:
    add(configuration, entry("one"))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device; free some space there"):
        add(configuration, entry("two"))
    assert json.loads((configuration.data / "builds.json").read_text())[0]["name"] == "one"
    assert {path.name for path in configuration.data.iterdir()} == {"builds.json", "builds.lock"}


def test_a_data_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    configuration = Configuration(data=tmp_path / "file", cache=tmp_path)
    assert registered(configuration) == []
    with pytest.raises(UserError, match="cannot be written"):
        add(configuration, entry("one"))
