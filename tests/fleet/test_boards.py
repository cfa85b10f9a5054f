"""The list of boards: names, addresses, keys, and a file that other hands changed."""

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.errors import UserError
from trilithon.fleet.boards import (
    add_board,
    board_key,
    boards,
    boards_path,
    change_board,
    keep_key,
    named_boards,
    parse_board,
    remove_board,
)
from trilithon.settings import Configuration

ROCK = "rock1=https://10.0.0.11:11435"


@pytest.mark.parametrize(
    ("text", "url", "address"),
    [
        (ROCK, "https://10.0.0.11:11435", ("10.0.0.11", 11435)),
        ("nas=https://NAS.local/", "https://nas.local:11435", ("nas.local", 11435)),
        ("six=https://[fd00::1]:8443", "https://[fd00::1]:8443", ("fd00::1", 8443)),
        ("here=http://localhost:80", "http://localhost:80", ("localhost", 80)),
        ("here=http://127.0.0.9", "http://127.0.0.9:11435", ("127.0.0.9", 11435)),
    ],
)
def test_addresses(text: str, url: str, address: tuple[str, int]) -> None:
    board = parse_board(text)
    assert (board.url, board.address) == (url, address)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rock1", "NAME=https"),
        ("=https://h", "no name for a board"),
        ("Rock=https://h", "no name for a board"),
        ("a b=https://h", "no name for a board"),
        (f"{'x' * 33}=https://h", "no name for a board"),
        ("r=ftp://h", "no address"),
        ("r=https://", "no address"),
        ("r=https://h:0", "no address"),
        ("r=https://h:99999", "no address"),
        ("r=https://h:x", "no address"),
        ("r=https://u:p@h", "no address"),
        ("r=https://h/path", "no address"),
        ("r=https://h?q", "no address"),
        ("r=https://h h", "no address"),
        ("r=https://h\nserver x", "no address"),
        ("r=https://[::1", "no address"),
        ("r=http://10.0.0.11", "--private-network"),
        ("r=http://nas.local", "--private-network"),
    ],
)
def test_what_is_no_board_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_board(text)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_plain_http_certificates_and_ssh_are_stated(tmp_path: Path) -> None:
    assert parse_board("r=http://10.0.0.11", private_network=True).private_network
    assert parse_board(ROCK, ca_file=tmp_path / "ca.pem").ca_file == str(tmp_path / "ca.pem")
    assert parse_board(ROCK, ssh="ann@10.0.0.11").ssh == "ann@10.0.0.11"
    with pytest.raises(UserError, match="--ca"):
        parse_board("r=http://127.0.0.1", ca_file=tmp_path / "ca.pem")
    for ssh in ("-oProxyCommand=x", "a b", "ann@", "@h"):
        with pytest.raises(UserError, match="USER@HOST"):
            parse_board(ROCK, ssh=ssh)


def test_boards_are_kept_changed_and_removed(configuration: Configuration) -> None:
    assert boards(configuration) == ()
    with pytest.raises(UserError, match="fleet add"):
        named_boards(configuration)
    first, second = parse_board(ROCK), parse_board("rock2=https://10.0.0.12")
    add_board(configuration, first)
    add_board(configuration, second)
    for taken in (replace(second, name="rock1"), replace(first, name="rock3")):
        with pytest.raises(UserError, match="already a board rock1"):
            add_board(configuration, taken)
    assert named_boards(configuration, ["rock2"]) == (second,)
    with pytest.raises(UserError, match="there is no board rock9"):
        named_boards(configuration, ["rock1", "rock9"])
    drained = change_board(configuration, "rock1", lambda board: replace(board, drained=True))
    assert boards(configuration) == (drained, second)
    remove_board(configuration, "rock1")
    assert boards(configuration) == (second,)
    with pytest.raises(UserError):
        remove_board(configuration, "rock1")


def test_a_key_is_for_its_owner_alone(configuration: Configuration) -> None:
    board = keep_key(configuration, parse_board(ROCK), "trl-secret-secret")
    path = Path(board.key_file)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert board_key(board) == "trl-secret-secret"
    add_board(configuration, board)
    assert "trl-secret" not in boards_path(configuration).read_text()
    assert stat.S_IMODE(boards_path(configuration).stat().st_mode) == 0o600
    path.chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        board_key(board)
    path.chmod(0o600)
    for text in (
        "short",
        "two words of a key",
        'a"quote-in-a-key',
        "a\nline-in-a-key",
        "percent-%[in]-a-key",
        "é" * 20,
    ):
        path.write_text(text)
        with pytest.raises(UserError, match="holds no key") as refused:
            board_key(board)
        assert text not in str(refused.value)
        with pytest.raises(UserError, match="holds no key"):
            keep_key(configuration, board, text)
    remove_board(configuration, "rock1")
    assert not path.exists()
    with pytest.raises(UserError, match="add the board again"):
        board_key(board)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "rock1\n  server evil"},
        {"name": 1},
        {"url": "https://h:1 weight 2"},
        {"url": "https://h"},
        {"key_file": "relative"},
        {"ca_file": '/x"\n  y'},
        {"ssh": "-oProxyCommand=x"},
        {"drained": "yes"},
    ],
)
def test_a_file_that_other_hands_changed_is_damaged(configuration: Configuration, change: dict[str, object]) -> None:
    """What it holds goes into HAProxy's configuration and onto the command line of ssh."""
    add_board(configuration, parse_board(ROCK))
    path = boards_path(configuration)
    entry = json.loads(path.read_text())[0]
    path.write_text(json.dumps([entry | change]))
    with pytest.raises(UserError, match="is damaged"):
        boards(configuration)
    path.write_text(json.dumps([entry | {"of_a_newer_version": 1}]))
    assert boards(configuration)[0].name == "rock1"


def test_other_users_may_not_change_it(configuration: Configuration) -> None:
    add_board(configuration, parse_board(ROCK))
    boards_path(configuration).chmod(0o666)
    with pytest.raises(UserError, match="chmod 600"):
        boards(configuration)
