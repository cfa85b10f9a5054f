"""`trilithon bench` with servers as placements: a real llama-server beside the engine itself, and a stand-in."""

import asyncio
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from standin_servers import StandInServer, serving

from trilithon.engines.remote.placing import place_server
from trilithon.engines.wire.messages import Candidate, Completion
from trilithon.models.files.model_file import read_model_file
from trilithon.results.store.database import Store
from trilithon.runtime.remote.runner import RemoteRunner

Program = Callable[..., Any]
SHORT = ("-p", "96", "-n", "12", "-r", "1", "--test", "pp", "--test", "tg", "--no-quality")
SECONDS = 60


@pytest.fixture(scope="module")
def llama_server(tiny: Path) -> Iterator[str]:
    """The packaged llama.cpp's server, on a port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = {"socket": "127.0.0.1", "port": port, "model.path": str(tiny), "n_ctx": 4096, "n_parallel": 1}
    values |= {"cpuparams.n_threads": 1, "cpuparams_batch.n_threads": 1, "endpoint_slots": True, "use_jinja": True}
    values |= {"ui": False, "cache_ram_mib": 0, "n_ctx_checkpoints": 0}
    command = [sys.executable, "-P", "-m", "trilithon.engines.llamacpp.child.embedded", json.dumps(values)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ) as process:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{address}/health")
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield address
        process.terminate()


@pytest.mark.slow
def test_servers_beside_the_engine_itself(trilithon: Program, home: Path, tiny: Path, llama_server: str) -> None:
    with serving(StandInServer("RKLLAMA", unit=1e3, answer_words=40)) as rkllama:
        there = f"{rkllama.address}#qwen2.5:1.5b"
        placements = ("llama.cpp/cpu:t=1", llama_server, there)
        words = [word for placement in placements for word in ("--placement", placement)]
        done = trilithon("bench", tiny, *SHORT, *words, "--report", home / "report")
    assert done.code == 0, done.stderr
    for placement in placements[1:]:
        assert f"{placement}, tg12: through HTTP" in done.stdout
    assert not any(line.startswith("warning: http") and "other programs" in line for line in done.stderr.splitlines())
    assert "runs it on http" not in done.stderr
    assert not any("plan set" in line and "http" in line for line in done.stderr.splitlines())
    assert "RKLLAMA 0.0.74, model qwen2.5:1.5b; pp and tg by the server's timings" in done.stderr
    assert "the server states the duration of prefill in milliseconds, where nanoseconds are meant" in done.stderr
    assert "through HTTP" in (home / "report" / "report.html").read_text(encoding="utf-8")

    with Store.open(home / "data" / "trilithon" / "results.sqlite") as store:
        campaign = store.campaign(1)
    records = {record.name: record for record in campaign.placements}
    assert {name: record.unit for name, record in records.items()} == dict(
        zip(placements, ("cpu", "server", "server"), strict=True)
    )
    assert records[llama_server].build == "llama-server"
    assert records[llama_server].settings["through"] == "HTTP"
    assert "through HTTP" in trilithon("results", "show", "1", "-o", "md").stdout
    assert json.loads(trilithon("results", "show", "1", "-o", "json").stdout)


def test_log_probabilities_of_a_llama_server(llama_server: str, tiny: Path, tmp_path: Path) -> None:
    """Its token ids are the file's, and its distributions those that quality is judged by."""
    file = read_model_file(tiny, tmp_path)
    placement = place_server("s", {"address": llama_server}, (file.name,), file, 4096)
    assert placement.file.parameters is not None

    async def work() -> list[Candidate]:
        async with RemoteRunner.open(placement, hang_seconds=60) as runner:
            assert await runner.vocabulary_size() == file.vocabulary
            tokens = await runner.tokenize("two stones stand upright")
            candidates, timings = await runner.distribution(Completion(prompt=tokens, max_tokens=1, candidates=8))
            assert (timings.prompt_n, timings.cache_n) == (len(tokens), 0)
            return candidates

    candidates = asyncio.run(work())
    assert len(candidates) == 8
    assert sum(math.exp(candidate.logprob) for candidate in candidates) <= 1.001


def test_a_server_is_no_plan(trilithon: Program, home: Path, tiny: Path) -> None:
    done = trilithon("plan", "set", tiny, "http://127.0.0.1:9")
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert "can be measured, and not served from" in done.stderr
    done = trilithon("config", "set", "serve.placement", "http://127.0.0.1:9")
    assert done.code == 2
    assert "can be measured, and not served from" in done.stderr


def test_what_is_wrong_with_a_server_is_told_before_the_campaign(trilithon: Program, home: Path, tiny: Path) -> None:
    with serving(StandInServer("Ollama")) as server:
        done = trilithon("bench", tiny, *SHORT, "--placement", server.address)
    assert (done.code, done.stdout) == (2, "")
    assert "error: placement http://127.0.0.1" in done.stderr
    assert "it has qwen2.5:1.5b" in done.stderr
    done = trilithon("bench", tiny, *SHORT, "--placement", server.address)
    assert done.code == 2
    assert f"no server answers at {server.address}" in done.stderr.splitlines()[-1]
