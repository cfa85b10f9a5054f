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
    assert all(set(each) == {"name", "created", "scope"} for each in found)  # the hash is nobody's business either


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
        (("key", "rm", "b"), "there is no key b; there are a"),
        (("key", "rm"), "Missing argument"),
        (("key", "add"), "Missing argument"),
    ):
        done = trilithon(*words)
        assert done.code == 2
        assert told in done.stderr
        assert done.stdout == ""


def test_a_scope_is_kept_and_listed(trilithon: Program, home: Path) -> None:
    secret = json.loads(trilithon("key", "add", "tablet", "--scope", "chat", "--json").stdout)["key"]
    trilithon("key", "add", "owner")
    assert [row.split()[0::2] for row in trilithon("key", "list").stdout.splitlines()] == [
        ["tablet", "chat"],
        ["owner", "admin"],
    ]
    key = Keyring(store(home)).key_of(secret)
    assert key is not None
    assert key.scope == "chat"
    assert trilithon("key", "add", "x", "--scope", "root").code == 2


def test_keys_of_an_older_file_are_for_everything(trilithon: Program, home: Path) -> None:
    secret = trilithon("key", "add", "old").stdout.strip()
    rows = json.loads(store(home).read_text())
    text = json.dumps([{name: text for name, text in row.items() if name != "scope"} for row in rows])
    store(home).write_text(text)
    assert trilithon("key", "list").stdout.split()[2] == "admin"
    assert store(home).read_text() == text
    key = Keyring(store(home)).key_of(secret)
    assert key is not None
    assert key.scope == "admin"
    store(home).write_text(text.replace('"name"', '"scope": "owner", "name"'))
    assert "scope 'owner' is unknown" in trilithon("key", "list").stderr
