"""GET /api/plans: the machine, and for each model what runs it here and how fast it was measured."""

from pathlib import Path

from live_server import Serve

from trilithon import __version__
from trilithon.board.snapshot import read_board


def test_what_a_gateway_has_to_know(serve: Serve, tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny.read_bytes())
    server = serve(tiny, broken, slots=3)
    broken.write_bytes(b"GGUF, but no more")
    about = server.http.get("/api/plans").json()
    board = read_board()
    assert (about["version"], about["slots"]) == (__version__, 3)
    assert about["board"] == {"model": board.model, "chip": board.chip, "memory_bytes": board.memory_bytes}
    rows = {row["name"]: row for row in about["models"]}
    assert rows.keys() == {"tiny:latest", "broken:latest"}
    assert rows["broken:latest"]["refusal"]
    whole = rows["tiny:latest"]
    assert whole["placement"].startswith("scripted/cpu")
    assert (whole["refusal"], whole["is_planned"], whole["is_loaded"], whole["tokens_per_second"]) == (
        "",
        False,
        False,
        None,
    )
    server.http.post("/api/generate", json={"model": "tiny", "prompt": "hi", "stream": False}).raise_for_status()
    assert [
        row["is_loaded"] for row in server.http.get("/api/plans").json()["models"] if row["name"] == "tiny:latest"
    ] == [True]
    server.service.shelf.configuration.data.mkdir(parents=True, exist_ok=True)
    server.service.shelf.configuration.results_database.write_bytes(b"no database, but longer than its header" * 9)
    rows = {row["name"]: row for row in server.http.get("/api/plans").json()["models"]}
    assert (rows["tiny:latest"]["refusal"], rows["tiny:latest"]["tokens_per_second"]) == ("", None)
