"""ik_llama.cpp by the library in the wheel of ik-llama-cpp-python, which `.ci/fixtures` puts into build/fixtures."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trilithon.bench.trial import Trial, reference_answer, try_out
from trilithon.engines.base import Build, Placement, Settings
from trilithon.engines.ik_llamacpp import wheel
from trilithon.engines.ik_llamacpp.engine import IkLlamaCpp
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.engines.wire.messages import Chat, Completion
from trilithon.errors import ChildDied, EngineError, StartError
from trilithon.measure.divergence import kl_divergence
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

LIBRARY = Path(__file__).parents[3] / "build" / "fixtures" / "ik-library"
ASK = Completion(prompt="Two stones stand upright", max_tokens=6, ignore_eos=True)

pytestmark = pytest.mark.slow

Run = Callable[..., None]


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package, for this process and its children, and no llama-server of this machine's."""
    if not LIBRARY.is_dir():
        if os.environ.get("TRILITHON_TEST_WITHOUT_FIXTURES"):
            pytest.skip("TRILITHON_TEST_WITHOUT_FIXTURES is set: ik-llama-cpp-python cannot be fetched here")
        pytest.skip("ik-llama-cpp-python is missing; run: .ci/fixtures")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(LIBRARY), os.environ.get("PYTHONPATH", "")])))
    monkeypatch.syspath_prepend(str(LIBRARY))
    yield


@pytest.fixture
def ik(tmp_path: Path) -> tuple[IkLlamaCpp, Build]:
    engine = IkLlamaCpp(Configuration(data=tmp_path, cache=tmp_path))
    (build,) = engine.builds()
    return engine, build


@pytest.fixture
def run(ik: tuple[IkLlamaCpp, Build], tiny: Path, tmp_path: Path) -> Run:
    """`run(body, engine=…, adapter=…, **settings)` awaits `body(runner)`."""

    def start(
        body: Callable[[Runner], Awaitable[None]], *, engine: Any = None, adapter: Path | None = None, **settings: Any
    ) -> None:
        maker, build = engine or ik
        file = read_model_file(tiny, tmp_path)
        file = replace(file, adapters=((adapter, 1.0),)) if adapter else file
        chosen = Settings(**({"threads": 1, "context": 512} | settings))
        placement = Placement(name="ik_llama.cpp@wheel/cpu", file=file, build=build, unit="cpu", settings=chosen)

        async def whole() -> None:
            place = tmp_path / f"run-{build.name}"
            async with Runner.open(maker, placement, place, start_seconds=120, hang_seconds=120) as runner:
                await body(runner)

        asyncio.run(whole())

    return start


def test_the_package_is_a_build(ik: tuple[IkLlamaCpp, Build], tiny: Path, tmp_path: Path) -> None:
    engine, build = ik
    assert (build.name, build.version, build.units) == ("wheel", "ik-llama-cpp-python 0.1.5", ("cpu",))
    assert (engine.missing(), engine.problems()) == ("", ())
    file = read_model_file(tiny, tmp_path)
    for settings, reason in {
        Settings(): "",
        Settings(kv_type_k="q8_KV", options=(("khad", "on"), ("rtr", "on"))): "",
        Settings(slots=2): "answers one request at a time here; leave slots at 1, or run: trilithon engines build",
        Settings(speculation="ngram-mod"): "does not speculate here; leave spec out, or run: trilithon engines build",
        Settings(task="embed"): "is for generating only; use llama.cpp/cpu",
    }.items():
        refusal = engine.refusal(file, build, "cpu", settings)
        assert (reason in refusal) if reason else refusal == ""


def test_what_cannot_run_here_is_told(ik: tuple[IkLlamaCpp, Build], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = ik
    monkeypatch.setattr(wheel, "cpu_features", lambda _: frozenset({"sse2"}))
    assert engine.builds() == []
    assert engine.missing().endswith("which this CPU lacks; run: trilithon engines build --engine ik")
    monkeypatch.setattr(wheel, "cpu_features", lambda _: frozenset({"avx2", "fma", "f16c", "asimddp"}))
    monkeypatch.setattr(wheel, "_VERSIONS", ("9.9.9",))
    assert engine.missing().startswith("ik-llama-cpp-python 0.1.5 was not tried; run: ")
    assert f"{sys.executable} -m pip install ik-llama-cpp-python==" in engine.missing()


def test_answers_are_those_of_llama_cpp(run: Run, tmp_path: Path) -> None:
    """Text, ends, counts and probabilities; prefixes that are reused give what fresh ones do."""
    embedded = LlamaCpp(Configuration(data=tmp_path, cache=tmp_path))
    reference = embedded, next(build for build in embedded.builds() if build.name == "embedded")
    seen: list[Any] = []

    async def body(runner: Runner) -> None:
        tokens = await runner.tokenize("Two stones stand upright and a third lies across them.")
        forced = (await runner.tokenize(" a", add_special=False))[-1]
        events, finished = await runner.complete(replace(ASK, forced=forced))
        assert finished.timings is not None
        texts = ["".join(getattr(event, "text", "") for event in events), finished.reason]
        prompt = Completion(prompt=tokens, max_tokens=1, candidates=64)
        lists = [(await runner.distribution(prompt))[0]]
        for more in ([300], [300, 301]):
            reused, timings = await runner.distribution(replace(prompt, prompt=[*tokens, *more], cache_prompt=True))
            assert (timings.cache_n, timings.prompt_n) == (len(tokens) + len(more) - 1, 1)
            lists.append(reused)
        _, chat = await runner.complete(Chat(messages=[("user", "hi")], max_tokens=3))
        assert chat.timings is not None
        chats = [chat.reason, chat.timings.prompt_n, chat.timings.predicted_n, await runner.vocabulary_size()]
        seen.append((texts, chats, tokens, [{c.token: c.logprob for c in entry} for entry in lists]))

    run(body)
    run(body, engine=reference)
    (*words, lists), (*right_words, right_lists) = seen
    assert words == right_words
    for measured, right in zip(lists, right_lists, strict=True):
        assert kl_divergence(right, measured) < 1e-3


def test_the_short_check_of_a_build_passes(ik: tuple[IkLlamaCpp, Build], tmp_path: Path) -> None:
    configuration = Configuration(data=tmp_path, cache=tmp_path)

    async def trial() -> Trial:
        return await try_out(ik[1], "cpu", await reference_answer(configuration, tmp_path), configuration, tmp_path)

    result = asyncio.run(trial())
    assert result.works, result.findings
    worked = {finding.capability for finding in result.findings if finding.outcome == "works"}
    assert {"load", "tokenise", "generate", "log-probabilities", "reused prefixes", "logits of gemma3"} <= worked


def test_bodies_ends_and_sampling(run: Run) -> None:
    async def body(runner: Runner) -> None:
        async def answer(path: str, **request: Any) -> dict[str, Any]:
            return await runner.client._call("POST", path, request)

        greedy: dict[str, Any] = {"prompt": "x", "n_predict": 5, "ignore_eos": True, "temperature": 0}
        whole = await answer("/completion", **greedy, n_probs=3)
        assert (whole["stop_type"], whole["tokens_predicted"]) == ("limit", 5)
        assert [len(entry["top_logprobs"]) for entry in whole["completion_probabilities"]] == [3] * 5
        streamed, finished = await runner.complete(replace(ASK, prompt="x", max_tokens=5))
        assert "".join(getattr(event, "text", "") for event in streamed) == whole["content"]
        assert finished.timings is not None and finished.timings.predicted_n == 5
        word = whole["content"][-1]
        stopped = await answer("/completion", **greedy, stop=[word])
        assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", word)
        warm = greedy | {"temperature": 2, "top_k": 0, "top_p": 1, "min_p": 0, "n_predict": 40}
        texts = [(await answer("/completion", **warm, seed=seed))["content"] for seed in (1, 1, 2)]
        assert texts[0] == texts[1] != texts[2]
        chat = await answer("/v1/chat/completions", messages=[{"role": "user", "content": "hi"}], max_tokens=4)
        assert chat["usage"]["completion_tokens"] == 4

    run(body)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"grammar": 'root ::= "a"'}, '"grammar" is not supported by ik_llama.cpp\'s library; leave it out'),
        ({"json_schema": {"type": "object"}}, '"json_schema" is not supported'),
        ({"temperature": -1}, '"temperature" must be from 0 to 100'),
        ({"logit_bias": [["two words", 1]]}, "which is no token of this model"),
        ({"prompt": [5] * 600}, "exceeds the available context size"),
        ({"prompt": [1 << 40]}, "invalid tokens"),
    ],
)
def test_refusals_leave_the_server_alive(run: Run, fields: dict[str, Any], words: str) -> None:
    async def body(runner: Runner) -> None:
        with pytest.raises(EngineError, match=words.replace("(", r"\(")) as refused:
            await runner.client._call("POST", "/completion", {"prompt": "x", "n_predict": 2} | fields)
        assert refused.value.status == 400
        assert (await runner.complete(ASK))[1].reason == "length"

    run(body)


def test_a_client_that_leaves_ends_the_answer_and_the_next_is_right(run: Run) -> None:
    async def body(runner: Runner) -> None:
        right, _ = await runner.complete(ASK)
        long = replace(ASK, max_tokens=400)
        stream = runner.stream(long)
        await anext(stream)
        await stream.aclose()
        again, finished = await runner.complete(ASK)
        assert [getattr(event, "text", "") for event in again] == [getattr(event, "text", "") for event in right]
        assert finished.reason == "length"

    run(body)


def test_a_killed_server_and_one_that_cannot_load(run: Run, tiny: Path) -> None:
    async def dies(runner: Runner) -> None:
        os.kill(runner.process.pid, signal.SIGKILL)
        with pytest.raises(ChildDied, match="died"):
            await runner.complete(ASK)

    async def never(runner: Runner) -> None:
        raise AssertionError("it must not start")

    run(dies)
    with pytest.raises(StartError, match="did not start: the LoRA adapter is not for this model"):
        run(never, adapter=tiny)
