"""The table that ships is whole, and a user's is checked before anything is fetched."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from trilithon.board.libraries import followed_release
from trilithon.cli.engines.install import install
from trilithon.engines.install.sources import _check, _table, installable, known_digests, source_of
from trilithon.engines.table import COMPILED
from trilithon.errors import UserError
from trilithon.settings import Configuration

CONFIGURATION = Configuration(data=Path("/nowhere"), cache=Path("/nowhere"))
GOOD = """
[rkllm]
title = "t"
default = "1"
licence = "l"
licence_url = "u"
machine = "aarch64"
file = "librkllmrt.so"
address = "https://host/{ref}/librkllmrt.so"
[rkllm.versions.1]
ref = "r"
sha256 = "%s"
""" % ("a" * 64)


def test_every_row_of_the_table_is_pinned_over_https() -> None:
    table = _table(CONFIGURATION)
    assert set(table) == {"rkllm", "rk-llama.cpp"}
    for engine, versions in installable(CONFIGURATION).items():
        _check(engine, table[engine])
        for version in versions:
            source = source_of(engine, version, CONFIGURATION)
            assert source.address.startswith("https://github.com/")
            assert bool(source.sha256) != bool(source.commit)
            assert source.sha256[:12] in source.pin or source.commit in source.pin
            assert source.licence_url.startswith("https://")
            assert not source.commit or source.compiled in COMPILED


def test_the_releases_of_rkllm_are_those_whose_interface_is_known() -> None:
    versions = installable(CONFIGURATION)["rkllm"]
    assert versions[0] == "1.2.3"
    assert all(followed_release(version) for version in versions)
    assert len(known_digests("rkllm", CONFIGURATION)) == len(versions)


def test_the_help_names_every_version() -> None:
    shown = CliRunner().invoke(install, ["--help"]).output
    assert all(version in shown for versions in installable(CONFIGURATION).values() for version in versions)


def test_what_is_not_there_is_told_with_what_is() -> None:
    with pytest.raises(UserError, match=r"rkllm 9\.9 is not in the table.*1\.2\.3.*--from FILE"):
        source_of("rkllm", "9.9", CONFIGURATION)
    with pytest.raises(UserError, match=r"vllm cannot be installed this way; there are rkllm, rk-llama\.cpp"):
        source_of("vllm", None, CONFIGURATION)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("a" * 64, "a" * 63), "rkllm 1: sha256 is not 64 hexadecimal digits"),
        (("a" * 64, "A" * 64), "rkllm 1: sha256 is not 64 hexadecimal digits"),
        (('default = "1"', 'default = "2"'), "there is no version 2"),
        (('title = "t"', "title = 3"), "title has to be a str"),
        (('machine = "aarch64"', ""), "machine"),
        (('ref = "r"', ""), "ref"),
        (("{ref}", "{other}"), "other"),
        (('ref = "r"', 'git = "https://h/r"\ncommit = "main"'), "commit is not 40 hexadecimal digits"),
        (("[rkllm]", "[rkllm"), "not a table of engines"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "table.toml"
    own = Configuration(data=tmp_path, cache=tmp_path, engine_table=path)
    with pytest.raises(UserError, match=r"table\.toml: No such file"):
        source_of("rkllm", None, own)
    path.write_text(GOOD)
    assert source_of("rkllm", None, own).address == "https://host/r/librkllmrt.so"
    path.write_text(GOOD.replace(*change, 1))
    with pytest.raises(UserError, match=message):
        source_of("rkllm", None, own)
