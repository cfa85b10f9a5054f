"""The machine misbehaves around the server: its disk is full, and its clock jumps."""

import asyncio
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from live_server import Serve
from load import many, ready_again

from trilithon.models.files.gguf_writer import header
from trilithon.serve.ollama import answers, models
from trilithon.serve.openai import routes

_ROOM_BYTES = 80 << 20  # of which the store leaves 64 MiB to others


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    """Everything that the server keeps goes there."""
    folder = home / "data"
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_ROOM_BYTES}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_full_takes_no_answer_away(small_disk: Path, serve: Serve, tiny: Path) -> None:
    server = serve(tiny)
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file, pytest.raises(OSError):
        while True:
            os.write(file.fileno(), bytes(1 << 16))
    assert dict(asyncio.run(many(server, 4))) == {"whole": 4}
    content = bytes(1 << 20)
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    for path, sent in ((f"/api/blobs/{digest}", content), ("/api/copy", b'{"source": "tiny", "destination": "two"}')):
        answer = server.http.post(path, content=sent)
        assert answer.status_code == 507, answer.text
        words = answer.json()["error"]
        assert "free" in words and "\n" not in words, words
    assert server.http.head(f"/api/blobs/{digest}").status_code == 404
    ballast.unlink()
    assert server.http.post(f"/api/blobs/{digest}", content=content).status_code == 201
    ready_again(server)


def test_a_model_in_fewer_bits_that_the_disk_cannot_take(
    small_disk: Path, serve: Serve, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "f16.gguf").write_bytes(
        header({"general.architecture": "llama", "general.file_type": 1}, [("token_embd.weight", (4096, 8192), "F16")])
    )
    os.truncate(home / "f16.gguf", (home / "f16.gguf").stat().st_size + 2 * 4096 * 8192)
    server = serve(home / "f16.gguf")
    for stream in (True, False):
        body = {"model": "small", "from": server.model, "quantize": "Q8_0", "stream": stream}
        answer = server.http.post("/api/create", json=body)
        assert answer.status_code == 507, answer.text
        assert "32.0 MiB are needed" in answer.json()["error"]
    assert not (small_disk / "trilithon/models/blobs").exists()


@pytest.mark.parametrize("jump_seconds", [-3e7, 3e7])
def test_a_clock_that_jumps_changes_dates_and_no_durations(
    serve: Serve, tiny: Path, monkeypatch: pytest.MonkeyPatch, jump_seconds: float
) -> None:
    """As when a board without a battery learns the time from the network: here the wall clock that the server reads
    jumps by a year while it answers. A real one cannot be moved without disturbing everybody."""
    server = serve(tiny, placement="scripted/cpu:prefill=50000,decode=200", keep_alive_seconds=300.0)
    ready_again(server)
    later = SimpleNamespace(
        time=lambda: time.time() + jump_seconds, time_ns=lambda: time.time_ns() + int(jump_seconds * 1e9)
    )

    class Jumped(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(time.time() + jump_seconds, tz)  # type: ignore[arg-type]

    with server.http.stream("POST", "/api/chat", json=asked(server.model, 100)) as answer:
        lines = answer.iter_lines()
        next(lines)
        monkeypatch.setattr(answers, "time", later)
        monkeypatch.setattr(routes, "time", later)
        monkeypatch.setattr(models, "datetime", Jumped)
        last = list(lines)[-1]
    end = json.loads(last)
    assert end["done"] is True and end["eval_count"] == 100
    assert 0 < end["eval_duration"] <= end["total_duration"] < 100e9
    (shown,) = server.http.get("/api/ps").json()["models"]
    left = datetime.fromisoformat(shown["expires_at"]).timestamp() - (time.time() + jump_seconds)
    assert 200 < left <= 301
    assert dict(asyncio.run(many(server, 4))) == {"whole": 4}
    (loaded,) = server.pool.loaded()
    assert loaded.state == "ready" and loaded.crashes == 0


def asked(model: str, tokens: int) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], "options": {"num_predict": tokens}}
