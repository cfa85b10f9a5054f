"""Keys in real files, changed by real processes while a keyring looks on."""

import json
import logging
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.errors import UserError
from trilithon.serve.access import keys as module
from trilithon.serve.access.keys import Keyring, add_key, key_store, keys, read_key_file, remove_key
from trilithon.settings import Configuration


@pytest.fixture
def own(tmp_path: Path) -> Configuration:
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache")


def plain(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


# -- the store


def test_a_key_is_printed_once_and_kept_as_a_hash(own: Configuration) -> None:
    secret = add_key(own, "home")
    kept = key_store(own).read_text(encoding="utf-8")
    assert secret.startswith("trl-")
    assert len(secret) == 4 + 43  # 256 bits
    assert secret not in kept
    assert secret[4:] not in kept
    (key,) = keys(own)
    assert key.name == "home"
    assert key.digest == json.loads(kept)[0]["sha256"]
    assert Keyring(key_store(own)).name_of(secret) == "home"


def test_the_store_is_its_owners_alone_whatever_the_umask(own: Configuration) -> None:
    before = os.umask(0)
    try:
        add_key(own, "home")
    finally:
        os.umask(before)
    assert stat.S_IMODE(key_store(own).stat().st_mode) == 0o600
    assert [each.name for each in own.data.iterdir() if each.name.startswith(".new-")] == []


def test_no_two_keys_are_alike_and_each_goes_alone(own: Configuration) -> None:
    secrets = {name: add_key(own, name) for name in ("a", "b", "c")}
    assert len(set(secrets.values())) == 3
    assert remove_key(own, "b").name == "b"
    ring = Keyring(key_store(own))
    assert [ring.name_of(secret) for secret in secrets.values()] == ["a", None, "c"]


def test_a_name_is_taken_once(own: Configuration) -> None:
    add_key(own, "home")
    with pytest.raises(UserError, match="trilithon key rm home"):
        add_key(own, "home")
    with pytest.raises(UserError, match="there is no key office; there are home"):
        remove_key(own, "office")


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "é", "x" * 65, "a\n", "../a"])
def test_a_name_that_cannot_be_spelled_is_refused(own: Configuration, name: str) -> None:
    with pytest.raises(UserError, match="is not a valid key name"):
        add_key(own, name)
    assert not key_store(own).exists()


ADD_MANY = """
import sys
from pathlib import Path
from trilithon.serve.access.keys import add_key
from trilithon.settings import Configuration
for number in range(10):
    add_key(Configuration(data=Path(sys.argv[1]), cache=Path(sys.argv[1])), f"{sys.argv[2]}{number}")
"""


def test_processes_that_add_at_once_lose_nothing(own: Configuration) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", ADD_MANY, str(own.data), prefix]) for prefix in "abc"]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert {key.name for key in keys(own)} == {f"{prefix}{number}" for prefix in "abc" for number in range(10)}


@pytest.mark.parametrize(
    "text", ["{", "[1]", '[{"name": "a"}]', '[{"name": "a", "sha256": "short", "created": ""}]', "7"]
)
def test_a_damaged_store_is_told_and_not_taken_for_empty(own: Configuration, text: str) -> None:
    own.data.mkdir()
    plain(key_store(own), text)
    for look in (lambda: keys(own), lambda: Keyring(key_store(own)), lambda: add_key(own, "a")):
        with pytest.raises(UserError, match="is damaged"):
            look()
    assert key_store(own).read_text(encoding="utf-8") == text


def test_a_store_that_others_may_write_is_refused(own: Configuration) -> None:
    add_key(own, "home")
    key_store(own).chmod(0o666)
    with pytest.raises(UserError, match="chmod 600"):
        Keyring(key_store(own))


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="TRILITHON_DATA"):
        add_key(Configuration(data=tmp_path / "file", cache=tmp_path), "a")


# -- a plain file


def test_a_plain_file_holds_a_key_a_line(tmp_path: Path) -> None:
    path = plain(tmp_path / "keys", "# mine\n\n  first-key-of-sixteen \r\nsecond-key-of-sixteen\n# end")
    ring = Keyring(plain=path)
    assert len(ring) == 2
    assert ring.name_of("first-key-of-sixteen") == "file-3"
    assert ring.name_of("second-key-of-sixteen") == "file-4"
    assert ring.name_of("# mine") is None
    assert ring.name_of("") is None


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o666, 0o602, 0o620])
def test_a_plain_file_that_strangers_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    path = plain(tmp_path / "keys", "first-key-of-sixteen\n", mode)
    with pytest.raises(UserError, match=f"chmod 600 {path}"):
        read_key_file(path)


def test_a_plain_file_may_be_its_groups(tmp_path: Path) -> None:
    assert len(read_key_file(plain(tmp_path / "keys", "first-key-of-sixteen\n", 0o640))) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "contains no key"),
        ("# only words\n", "contains no key"),
        ("short\n", "line 1: a key is 16"),
        ("\nwith spaces in the key\n", "line 2: a key is 16"),
        ("schlüssel-schlüssel\n", "ASCII"),
    ],
)
def test_a_plain_file_that_protects_nothing_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_key_file(plain(tmp_path / "keys", text))


def test_a_plain_file_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        Keyring(plain=tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 20)
    (tmp_path / "binary").chmod(0o600)
    with pytest.raises(UserError, match=r"is not a file of keys: .*utf-8"):
        Keyring(plain=tmp_path / "binary")
    with (tmp_path / "long").open("wb") as file:
        file.truncate(2 << 20)
    (tmp_path / "long").chmod(0o600)
    with pytest.raises(UserError, match="longer than"):
        Keyring(plain=tmp_path / "long")


def test_a_secret_never_stands_in_what_is_told(tmp_path: Path) -> None:
    path = plain(tmp_path / "keys", "hunter2\n")
    with pytest.raises(UserError) as told:
        read_key_file(path)
    assert "hunter2" not in str(told.value)


# -- a keyring that stays


def test_a_running_keyring_takes_changes_up(own: Configuration) -> None:
    ring = Keyring(key_store(own))
    assert not ring.required
    secret = add_key(own, "home")
    assert ring.name_of(secret) == "home"
    assert ring.required
    other = add_key(own, "office")
    assert ring.name_of(other) == "office"
    remove_key(own, "home")
    assert ring.name_of(secret) is None
    assert ring.name_of(other) == "office"


def test_the_door_stays_shut_when_the_last_key_is_revoked(own: Configuration) -> None:
    add_key(own, "home")
    ring = Keyring(key_store(own))
    remove_key(own, "home")
    assert ring.required
    assert len(ring) == 0
    key_store(own).unlink()
    assert ring.required


def test_whether_a_key_is_asked_for_can_be_said(own: Configuration) -> None:
    assert Keyring(key_store(own), required=True).required
    add_key(own, "home")
    assert not Keyring(key_store(own), required=False).required


def test_keys_stay_when_their_file_turns_bad(own: Configuration, caplog: pytest.LogCaptureFixture) -> None:
    secret = add_key(own, "home")
    ring = Keyring(key_store(own))
    with caplog.at_level(logging.WARNING):
        key_store(own).write_text("[", encoding="utf-8")
        assert ring.name_of(secret) == "home"
        assert ring.name_of(secret) == "home"
    assert len(caplog.records) == 1
    assert secret not in caplog.text


def test_a_plain_file_is_read_anew_too(tmp_path: Path) -> None:
    path = plain(tmp_path / "keys", "first-key-of-sixteen\n")
    ring = Keyring(plain=path)
    path.write_text("second-key-of-sixteen\n", encoding="utf-8")
    assert ring.name_of("first-key-of-sixteen") is None
    assert ring.name_of("second-key-of-sixteen") == "file-1"
    path.unlink()
    assert ring.name_of("second-key-of-sixteen") is None
    assert ring.required


@given(st.text(max_size=60))
def test_no_other_text_opens_the_door(text: str) -> None:
    ring = Keyring(required=True)
    assert ring.name_of(text) is None


def test_looking_costs_little(own: Configuration) -> None:
    for number in range(20):
        add_key(own, f"key{number}")
    ring = Keyring(key_store(own))
    began = time.monotonic_ns()
    for _ in range(1000):
        ring.name_of("trl-" + "x" * 43)
    assert (time.monotonic_ns() - began) / 1000 < 2e6  # 2 ms each would be a hundred times too slow


def test_what_is_offered() -> None:
    assert sorted(module.__all__) == list(module.__all__)
