import os
from pathlib import Path

import pytest

from trilithon.errors import UserError
from trilithon.settings import Configuration, load_configuration


def write(home: Path, text: str) -> Path:
    path = home / "config" / "trilithon" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def refusal(environment: dict[str, str] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_configuration(environment if environment is not None else os.environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_in_the_users_own_folders(tmp_path: Path) -> None:
    found = load_configuration({"HOME": str(tmp_path)})
    assert found == Configuration(data=tmp_path / ".local/share/trilithon", cache=tmp_path / ".cache/trilithon")
    assert (found.builds, found.start_seconds, found.hang_seconds) == ((), 300.0, 60.0)
    assert found.results_database.parent == found.data


def test_xdg_folders(home: Path) -> None:
    found = load_configuration()
    assert (found.data, found.cache) == (home / "data" / "trilithon", home / "cache" / "trilithon")


def test_file_is_overridden_by_variables(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, 'data = "~/results"\nbuilds = ["/opt/a", "~/b"]\nstart_seconds = 5\nhang_seconds = 1.5\n')
    found = load_configuration()
    assert found.data == home / "results"
    assert found.builds == (Path("/opt/a"), home / "b")
    assert (found.start_seconds, found.hang_seconds) == (5.0, 1.5)
    monkeypatch.setenv("TRILITHON_HANG_SECONDS", "2.5")
    monkeypatch.setenv("TRILITHON_BUILDS", f"/x{os.pathsep}/y")
    found = load_configuration()
    assert (found.start_seconds, found.hang_seconds) == (5.0, 2.5)
    assert found.builds == (Path("/x"), Path("/y"))


@pytest.mark.parametrize(
    ("text", "expected"), [('"auto"', None), ("0", 0), ('"0"', 0), ('"6G"', 6 << 30), ("1048576", 1 << 20)]
)
def test_the_memory_of_engines(home: Path, text: str, expected: int | None) -> None:
    write(home, f"engine_memory = {text}\n")
    assert load_configuration().engine_memory == expected


@pytest.mark.parametrize("text", ["true", '"much"', "-1", "[]"])
def test_memory_that_is_no_size_is_refused(home: Path, text: str) -> None:
    write(home, f"engine_memory = {text}\n")
    assert "engine_memory" in refusal()


def test_a_file_can_be_named(home: Path, tmp_path: Path) -> None:
    write(home, "hang_seconds = 1\n")
    named = tmp_path / "other.toml"
    named.write_text("hang_seconds = 2\n")
    assert load_configuration(os.environ | {"TRILITHON_CONFIG": str(named)}).hang_seconds == 2.0


def test_an_empty_variable_is_one_that_is_not_set(home: Path) -> None:
    unset = dict.fromkeys(("TRILITHON_DATA", "TRILITHON_CACHE", "TRILITHON_BUILDS", "TRILITHON_CONFIG"), "")
    assert load_configuration(os.environ | unset) == load_configuration()


def test_an_empty_part_of_a_list_is_not_the_working_folder(home: Path) -> None:
    found = load_configuration(os.environ | {"TRILITHON_BUILDS": f"/x{os.pathsep}{os.pathsep}/y{os.pathsep}"})
    assert found.builds == (Path("/x"), Path("/y"))


def test_other_variables_of_that_name_are_left_alone(home: Path) -> None:
    assert load_configuration(os.environ | {"TRILITHON_SOMETHING": "1", "_TRILITHON_DATA": "x"}) == load_configuration()


def test_a_missing_file_is_an_error_only_if_it_was_named(home: Path) -> None:
    load_configuration()
    missing = home / "no.toml"
    assert refusal(os.environ | {"TRILITHON_CONFIG": str(missing)}) == f"{missing}: No such file or directory"


DEEP = "is longer than 64 KiB or nested too deeply for settings; write NAME = VALUE lines"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data = ", "is not TOML"),
        ("\x00", "is not TOML"),
        ('hnag_seconds = 5\ndata = "x"\n', "unknown setting hnag_seconds; there are aliases, builds, cache, data"),
        ("[data]\nx = 1\n", "data = {'x': 1} does not fit"),
        ("data = 5\n", "data = 5 does not fit"),
        ('data = "~nobody_of_this_name/x"\n', "data = '~nobody_of_this_name/x' does not fit"),
        ("builds = 5\n", "builds = 5 does not fit"),
        ("builds = [5]\n", "builds = [5] does not fit"),
        ("[builds]\na = 1\n", "does not fit"),
        ('start_seconds = "soon"\n', "start_seconds = 'soon' does not fit"),
        ("start_seconds = true\n", "start_seconds = True does not fit"),
        ("start_seconds = []\n", "start_seconds = [] does not fit"),
        ("hang_seconds = 0\n", "more than 0"),
        ("hang_seconds = -1\n", "more than 0"),
        ("hang_seconds = nan\n", "more than 0"),
        ("hang_seconds = inf\n", "more than 0"),
        ("a = " + "[" * 60_000, DEEP),
        ("a = " + "{b=" * 20_000, DEEP),
        ("a" + ".a" * 30_000 + " = 1", DEEP),
        ("a" + ' . "a"' * 9_000 + " = 1", DEEP),
        ("[" + "a." * 30_000 + "a]\nb = 1", DEEP),
        ("#" * 70_000, DEEP),
        ("hang_seconds = " + "9" * 5_000, "is not TOML"),
        ('data = "a\\u0000b"\n', "a path has no NUL character"),
        ('stores = ["a\\u0000b"]\n', "a path has no NUL character"),
        ("pull_hosts = 5\n", "write one host or a list of hosts"),
        ("pull_hosts = ['https://a.lan']\n", "'https://a.lan' is not a name or an address; leave out the port"),
    ],
)
def test_a_file_that_does_not_fit(home: Path, text: str, said: str) -> None:
    path = write(home, text)
    message = refusal()
    assert said in message
    assert message.startswith(str(path))


def test_a_file_that_is_no_text(home: Path) -> None:
    write(home, "").write_bytes(b"data = '\xff'\n")
    assert "is not TOML" in refusal()


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "5m"])
def test_a_variable_that_does_not_fit(home: Path, value: str) -> None:
    message = refusal(os.environ | {"TRILITHON_START_SECONDS": value})
    assert message.startswith(f"environment: start_seconds = '{value}' does not fit")
