"""A handover that is paused: the answers, /api/ps, the metrics and the log say so, why and until when."""

import logging
import time
from pathlib import Path
from typing import Any

import pytest
from live_server import Serve, Server

DECODER = "scripted/cpu:prefill=2000,decode=2000"


def ask(server: Server) -> dict[str, Any]:
    """The timings of an answer."""
    body = {"model": server.model, "prompt": "hello", "stream": False, "options": {"num_predict": 3}}
    answer = server.http.post("/api/generate", json=body)
    assert answer.status_code == 200
    timings: dict[str, Any] = answer.json()["timings"]
    return timings


def loaded_handover(server: Server) -> dict[str, Any]:
    (row,) = server.http.get("/api/ps").json()["models"]
    handover: dict[str, Any] = row["handover"]
    return handover


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    records = [record for record in caplog.records if record.name == "trilithon.handover"]
    return [(record.getMessage(), record.__dict__["facts"]) for record in records]


def test_a_paused_handover_says_why_and_until_when(serve: Serve, tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    server = serve(tiny, placement=f"scripted/npu:prefill=50000,refuse_start=no driver+{DECODER}")
    timings = ask(server)
    assert timings["handover"]["state"] == "paused"
    assert timings["handover"]["reason"] == timings["reason"]
    assert "did not start" in timings["reason"]
    deadline = time.monotonic() + 60
    while not loaded_handover(server)["retry_in_seconds"] and time.monotonic() < deadline:
        time.sleep(0.02)  # it is being started again
    handover = loaded_handover(server)
    assert handover["state"] == "paused"
    assert "did not start" in handover["reason"]
    assert 0 < handover["retry_in_seconds"] <= 60
    assert handover["misses"] == 0
    assert f'trilithon_handover_active{{model="{server.model}"}} 0.0' in server.http.get("/metrics").text
    ask(server)
    ((message, facts),) = lines(caplog)
    assert message == "handover paused"
    assert facts["model"] == server.model
    assert "did not start" in facts["reason"]
    assert facts["retry_in_seconds"] is not None


def test_a_resumed_handover_is_logged(
    serve: Serve, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    fault = f"refuse_start=no driver,flaky=2,flaky_file={tmp_path / 'starts'}"
    server = serve(tiny, placement=f"scripted/npu:prefill=50000,{fault}+{DECODER}")
    assert ask(server)["handover"]["state"] == "paused"
    deadline = time.monotonic() + 60
    while loaded_handover(server)["state"] != "active" and time.monotonic() < deadline:
        time.sleep(0.02)
    active = {"state": "active", "reason": "", "retry_in_seconds": None, "misses": 0}
    assert ask(server)["handover"] == loaded_handover(server) == active
    assert f'trilithon_handover_active{{model="{server.model}"}} 1.0' in server.http.get("/metrics").text
    assert [message for message, _ in lines(caplog)] == ["handover paused", "handover resumed"]


def test_a_placement_of_one_half_has_no_handover(serve: Serve, tiny: Path) -> None:
    server = serve(tiny)
    assert "handover" not in ask(server)
    (row,) = server.http.get("/api/ps").json()["models"]
    assert "handover" not in row
