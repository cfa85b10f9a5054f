"""`trilithon config`: what is in force and why, and changes of config.toml that leave everything else as it was."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trilithon.cli.config_file import change_setting
from trilithon.cli.main import run
from trilithon.cli.serve.serve import serve
from trilithon.cli.serve.settings import options_of
from trilithon.errors import UserError
from trilithon.settings import MEANINGS, Configuration, load_configuration

Program = Callable[..., Any]


@pytest.fixture
def path(home: Path) -> Path:
    return home / "config" / "trilithon" / "config.toml"


def test_every_setting_has_a_meaning() -> None:
    assert list(MEANINGS) == list(Configuration.__dataclass_fields__)


def test_path_is_told_whether_it_exists_or_not(trilithon: Program, path: Path) -> None:
    assert trilithon("config", "path").stdout == f"{path}\n"


def test_the_list_has_every_setting_with_value_source_and_meaning(
    trilithon: Program, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir(parents=True)
    path.write_text('builds = ["/a", "/b"]\n[serve]\nport = 8080\n[aliases]\nx = {model = "y", hidden = true}\n')
    monkeypatch.setenv("TRILITHON_SERVE_CORS", "https://a.example,*")
    monkeypatch.setenv("TRILITHON_HANG_SECONDS", "7")
    listed = {row["name"]: row for row in json.loads(trilithon("config", "list", "--json").stdout)}
    assert listed.keys() == {*MEANINGS, *(f"serve.{name}" for name in options_of(serve))}
    told = {name: (listed[name]["value"], listed[name]["source"]) for name in listed}
    assert told["builds"] == (["/a", "/b"], str(path))
    assert told["serve.port"] == (8080, str(path))
    assert told["serve.cors"] == (["https://a.example", "*"], "TRILITHON_SERVE_CORS")
    assert told["hang_seconds"] == (7.0, "TRILITHON_HANG_SECONDS")
    assert told["aliases"] == ({"x": {"model": "y", "hidden": True}}, str(path))
    assert told["serve.keep_alive"] == ("5m", "default")
    assert told["engine_memory"] == (None, "default")
    assert listed["serve.port"]["restart"]
    assert not listed["serve.cors"]["restart"]
    text = trilithon("config", "list").stdout
    assert f"serve.port = 8080  ({path})\n    The port; 0 takes a free one. A running server needs a restart" in text
    assert "engine_memory = not set  (default)" in text
    assert all(row["meaning"].endswith(".") for row in listed.values())


@pytest.mark.parametrize(
    ("name", "text", "literal", "printed"),
    [
        ("serve.port", "8080", "8080", "8080"),
        ("serve.verbose", "true", "true", "true"),
        ("serve.cors", "https://a.example,*", '["https://a.example", "*"]', "https://a.example\n*"),
        ("serve.keep_alive", "-1", '"-1"', "-1"),
        ("serve.placement", "", '""', ""),
        ("builds", "/a:/b", '["/a", "/b"]', "/a\n/b"),
        ("start_seconds", "5", "5.0", "5.0"),
        ("engine_memory", "auto", '"auto"', ""),
        ("engine_memory", "1K", "1024", "1024"),
        ("aliases", "claude-*=qwen3:4b", '{"claude-*" = "qwen3:4b"}', None),
        ("data", '/a "b"\\é', '"/a \\"b\\"\\\\é"', '/a "b"\\é'),
    ],
)
def test_set_get_unset(trilithon: Program, path: Path, name: str, text: str, literal: str, printed: str | None) -> None:
    done = trilithon("config", "set", "--", name, text)
    assert done.code == 0, done.stderr
    assert f"{name} is set in {path}" in done.stderr
    table, _, key = name.rpartition(".")
    assert path.read_text() == (f"[{table}]\n" if table else "") + f"{key} = {literal}\n"
    if printed is not None:
        assert trilithon("config", "get", name).stdout == f"{printed}\n"
    assert trilithon("config", "unset", name).code == 0
    assert key not in path.read_text()
    load_configuration()


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("data", "x", "{here}/x"),
        ("builds", "x:/y", "{here}/x\n/y"),
        ("serve.unix", "wire", "{here}/wire"),
        ("serve.tls_cert", "cert.pem", "{here}/cert.pem"),
    ],
)
def test_a_path_is_meant_from_here(
    trilithon: Program, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, wanted: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cert.pem").touch()
    assert trilithon("config", "set", name, text).code == 0
    assert trilithon("config", "get", name).stdout == wanted.format(here=tmp_path) + "\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("get", "serve.prot"), "unknown setting serve.prot; did you mean serve.port?"),
        (("set", "port", "1"), "unknown setting port; did you mean serve.port?"),
        (("unset", "zzzz"), "see: trilithon config list"),
        (("set", "serve.port", "99999"), "value: serve.port = '99999' does not fit"),
        (("set", "hang_seconds", "0"), "value: hang_seconds = '0' does not fit"),
        (("set", "serve.tls_cert", "/nowhere.pem"), "does not exist"),
    ],
)
def test_bad_words_change_nothing(trilithon: Program, path: Path, words: tuple[str, ...], said: str) -> None:
    done = trilithon("config", *words)
    assert done.code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not path.exists()


def test_what_goes_before_it_and_what_a_server_does_is_said(
    trilithon: Program, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRILITHON_SERVE_PORT", "1")
    done = trilithon("config", "set", "serve.port", "2")
    assert "note: TRILITHON_SERVE_PORT goes before it" in done.stderr
    assert "when it is started again" in done.stderr
    assert "on SIGHUP" in trilithon("config", "set", "serve.keep_alive", "1h").stderr


WRITTEN = """# mine
data = "/old"   # stays

builds = [
  "/a",  # one
  "/b",
]

[serve]  # the server
# nothing yet
port = 1

[aliases]
"a.b" = "c"
"""


@pytest.mark.parametrize(
    ("table", "key", "value", "old", "new"),
    [
        ("", "data", "/new", 'data = "/old"   # stays\n', 'data = "/new"\n'),
        ("", "builds", ["/c"], WRITTEN[WRITTEN.index("builds") : WRITTEN.index("]\n") + 2], 'builds = ["/c"]\n'),
        ("", "builds", None, WRITTEN[WRITTEN.index("builds") : WRITTEN.index("]\n") + 2], ""),
        ("", "hang_seconds", 5, '"/b",\n]\n', '"/b",\n]\nhang_seconds = 5\n'),
        ("serve", "port", 2, "port = 1\n", "port = 2\n"),
        ("serve", "host", "::", "port = 1\n", 'port = 1\nhost = "::"\n'),
        ("serve", "port", None, "port = 1\n", ""),
        ("serve", "port", 1, "", ""),
    ],
)
def test_one_value_changes_and_every_other_line_stays(
    tmp_path: Path, table: str, key: str, value: Any, old: str, new: str
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(WRITTEN)
    file.chmod(0o640)
    change_setting(file, table, key, value)
    assert file.read_text() == (WRITTEN.replace(old, new, 1) if old else WRITTEN)
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("text", "table", "key"),
    [
        ("serve.port = 1\n", "serve", "port"),
        ("serve = {port = 1}\n", "serve", "port"),
        ('"data" = """\ndata = 1\n"""\n[serve]\nx = 1\n', "serve", "x"),
        ("[aliases]\na = 'b'\n", "", "aliases"),
        ('data = """\n[serve]\nport = 1\n"""\n', "serve", "port"),
        ("", "serve", "port"),
        ("[serve]", "serve", "port"),
        ("a = 1\r\n[serve]\r\nport = 3\r\n", "serve", "port"),
    ],
)
def test_other_ways_to_write_it_are_changed_rightly_or_refused(tmp_path: Path, text: str, table: str, key: str) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(text.encode())
    wanted = tomllib.loads(text)
    (wanted.setdefault(table, {}) if table else wanted)[key] = 7
    try:
        change_setting(file, table, key, 7)
    except UserError as error:
        assert "change it with an editor" in str(error)
        assert file.read_bytes() == text.encode()
    else:
        assert tomllib.loads(file.read_text()) == wanted


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "dotfiles.toml", tmp_path / "config.toml"
    target.write_text("")
    link.symlink_to(target)
    change_setting(link, "", "data", "/x")
    assert link.is_symlink()
    assert target.read_text() == 'data = "/x"\n'


@pytest.mark.parametrize("content", [b"data = ", b"\xff"])
def test_a_file_that_is_not_toml_is_left_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(content)
    with pytest.raises(UserError, match="correct it first"):
        change_setting(file, "", "data", "/x")
    assert file.read_bytes() == content


def test_a_folder_that_is_a_file(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "file").touch()
    monkeypatch.setenv("TRILITHON_CONFIG", str(home / "file" / "config.toml"))
    assert run(["config", "set", "data", "/x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [file.name for file in home.iterdir()] == ["file"]
