"""HAProxy's configuration: what HAProxy itself says of it, and who takes which part of the requests."""

import socket
from pathlib import Path

import pytest

from trilithon.errors import TrilithonError
from trilithon.fleet.boards import FleetBoard
from trilithon.fleet.haproxy import Door, HaproxyFiles, shares
from trilithon.fleet.state import BoardModel, BoardState

BOARDS = (
    FleetBoard(name="rock1", url="https://10.0.0.11:11435"),
    FleetBoard(name="rock2", url="https://nas.local:8443", ca_file="/etc/ssl/certs/ca-certificates.crt"),
    FleetBoard(name="six", url="http://[fd00::1]:11435", private_network=True),
)


def state(name: str, *models: BoardModel, slots: int = 1) -> BoardState:
    return BoardState(name=name, models=models, slots=slots)


def model(name: str, rate: float | None = None, refusal: str = "") -> BoardModel:
    return BoardModel(name=name, tokens_per_second=rate, refusal=refusal)


STATES = {
    "rock1": state("rock1", model("qwen3:4b", 10.0), model("big:latest", refusal="too large"), slots=4),
    "rock2": state("rock2", model("qwen3:4b", 30.0), model("Only:latest")),
    "six": state("six", model("Qwen3:4B")),
}


def test_each_model_is_shared_by_those_that_can_run_it_as_they_are_fast() -> None:
    parts = shares(BOARDS, STATES)
    assert [(part.model, part.board, part.weight, part.slots) for part in parts] == [
        ("only:latest", "rock2", 256, 1),
        ("qwen3:4b", "rock1", 85, 4),
        ("qwen3:4b", "rock2", 256, 1),
        ("qwen3:4b", "six", 171, 1),  # as the mean of the others
    ]
    drained = FleetBoard(name="rock2", url="https://nas.local:8443", drained=True)
    weights = {part.board: part.weight for part in shares((BOARDS[0], drained), STATES) if part.model == "qwen3:4b"}
    assert weights == {"rock1": 85, "rock2": 0}
    assert shares(BOARDS, {}) == ()


@pytest.mark.parametrize("states", [STATES, {}])
def test_haproxy_takes_the_configuration(
    haproxy: str, tmp_path: Path, states: dict[str, BoardState], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = HaproxyFiles(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        door = Door(descriptors=(listening.fileno(),), needs_key=True)
        files.write_keys({"0" * 64: "ann"})
        files.write(BOARDS, {"rock1": "trl-secret_key=="}, shares(BOARDS, states), door)
        files.check(haproxy, door.descriptors)
        text = files.configuration.read_text()
        assert text.count("trl-secret_key==") == 1
        assert [path.stat().st_mode & 0o077 for path in tmp_path.iterdir()] == [0] * len(list(tmp_path.iterdir()))
        maps = (tmp_path / "models.map").read_text().splitlines()
        assert [line.split()[0] for line in maps] == (["only:latest", "only", "qwen3:4b"] if states else [])
        files.configuration.write_text(text + "nonsense\n")
        with pytest.raises(TrilithonError, match=r"HAProxy refuses its configuration: .*nonsense"):
            files.check(haproxy, door.descriptors)
