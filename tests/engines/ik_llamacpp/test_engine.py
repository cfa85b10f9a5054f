"""ik_llama.cpp by its stand-in (standin/), or by a build of the real program: TRILITHON_TEST_IK names its folder."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trilithon.board.processes import listening_port
from trilithon.engines.base import Build, Placement, Settings
from trilithon.engines.ik_llamacpp.dialect import IkDialect
from trilithon.engines.ik_llamacpp.engine import IkLlamaCpp
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.engines.wire.messages import Chat, Completion
from trilithon.errors import ChildDied, EngineError, EngineTimeout, StartError
from trilithon.measure.divergence import kl_divergence
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.endpoint import Endpoint
from trilithon.runtime.exchange import Exchange
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

STANDIN = Path(__file__).parent / "standin" / "llama_server.py"
REAL = os.environ.get("TRILITHON_TEST_IK")
ASK = Completion(prompt="Two stones stand upright", max_tokens=6, ignore_eos=True)
# A model of random weights likes to say half characters, which no two servers treat alike.
PLAIN = {"temperature": 0, "grammar": "root ::= [ -~]+"}
# The real program computes in other kernels, some in 8 bits.
EQUAL = 1e-3 if REAL else 1e-5

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No llama-server of this machine's."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if REAL:
        return Path(REAL)
    folder = tmp_path_factory.mktemp("ik")
    subprocess.run([sys.executable, STANDIN, "--install", folder], check=True)
    return folder


@pytest.fixture
def ik(folder: Path, tmp_path: Path) -> tuple[IkLlamaCpp, Build]:
    engine = IkLlamaCpp(Configuration(builds=(folder,), data=tmp_path, cache=tmp_path))
    (build,) = engine.builds()
    return engine, build


Run = Callable[..., None]


@pytest.fixture
def run(ik: tuple[IkLlamaCpp, Build], tiny: Path, tmp_path: Path) -> Run:
    """`run(body, model=…, hang_seconds=…, **settings)` awaits `body(runner)`."""

    def start(
        body: Callable[[Runner], Awaitable[None]],
        *,
        engine: Any = None,
        model: Path = tiny,
        hang_seconds: float = 60,
        **settings: Any,
    ) -> None:
        maker, build = engine or ik
        file = read_model_file(model, tmp_path)
        chosen = Settings(**({"threads": 1, "context": 512} | settings))
        placement = Placement(name="ik_llama.cpp/cpu", file=file, build=build, unit="cpu", settings=chosen)

        async def whole() -> None:
            place = tmp_path / f"run-{build.name}"
            async with Runner.open(maker, placement, place, start_seconds=120, hang_seconds=hang_seconds) as runner:
                await body(runner)

        asyncio.run(whole())

    return start


def keeps(runner: Runner) -> bool:
    dialect = runner.client.endpoint.dialect
    return not isinstance(dialect, IkDialect) or dialect.claims_unread is False


def test_is_an_engine_of_its_own(ik: tuple[IkLlamaCpp, Build], folder: Path, tmp_path: Path) -> None:
    engine, build = ik
    assert (build.engine, build.units, build.name) == ("ik_llama.cpp", ("cpu",), "ik")
    assert build.version == "0 (0.1.5)"
    assert build.features == {"logprobs", "grammar", "speculation"}
    assert (engine.missing(), engine.problems()) == ("", ())
    others = LlamaCpp(Configuration(builds=(folder,), data=tmp_path, cache=tmp_path))
    assert [other.where for other in others.builds() if other.where == build.where] == []
    assert others.problems() == ()


def test_without_a_build_it_says_how_to_get_one(tmp_path: Path) -> None:
    engine = IkLlamaCpp(Configuration(data=tmp_path, cache=tmp_path))
    assert engine.missing() == "no ik_llama.cpp is installed; run: trilithon engines build --engine ik"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (Settings(task="rank"), "is for generating only; use llama.cpp/cpu"),
        (Settings(task="embed"), "is for generating only; use llama.cpp/cpu"),
        (Settings(kv_type_k="q9"), "unknown KV type q9; there are f32, f16"),
        (Settings(kv_type_v="q8_KV", flash_attention="off"), "needs flash attention; use -fa on"),
        (Settings(speculation="draft-mtp"), "has no draft-mtp; take spec=ngram-mod"),
        (Settings(options=(("pipeline", "x"),)), "unknown option pipeline for ik_llama.cpp/cpu; there are rtr, khad"),
        (Settings(options=(("rtr", "1"),)), "rtr=1 is not valid; write rtr=on or rtr=off"),
        (Settings(kv_type_k="q8_KV", options=(("khad", "on"),)), ""),
    ],
)
def test_refusals(ik: tuple[IkLlamaCpp, Build], tiny: Path, tmp_path: Path, settings: Settings, reason: str) -> None:
    engine, build = ik
    refusal = engine.refusal(read_model_file(tiny, tmp_path), build, "cpu", settings)
    assert (reason in refusal) if reason else refusal == ""


def test_nothing_is_written_into_the_users_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    async def body(runner: Runner) -> None:
        assert list(here.iterdir()) == []

    run(body)


def test_the_key_is_for_trilithon_alone(run: Run, tmp_path: Path) -> None:
    async def body(runner: Runner) -> None:
        words = Path(f"/proc/{runner.process.pid}/cmdline").read_bytes().split(b"\0")
        assert runner.client.endpoint.key.encode() not in b" ".join(words)
        (key_file,) = tmp_path.glob("run-*/key")
        assert key_file.stat().st_mode & 0o777 == 0o600
        stranger = Endpoint(Path("s"), key="another")
        stranger.pid = runner.process.pid
        async with Exchange.open(stranger, "POST", "/tokenize", {"content": "x"}) as exchange:
            while not exchange.complete:
                await exchange.wait(60)
                exchange.read()
        assert exchange.status == 401
        assert await runner.tokenize("x")
        assert listening_port(runner.process.pid) is not None
        assert listening_port(os.getpid()) is None

    run(body)


def test_answers_are_those_of_llama_cpp(run: Run, tmp_path: Path) -> None:
    """Text, ends, counts and probabilities; also after requests that a slot would not forget."""
    wheel = LlamaCpp(Configuration(data=tmp_path, cache=tmp_path))
    reference = wheel, next(build for build in wheel.builds() if build.name == "embedded")
    seen: list[Any] = []

    async def body(runner: Runner) -> None:
        tokens = await runner.tokenize("Two stones stand upright and a third lies across them.")
        forced = (await runner.tokenize(" a", add_special=False))[-1]
        events, finished = await runner.complete(replace(ASK, forced=forced))
        assert finished.timings is not None
        texts = ["".join(getattr(event, "text", "") for event in events), finished.reason]
        # The bias of the request before is gone, and a forced token does not show in the list.
        prompt = Completion(prompt=tokens, max_tokens=1, candidates=64)
        lists = [(await runner.distribution(request))[0] for request in (prompt, replace(prompt, forced=forced))]
        reused, timings = await runner.distribution(replace(prompt, prompt=[*tokens, 300], cache_prompt=True))
        again, more = await runner.distribution(replace(prompt, prompt=[*tokens, 300, 301], cache_prompt=True))
        # Its builds from PyPI's source claim a token too many, and are then asked for no prefix.
        assert (more.cache_n, more.prompt_n) == ((len(tokens) + 1, 1) if keeps(runner) else (0, len(tokens) + 2))
        assert timings.cache_n + timings.prompt_n == len(tokens) + 1
        _, chat = await runner.complete(Chat(messages=[("user", "hi")], max_tokens=3))
        assert chat.timings is not None
        chats = [chat.reason, chat.timings.prompt_n, chat.timings.predicted_n]
        seen.append((texts, chats, [{c.token: c.logprob for c in entry} for entry in (*lists, reused, again)]))

    run(body)
    run(body, engine=reference)
    (texts, chats, lists), (right_texts, right_chats, right_lists) = seen
    assert (texts, chats) == (right_texts, right_chats)
    for measured, right in zip(lists, right_lists, strict=True):
        assert kl_divergence(right, measured) < EQUAL


def test_a_build_that_counts_once_is_left_alone(run: Run, tiny: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, STANDIN, "--install", tmp_path / "right", "right"], check=True)
    engine = IkLlamaCpp(Configuration(builds=(tmp_path / "right",), data=tmp_path, cache=tmp_path))
    lists: list[dict[int, float]] = []

    async def body(runner: Runner) -> None:
        candidates, _ = await runner.distribution(replace(ASK, max_tokens=1, candidates=4))
        lists.append({candidate.token: candidate.logprob for candidate in candidates})

    run(body, engine=(engine, engine.builds()[0]))
    run(body)
    assert lists[0] == pytest.approx(lists[1], abs=0.02 if REAL else 1e-4)


def test_whole_and_streamed_bodies(run: Run) -> None:
    """As `trilithon serve` gets them."""

    async def body(runner: Runner) -> None:
        async def answer(path: str, request: dict[str, Any]) -> dict[str, Any]:
            return await runner.client._call("POST", path, PLAIN | request)

        chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        whole = await answer("/v1/chat/completions", chat)
        listed = await answer("/v1/chat/completions", chat | {"logprobs": True, "top_logprobs": 3})
        for body in (whole, listed):
            assert (body["object"], body["choices"][0]["finish_reason"]) == ("chat.completion", "length")
            assert body["usage"]["completion_tokens"] == 4
            assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == body["timings"]["cache_n"]
        assert whole["choices"][0]["message"] == listed["choices"][0]["message"]
        entries = listed["choices"][0]["logprobs"]["content"]
        assert [len(entry["top_logprobs"]) for entry in entries] == [3] * len(entries)
        ended = await answer("/completion", {"prompt": "x", "n_predict": 5, "ignore_eos": True, "n_probs": 64})
        assert (ended["stop_type"], ended["tokens_predicted"]) == ("limit", 5)
        assert all(len(entry["top_logprobs"]) == 64 for entry in ended["completion_probabilities"])
        text = (await answer("/completion", {"prompt": "x", "n_predict": 5, "ignore_eos": True}))["content"]
        stopped = await answer("/completion", {"prompt": "x", "n_predict": 5, "ignore_eos": True, "stop": [text[-1]]})
        assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", text[-1])
        for options in ({}, {"stream_options": {"include_usage": True}}):
            async with runner.relay(
                "/v1/chat/completions", chat | {"stream": True, "temperature": 0, **options}
            ) as got:
                events = (await got.read()).decode()
            assert events.count('"finish_reason":"length"') == 1
            assert events.count('"usage"') == len(options)
            assert events.rstrip().endswith("data: [DONE]")
            assert got.timings is not None
            assert got.timings.cache_n + got.timings.prompt_n == whole["usage"]["prompt_tokens"]

    run(body)


def test_a_limit_within_a_character(run: Run) -> None:
    async def body(runner: Runner) -> None:
        for seed in range(12):  # random weights say parts of characters
            options = {"max_tokens": 7, "seed": seed, "temperature": 1}
            completion = {"prompt": "x", "n_predict": 7, "ignore_eos": True, **options}
            assert (await runner.client._call("POST", "/completion", completion))["tokens_predicted"] == 7
            chat = {"messages": [{"role": "user", "content": "hi"}], **options}
            answer = await runner.client._call("POST", "/v1/chat/completions", chat)
            assert isinstance(answer["choices"][0]["message"]["content"], str)

    run(body)


def test_inserting_is_refused_and_the_server_lives_on(run: Run) -> None:
    async def body(runner: Runner) -> None:
        with pytest.raises(EngineError, match="cannot insert text") as refused:
            await runner.client._call("POST", "/infill", {"input_prefix": "a", "input_suffix": "b"})
        assert refused.value.status == 501
        assert (await runner.complete(ASK))[1].reason == "length"

    run(body)


def test_grammars_and_speculation(run: Run) -> None:
    async def body(runner: Runner) -> None:
        request = {"prompt": "x", "n_predict": 8, "temperature": 0, "grammar": 'root ::= "ab"'}
        assert (await runner.client._call("POST", "/completion", request))["content"] == "ab"

    run(body, speculation="ngram-simple")


def test_a_killed_and_a_hung_server(run: Run) -> None:
    async def dies(runner: Runner) -> None:
        os.kill(runner.process.pid, signal.SIGKILL)
        with pytest.raises(ChildDied, match="died"):
            await runner.complete(ASK)

    async def hangs(runner: Runner) -> None:
        os.kill(runner.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(EngineTimeout):
                await runner.timed(replace(ASK, prompt=[5]))
            assert not await runner.client.idle()
        finally:
            os.kill(runner.process.pid, signal.SIGCONT)

    run(dies)
    run(hangs, hang_seconds=2)


def test_a_server_that_refuses_an_option(run: Run) -> None:
    async def body(runner: Runner) -> None:
        raise AssertionError("it must not start")

    with pytest.raises(StartError, match="did not start"):
        run(body, speculation="nonsense")
