"""Whether a placement is right: its next-token distributions compared with a reference placement's, and its answer.

Speed never stands without it. The thresholds are here and nowhere else; `docs/methodology.md` gives the reasons."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from statistics import fmean

from trilithon.bench.workloads import ask
from trilithon.engines.base import Placement
from trilithon.engines.remote.placing import writes_tokens
from trilithon.engines.wire.messages import Completion
from trilithon.errors import RunError
from trilithon.measure.divergence import SAME_DIVERGENCE, agreement, kl_divergence, surprise
from trilithon.measure.metrics import split_words
from trilithon.measure.records import QualityRecord
from trilithon.runtime.remote.measured import MeasuredRunner

__all__ = [
    "POSITIONS",
    "POSITIONS_OF_ANOTHER_ENGINE",
    "QualityReading",
    "decode_positions",
    "judge",
    "judge_answer",
    "not_judged",
    "read_quality",
]

POSITIONS = 32
"""Positions by prefill, and as many by step-by-step decode."""

POSITIONS_OF_ANOTHER_ENGINE = 256
"""In all, where two engines are compared: their kernels have nothing in common. The additional ones are by decode,
which costs one step each."""

_CANDIDATES = 64
_STEP_TOKENS = 32  # the smallest batch that the NPU forks evaluate as a prefill
_FIRST_TOKENS = 64  # where the text has said enough to be predictable
_ANSWER_TOKENS = 96

# Mean KL divergence in nats per token, and the fraction of equal most probable tokens. Published anchors on
# Gemma-3-1B: Q8_0-like W8A8 with Hadamard 0.003 and 98%, Q8_0 against F16 0.004 and 97%, plain W8A8 0.074 and 88%,
# W4A4 0.82 and 62%, a ruined 4-bit pipeline 9.1 and 1%.
SAME_AGREEMENT = 0.85
BROKEN_DIVERGENCE, BROKEN_AGREEMENT = 2.0, 0.25
# A model that knows no language at all: every model that was trained on text stays far below, also a small one.
BROKEN_PERPLEXITY = 1000.0


@dataclass(frozen=True, slots=True)
class QualityReading:
    """What one placement said: per position, log-probabilities by token id. `tokens` are those of the fixed text;
    `prefill` and `decode` are keyed by the number of tokens read before."""

    tokens: tuple[int, ...]
    prefill: Mapping[int, Mapping[int, float]]
    decode: Mapping[int, Mapping[int, float]]
    answer: str


def decode_positions(placement: Placement, reference: Placement) -> int:
    """How many positions by decode it takes to compare the two."""
    if placement.build.engine == reference.build.engine:
        return POSITIONS
    return POSITIONS_OF_ANOTHER_ENGINE - POSITIONS


async def read_quality(runner: MeasuredRunner, question: str, by_decode: int = POSITIONS) -> QualityReading:
    """Ask the placement for its next-token distributions along the fixed text, and for a short answer.

    By prefill: the text grows by 32 tokens a request, each evaluated as one batch on top of the KV cache, and is at
    last evaluated whole, from an empty cache. By decode: the text grows by one token a request, so that each is
    evaluated alone, as a generated one is; where the engine evaluated more (it kept no prefix), it is not counted, and
    POSITIONS are enough to see that.

    A server that takes text only gives its answer alone."""
    if not writes_tokens(runner.placement):
        return QualityReading((), {}, {}, await ask(runner, question, _ANSWER_TOKENS))
    text = files("trilithon.bench").joinpath("quality_text.txt").read_text(encoding="utf-8")
    tokens = (await runner.tokenize(" ".join(text.split())))[: _FIRST_TOKENS + POSITIONS * _STEP_TOKENS]
    if len(tokens) < _FIRST_TOKENS + 2 * POSITIONS:
        raise RunError(f"the fixed text has only {len(tokens)} tokens for this model", cause="unusable tokenizer")
    # llama-server keeps back the distribution of a token that is half a character, which a broken model likes to say.
    plain = (await runner.tokenize(" a", add_special=False))[-1]

    async def distribution(count: int, *, cache_prompt: bool = True) -> tuple[Mapping[int, float], int]:
        return await _distribution(runner, tokens[:count], plain, cache_prompt=cache_prompt)

    step = min(_STEP_TOKENS, (len(tokens) - _FIRST_TOKENS) // POSITIONS)
    whole = _FIRST_TOKENS + step * POSITIONS
    prefill = {}
    for count in range(_FIRST_TOKENS + step, whole, step):
        prefill[count], _ = await distribution(count)
    prefill[whole], _ = await distribution(whole, cache_prompt=False)
    decode: dict[int, Mapping[int, float]] = {}
    await distribution(_FIRST_TOKENS)  # the beginning, by prefill
    for count in range(_FIRST_TOKENS + 1, min(_FIRST_TOKENS + by_decode, len(tokens)) + 1):
        if count > _FIRST_TOKENS + POSITIONS and not decode:
            break
        candidates, evaluated = await distribution(count)
        if evaluated == 1:
            decode[count] = candidates
    return QualityReading(tuple(tokens), prefill, decode, await ask(runner, question, _ANSWER_TOKENS))


async def _distribution(
    runner: MeasuredRunner, tokens: Sequence[int], forced: int, *, cache_prompt: bool
) -> tuple[Mapping[int, float], int]:
    """The distribution after `tokens`, and how many of them were evaluated for it."""
    request = Completion(prompt=tokens, max_tokens=1, cache_prompt=cache_prompt, candidates=_CANDIDATES, forced=forced)
    candidates, timings = await runner.distribution(request)
    if not candidates:
        raise RunError("the engine gave no log-probabilities", cause="no log-probabilities")
    # A probability of exactly 0 or no number comes as null or -inf from a broken pipeline; it counts as impossible.
    logprobs = {c.token: c.logprob if math.isfinite(c.logprob) else -100.0 for c in candidates}
    return logprobs, timings.prompt_n


def judge(reading: QualityReading, reference: QualityReading | None, reference_name: str) -> QualityRecord:
    """Hold a placement against the reference; `reference` None: this one is the reference itself.

    An answer's fault that the reference's answer has too is the model's way, and no fault of the placement."""
    if not reading.tokens:
        return _judged_by_answer(reading, reference, reference_name)
    perplexity = math.exp(fmean(_surprises(reading)))
    reasons = []
    if perplexity > BROKEN_PERPLEXITY:
        reasons.append(f"perplexity {perplexity:.0f} on plain English: it does not model language")
    if reference is None:
        return QualityRecord(
            verdict="broken" if reasons else "reference",
            reference=reference_name,
            positions=len(reading.prefill) + len(reading.decode),
            perplexity=perplexity,
            reasons=(*reasons, *judge_answer(reading.answer)),
        )
    reasons += [fault for fault in judge_answer(reading.answer) if fault not in judge_answer(reference.answer)]
    if reading.tokens != reference.tokens:
        return QualityRecord(
            verdict="broken" if reasons else "unknown",
            reference=reference_name,
            perplexity=perplexity,
            reasons=(*reasons, "a different tokenizer from the reference's: the distributions cannot be compared"),
        )
    return _compared(reading, reference, reference_name, perplexity, reasons)


def _judged_by_answer(reading: QualityReading, reference: QualityReading | None, name: str) -> QualityRecord:
    """Where there are no distributions: the same words from the most probable token at each step are the same answer,
    and others may be as good."""
    faults = judge_answer(reading.answer)
    if reference is None:
        return QualityRecord(verdict="reference", reference=name, reasons=faults)
    new_faults = tuple(fault for fault in faults if fault not in judge_answer(reference.answer))
    if new_faults:
        return QualityRecord(verdict="broken", reference=name, reasons=new_faults)
    words, others = split_words(reading.answer), split_words(reference.answer)
    equal = next((at for at, pair in enumerate(zip(words, others, strict=False)) if pair[0] != pair[1]), len(others))
    is_same = words == others and len(words) >= _LOOP_LEAST_WORDS
    reason = f"by its answer alone: the first {equal} of {len(others)} words are the reference's"
    return QualityRecord(verdict="same" if is_same else "unknown", reference=name, reasons=(reason,))


def not_judged(reference_name: str) -> QualityRecord:
    """For a synthetic model, whose weights are random: right or wrong, what it says means nothing."""
    reason = "the model is synthetic: its weights are random, so quality was not checked"
    return QualityRecord(verdict="unknown", reference=reference_name, reasons=(reason,))


def _compared(
    reading: QualityReading, reference: QualityReading, name: str, perplexity: float, reasons: list[str]
) -> QualityRecord:
    roads = [
        [(reference.prefill[at], reading.prefill[at]) for at in reference.prefill],
        [(reference.decode[at], reading.decode[at]) for at in reference.decode if at in reading.decode],
    ]
    by_prefill, by_decode = (fmean(kl_divergence(*pair) for pair in road) if road else None for road in roads)
    pairs = roads[0] + roads[1]
    divergence = fmean(kl_divergence(*pair) for pair in pairs)
    agreeing = fmean(agreement(*pair) for pair in pairs)
    worst = max(by_prefill or 0.0, by_decode or 0.0)
    if worst > BROKEN_DIVERGENCE:
        reasons.append(f"KL divergence {worst:.2g} by {'prefill' if worst == by_prefill else 'decode'}")
    if agreeing < BROKEN_AGREEMENT:
        reasons.append(f"only {agreeing:.0%} of its most probable tokens are the reference's")
    broken = bool(reasons)
    degraded = worst > SAME_DIVERGENCE or agreeing < SAME_AGREEMENT
    if degraded and not broken:
        reasons.append(f"KL divergence {worst:.2g}, {agreeing:.0%} of its most probable tokens are the reference's")
    if not roads[1]:
        reasons.append("decode was not checked separately from prefill: the engine keeps no prefix")
    return QualityRecord(
        verdict="broken" if broken else "degraded" if degraded else "same",
        reference=name,
        positions=len(pairs),
        divergence=divergence,
        divergence_prefill=by_prefill,
        divergence_decode=by_decode,
        agreement=agreeing,
        perplexity=perplexity,
        reasons=tuple(reasons),
    )


def _surprises(reading: QualityReading) -> list[float]:
    """How surprised it was by what the text really says next."""
    seen = [*reading.prefill.items(), *reading.decode.items()]
    return [surprise(distribution, reading.tokens[at]) for at, distribution in seen if at < len(reading.tokens)]


# An answer is called looping when this much of its runs of so many words have stood in it before.
_LOOP_WORDS, _LOOP_SHARE, _LOOP_LEAST_WORDS = 4, 0.5, 24
_TEXT_SHARE = 0.6
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def judge_answer(answer: str) -> tuple[str, ...]:
    """What is wrong with an answer's text, whatever it says: empty, looping, not text."""
    if not answer.strip():
        return ("the answer is empty",)
    faults = []
    text = answer.strip().rstrip(_REPLACEMENT)  # the limit may have cut its last character in two
    unreadable = sum(char == _REPLACEMENT or _is_unreadable(char) for char in text)
    # Marks are the vowels of Hindi or Thai.
    letters = sum(unicodedata.category(char)[0] in "LMN" for char in text)
    if unreadable > 0.02 * len(text) or letters < _TEXT_SHARE * sum(not char.isspace() for char in text) or not text:
        faults.append("the answer is not text")
    words = split_words(text)
    if len(words) >= _LOOP_LEAST_WORDS:
        runs = [tuple(words[i : i + _LOOP_WORDS]) for i in range(len(words) - _LOOP_WORDS + 1)]
        if len(runs) - len(set(runs)) >= _LOOP_SHARE * len(runs):
            faults.append("the answer repeats itself in a loop")
    return tuple(faults)


def _is_unreadable(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cn", "Co", "Cs") and char not in "\n\r\t"
