"""`trilithon key`: what is printed, what is kept, and what a wrong word is answered with."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trilithon.serve.access.keys import Keyring

Program = Callable[..., Any]


def store(home: Path) -> Path:
    return home / "data" / "trilithon" / "keys.json"


def test_add_prints_the_key_once_and_alone(trilithon: Program, home: Path) -> None:
    done = trilithon("key", "add", "home-assistant")
    assert done.code == 0
    secret = done.stdout.strip()
    assert done.stdout == f"{secret}\n"
    assert "trilithon key rm home-assistant" in done.stderr
    assert secret not in done.stderr
    assert Keyring(store(home)).name_of(secret) == "home-assistant"
    assert stat.S_IMODE(store(home).stat().st_mode) == 0o600
    listed = trilithon("key", "list")
    assert secret not in listed.stdout + listed.stderr + store(home).read_text()


def test_add_as_json(trilithon: Program, home: Path) -> None:
    made = json.loads(trilithon("key", "add", "ci", "--json").stdout)
    assert made["name"] == "ci"
    assert Keyring(store(home)).name_of(made["key"]) == "ci"


def test_list(trilithon: Program, home: Path) -> None:
    empty = trilithon("key", "list")
    assert (empty.code, empty.stdout) == (0, "")
    assert "trilithon key add NAME" in empty.stderr
    assert trilithon("key", "list", "--json").stdout == "[]\n"
    trilithon("key", "add", "a")
    trilithon("key", "add", "longer")
    rows = [line.split() for line in trilithon("key", "list").stdout.splitlines()]
    assert [row[0] for row in rows] == ["a", "longer"]
    found = json.loads(trilithon("key", "list", "--json").stdout)
    assert [each["name"] for each in found] == ["a", "longer"]
    assert [each["created"] for each in found] == [row[1] for row in rows]
    assert all(set(each) == {"name", "created"} for each in found)  # the hash is nobody's business either


def test_rm_takes_several_back(trilithon: Program, home: Path) -> None:
    secrets = {name: trilithon("key", "add", name).stdout.strip() for name in "abc"}
    assert trilithon("key", "rm", "a", "c").code == 0
    ring = Keyring(store(home))
    assert {name: ring.name_of(secret) for name, secret in secrets.items()} == {"a": None, "b": "b", "c": None}


def test_wrong_words(trilithon: Program, home: Path) -> None:
    trilithon("key", "add", "a")
    for words, told in (
        (("key", "add", "a"), "trilithon key rm a"),
        (("key", "add", "a b"), "is not a valid key name"),
        (("key", "rm", "b"), "there is no key b; there are: a"),
        (("key", "rm"), "Missing argument"),
        (("key", "add"), "Missing argument"),
    ):
        done = trilithon(*words)
        assert done.code == 2
        assert told in done.stderr
        assert done.stdout == ""
