import asyncio
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.bench.quality import (
    POSITIONS,
    POSITIONS_OF_ANOTHER_ENGINE,
    QualityReading,
    decode_positions,
    judge,
    judge_answer,
    read_quality,
)
from trilithon.bench.setup import CampaignSetup, resolve
from trilithon.board.snapshot import read_board
from trilithon.engines.table import engine
from trilithon.errors import RunError
from trilithon.measure.records import Test
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.process import workspace
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

LOOP, NOISE, EMPTY = "the answer repeats itself in a loop", "the answer is not text", "the answer is empty"
HALF = "\N{REPLACEMENT CHARACTER}"
ENGLISH = (
    "OpenAI is a company that builds artificial intelligence. It was founded in San Francisco in 2015 by a small group "
    "of engineers and investors, first as a non-profit. Its best known product, ChatGPT, answers questions, writes "
    "programs and drafts letters; millions of people use it every week."
)
RUSSIAN = (
    "OpenAI – американская компания, которая занимается разработкой искусственного интеллекта. Она была основана в "
    "декабре 2015 года в Сан-Франциско. Самый известный её продукт, ChatGPT, отвечает на вопросы, пишет программы и "
    "помогает составлять письма. Им каждую неделю пользуются миллионы людей."
)
CHINESE = (
    "OpenAI是一家美国的人工智能研究公司，二〇一五年十二月在旧金山成立。最初它是一家非营利机构，后来增设了营利性的子公司。"
    "它最著名的产品是ChatGPT，可以回答问题、编写程序，也能帮助人们起草信件，每周都有数以百万计的用户。"
)
HINDI = "ओपनएआई एक अमेरिकी कंपनी है जो कृत्रिम बुद्धिमत्ता पर काम करती है। इसकी स्थापना सन् दो हज़ार पंद्रह में हुई थी।"
MARKDOWN = "**OpenAI** is a company 🚀:\n\n- founded in *2015*\n- known for `ChatGPT`\r\n\n1. It does research.\n"


def two(probability: float) -> dict[int, float]:
    """Token 1 with that probability, token 2 with the rest."""
    return {1: math.log(probability), 2: math.log(1 - probability)}


def reading(
    *probabilities: float, decode: float | None = None, answer: str = ENGLISH, tokens: int = 200
) -> QualityReading:
    """Positions with these probabilities in turn; `decode`: that one everywhere by decode."""
    at = range(64, 64 + POSITIONS)
    prefill = {n: two(probabilities[n % len(probabilities)]) for n in at}
    return QualityReading((1,) * tokens, prefill, dict.fromkeys(at, two(decode)) if decode else prefill, answer)


REFERENCE = reading(0.9)


def test_the_reference_itself() -> None:
    record = judge(REFERENCE, None, "llama.cpp/cpu")
    assert record.verdict == "reference"
    assert record.positions == 2 * POSITIONS
    assert record.perplexity == pytest.approx(1 / 0.9)
    assert record.divergence is None
    assert record.reasons == ()


def test_equal_distributions_are_the_same() -> None:
    record = judge(REFERENCE, REFERENCE, "r")
    assert record.verdict == "same"
    assert (record.divergence, record.agreement) == (0, 1)
    assert record.reasons == ()


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        (reading(0.88), "same"),  # KL 0.002
        (reading(0.80), "degraded"),  # KL 0.037
        (reading(0.60), "degraded"),  # KL 0.23
        (reading(0.9, decode=0.60), "degraded"),
        (reading(0.001), "broken"),  # KL 5.9
        (reading(0.9, decode=0.001), "broken"),
        (reading(0.001, decode=0.9), "broken"),
    ],
)
def test_divergence_decides_on_either_road(other: QualityReading, verdict: str) -> None:
    record = judge(other, REFERENCE, "r")
    assert record.verdict == verdict
    assert bool(record.reasons) == (verdict != "same")


def test_the_reason_names_the_road() -> None:
    assert "by decode" in judge(reading(0.9, decode=0.001), REFERENCE, "r").reasons[0]
    assert "by prefill" in judge(reading(0.001, decode=0.9), REFERENCE, "r").reasons[0]


@pytest.mark.parametrize(("flipped", "verdict"), [(0, "same"), (1, "same"), (4, "degraded"), (15, "broken")])
def test_agreement_decides_where_divergence_is_small(flipped: int, verdict: str) -> None:
    other = reading(*[0.495] * flipped, *[0.505] * (16 - flipped))
    record = judge(other, reading(0.505), "r")
    assert record.divergence is not None
    assert record.divergence < 0.001
    assert record.agreement == pytest.approx(1 - flipped / 16)
    assert record.verdict == verdict


def test_a_model_that_knows_no_language_is_broken_even_as_reference() -> None:
    record = judge(reading(0.0005), None, "r")
    assert record.verdict == "broken"
    assert "perplexity 2000" in record.reasons[0]


def test_another_tokenizer_cannot_be_compared() -> None:
    record = judge(replace(REFERENCE, tokens=(2,) * 200), REFERENCE, "r")
    assert record.verdict == "unknown"
    assert "different tokenizer" in record.reasons[0]
    assert record.divergence is None
    looping = replace(REFERENCE, tokens=(1,) * 199, answer="on and on it goes " * 20)
    assert judge(looping, REFERENCE, "r").verdict == "broken"


@pytest.mark.parametrize(
    ("answer", "fault"), [("", EMPTY), ("\n \n", EMPTY), ("and so on " * 40, LOOP), ("#@!$%^&*" * 9, NOISE)]
)
def test_a_fault_of_the_answer_counts_unless_the_reference_has_it_too(answer: str, fault: str) -> None:
    bad = replace(REFERENCE, answer=answer)
    record = judge(bad, REFERENCE, "r")
    assert record.verdict == "broken"
    assert record.reasons == (fault,)
    assert judge(bad, bad, "r").verdict == "same"
    own = judge(bad, None, "r")
    assert own.verdict == "reference"
    assert own.reasons == (fault,)


@pytest.mark.parametrize("answer", [ENGLISH, RUSSIAN, CHINESE, HINDI, MARKDOWN, "Yes.", "42", "是的。"])
def test_good_answers_have_no_fault(answer: str) -> None:
    assert judge_answer(answer) == ()
    # The limit may cut it anywhere, also within a character.
    assert judge_answer(answer[: max(1, len(answer) * 2 // 3)] + HALF) == ()


@pytest.mark.parametrize("period", [1, 2, 4, 7, 10, 15])
def test_a_loop_is_seen_whatever_its_length(period: int) -> None:
    words = [f"word{n}" for n in range(period)]
    assert judge_answer(" ".join(words * (64 // period + 1))) == (LOOP,)
    assert judge_answer(ENGLISH + " " + " ".join(words * (128 // period + 1))) == (LOOP,)


def test_a_loop_is_seen_in_chinese() -> None:
    assert judge_answer("我不知道你在说什么。" * 12) == (LOOP,)


@pytest.mark.parametrize(
    "answer", [HALF * 30, f"word {HALF} " * 5 + ENGLISH[:60], "a\x00b\x01c\x02" * 9, "}{)(][;;" * 9]
)
def test_noise_is_seen(answer: str) -> None:
    assert NOISE in judge_answer(answer)


@given(st.text(max_size=200))
def test_any_answer_can_be_judged(answer: str) -> None:
    assert set(judge_answer(answer)) <= {LOOP, NOISE, EMPTY}


# -- read from real children


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache", hang_seconds=20.0)


def read(
    names: Mapping[str, str], tiny: Path, configuration: Configuration, by_decode: int = POSITIONS
) -> dict[str, QualityReading]:
    """By label, what the placement of that spelling says."""
    file = read_model_file(tiny, configuration.cache)
    plan = CampaignSetup(model=tiny, tests=(Test(kind="pp", prompt_tokens=16),), placements=tuple(names.values()))
    placements = resolve(plan, file, read_board(), configuration)

    async def work() -> dict[str, QualityReading]:
        found = {}
        with workspace() as folder:
            for label, placement in zip(names, placements, strict=True):
                runner = Runner.open(
                    engine(placement.build.engine, configuration),
                    placement,
                    folder / label,
                    start_seconds=30,
                    hang_seconds=20,
                )
                async with runner as opened:
                    found[label] = await read_quality(opened, "tell me about openai", by_decode)
        return found

    return asyncio.run(work())


@pytest.mark.slow
def test_the_scripted_engine_is_as_wrong_as_it_was_told(tiny: Path, configuration: Configuration) -> None:
    fast = "prefill=1000000,decode=100000"
    names = {
        "right": f"scripted/cpu:{fast}",
        "other unit": f"scripted/gpu:{fast}",
        "partly": f"scripted/cpu:{fast},wrong=0.3",
        "wrong": f"scripted/cpu:{fast},wrong=1",
        "loop": f"scripted/cpu:{fast},garbage=loop",
        "noise": f"scripted/cpu:{fast},garbage=noise",
        "empty": f"scripted/cpu:{fast},garbage=empty",
    }
    found = read(names, tiny, configuration)
    reference = found["right"]
    assert len(reference.prefill) >= 32
    assert len(reference.decode) >= 32
    assert all(len(distribution) == 64 for distribution in reference.prefill.values())
    records = {label: judge(each, reference, "right") for label, each in found.items()}
    assert records["other unit"].verdict == "same"
    assert records["partly"].verdict in ("degraded", "broken")
    assert records["partly"].agreement == pytest.approx(0.7, abs=0.2)
    assert records["wrong"].verdict == "broken"
    assert records["loop"].reasons == (LOOP,)
    assert records["noise"].reasons == (NOISE,)
    assert records["empty"].reasons == (EMPTY,)


@pytest.mark.slow
def test_a_real_model_with_random_weights(tiny: Path, configuration: Configuration) -> None:
    """Its answers are half characters as often as not: each position has its distribution all the same."""
    found = read({"one": "llama.cpp/cpu:t=1", "other": "llama.cpp/cpu:t=1,ub=128"}, tiny, configuration)
    one, other = found["one"], found["other"]
    assert len(one.prefill) == len(one.decode) == POSITIONS
    assert len(one.tokens) >= 64 + POSITIONS * 32
    assert all(len(distribution) == 64 for distribution in [*one.prefill.values(), *one.decode.values()])
    record = judge(other, one, "one")
    assert record.divergence == pytest.approx(0, abs=0.001)
    assert record.agreement is not None
    assert record.agreement > 0.95


def test_a_child_that_dies_is_a_run_error(tiny: Path, configuration: Configuration) -> None:
    with pytest.raises(RunError, match="SIGSEGV"):
        read({"bad": "scripted/cpu:decode=100000,prefill=1000000,crash_after=3"}, tiny, configuration)


def test_an_engine_that_keeps_no_prefix_is_judged_by_prefill_alone() -> None:
    found = judge(replace(reading(0.9), decode={}), REFERENCE, "r")
    assert (found.verdict, found.divergence_decode) == ("same", None)
    assert "decode was not checked" in found.reasons[0]
    assert judge(replace(reading(0.001), decode={}), REFERENCE, "r").verdict == "broken"


@pytest.mark.slow
def test_every_position_by_decode_was_evaluated_alone(tiny: Path, configuration: Configuration) -> None:
    more = POSITIONS_OF_ANOTHER_ENGINE - POSITIONS
    (found,) = read({"real": "llama.cpp@embedded/cpu:t=1"}, tiny, configuration, more).values()
    assert (len(found.prefill), len(found.decode)) == (POSITIONS, more)


def test_another_engine_is_compared_at_more_positions(tiny: Path, configuration: Configuration) -> None:
    plan = CampaignSetup(model=tiny, tests=(), placements=("llama.cpp@embedded/cpu", "scripted/cpu", "scripted/gpu"))
    real, one, other = resolve(plan, read_model_file(tiny, configuration.cache), read_board(), configuration)
    assert decode_positions(one, real) + POSITIONS == decode_positions(real, one) + POSITIONS == 256
    assert decode_positions(one, other) == decode_positions(real, real) == POSITIONS
