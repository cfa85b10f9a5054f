"""One question to `trilithon serve`, to the same engine asked directly, and to llama-server as Ollama starts it."""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from _figures import CannotMeasure
from _server import Server, children, serving

from trilithon.board.processes import listening_port
from trilithon.measure.records import Test

__all__ = [
    "LLAMA_DEFAULTS",
    "OLLAMA_FLAGS",
    "PROMPT_TOKENS",
    "as_ollama_starts_it",
    "asked_for",
    "engine_of",
    "prompt_for",
    "seconds_of_server",
    "served",
]

PROMPT_TOKENS, _ANSWER_TOKENS = 512, 128
_CONTEXT = 1024
_WAIT_SECONDS = 3600.0
_WORDS = "The stones stand in a circle on the plain, and nobody remembers who brought them here or why they did so. "
# What llm/llama_server.go of Ollama 0.33 passes; -c is num_ctx, 4,096 by default. There is no -t: the server chooses.
OLLAMA_FLAGS = ("--no-webui", "--offline", "-c", "4096", "-np", "1", "--flash-attn", "auto")
LLAMA_DEFAULTS = ("-c", "4096")
"""llama-server as it comes, but for the context, which is otherwise the model's own and may not fit into memory."""


@contextlib.contextmanager
def served(model: Path, placement: str, builds: Path | None, environment: Mapping[str, str]) -> Iterator[Server]:
    """`trilithon serve MODEL` on one placement; `builds` is the folder of its build, None for the wheel's."""
    known = {"TRILITHON_BUILDS": str(builds)} if builds else {}
    options = ("--placement", placement, "--context", str(_CONTEXT), "--no-pages")
    with serving(model, *options, environment={**environment, **known}) as server:
        yield server


@contextlib.contextmanager
def engine_of(server: Server) -> Iterator[httpx.Client]:
    """A client of the server's only engine: on its Unix socket, or on its port of 127.0.0.1 with its key."""
    for pid in children(server.process):
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        key = re.search(r"--api-key-file\0([^\0]+)", line)
        if key and (port := listening_port(pid)):
            headers = {"Authorization": f"Bearer {Path(key[1]).read_text(encoding='ascii').strip()}"}
            client = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=_WAIT_SECONDS)
        elif socket := re.search(r"/[^\0\"]*wire\.sock", line):
            transport = httpx.HTTPTransport(uds=socket[0])
            client = httpx.Client(base_url="http://localhost", transport=transport, timeout=_WAIT_SECONDS)
        else:
            continue
        with client:
            yield client
            return
    raise CannotMeasure("the server has no engine with a socket or a port")


@contextlib.contextmanager
def as_ollama_starts_it(program: Path, model: Path, flags: Sequence[str] = OLLAMA_FLAGS) -> Iterator[httpx.Client]:
    """`program` is a llama-server; other `flags` are somebody else's."""
    with subprocess.Popen(
        [program, "--model", model, "--host", "127.0.0.1", "--port", "0", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")},
    ) as process:
        try:
            port = _ready_port(process, flags)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_WAIT_SECONDS) as client:
                yield client
        finally:
            process.terminate()


def _ready_port(process: "subprocess.Popen[bytes]", flags: Sequence[str]) -> int:
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        port = listening_port(process.pid)
        with contextlib.suppress(httpx.TransportError):
            if port and httpx.get(f"http://127.0.0.1:{port}/health").status_code == httpx.codes.OK:
                return port
        time.sleep(0.1)
    raise CannotMeasure(f"llama-server did not start with {' '.join(flags)}; try it with this build")


def prompt_for(client: httpx.Client) -> tuple[str, int]:
    """A prompt of about PROMPT_TOKENS tokens for this model, and a token that is a whole character."""
    text = _WORDS * (PROMPT_TOKENS // 10)
    count = len(_posted(client, "/tokenize", {"content": text})["tokens"])
    plain = _posted(client, "/tokenize", {"content": " a", "add_special": False})["tokens"][-1]
    return text[: len(text) * PROMPT_TOKENS // count], int(plain)


def asked_for(client: httpx.Client, prompt: str, plain: int, *, tokens: int = _ANSWER_TOKENS) -> float:
    """Seconds for the whole answer. Each step is forced to one token: random weights would end in half a character,
    which llama-server refuses to send, and all sides do the same work."""
    body = {
        "prompt": prompt,
        "n_predict": tokens,
        "temperature": 0,
        "cache_prompt": False,
        "ignore_eos": True,
        "logit_bias": [[plain, 100.0]],
    }
    started = time.monotonic()
    timings = _posted(client, "/completion", body)["timings"]
    seconds = time.monotonic() - started
    if timings["predicted_n"] != tokens or not 0.9 <= timings["prompt_n"] / PROMPT_TOKENS <= 1.1:
        raise CannotMeasure(f"{timings['prompt_n']} tokens were read and {timings['predicted_n']} answered")
    return seconds


def seconds_of_server(program: Path, model: Path, flags: Sequence[str], test: Test) -> float:
    """Of a llama-server that is started for it, for a prompt and an answer of the test's lengths."""
    with as_ollama_starts_it(program, model, flags) as client:
        words = _posted(client, "/tokenize", {"content": _WORDS * (test.prompt_tokens // 10)})["tokens"]
        plain = _posted(client, "/tokenize", {"content": " a", "add_special": False})["tokens"][-1]
        prompt = (words * (test.prompt_tokens // len(words) + 1))[: test.prompt_tokens]
        body: dict[str, Any] = {"n_predict": 2, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
        body["logit_bias"] = [[plain, 100.0]]
        _posted(client, "/completion", body | {"prompt": prompt[:32]})  # a warm-up, as the others have
        started = time.monotonic()
        answer = _posted(client, "/completion", body | {"prompt": prompt, "n_predict": test.generated_tokens})
        seconds = time.monotonic() - started
    counts = answer["timings"]["prompt_n"], answer["timings"]["predicted_n"]
    if counts != (test.prompt_tokens, test.generated_tokens):
        raise CannotMeasure(f"llama-server read {counts[0]} and generated {counts[1]} tokens instead of {test.name}")
    return seconds


def _posted(client: httpx.Client, path: str, body: Mapping[str, Any]) -> Any:
    answer = client.post(path, json=body)
    if answer.status_code != httpx.codes.OK:
        raise CannotMeasure(f"{path} was answered with {answer.status_code}: {answer.text[:300]}")
    return answer.json()
