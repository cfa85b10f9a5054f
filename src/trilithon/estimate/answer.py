"""The answer to "how fast will this model be, and does it fit?": one row per chip and engine."""

import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from trilithon.board.chips import Chip, platforms
from trilithon.errors import UserError
from trilithon.estimate.memory import MemoryParts, copied_bytes, gguf_memory, vendor_memory
from trilithon.estimate.predict import Phase, Prediction, fitted, predict
from trilithon.estimate.rows import Measurement, atlas
from trilithon.estimate.sizes import ModelSize, WeightBytes, bits_of, size_named, weights_of
from trilithon.estimate.terms import Case, case_of, machine_rates
from trilithon.language import Message
from trilithon.suggestions import alternatives
from trilithon.tables import table_beside

__all__ = ["PROMPT_TOKENS", "Range", "SpeedEstimate", "Subject", "case_for", "estimates", "known_engines"]

PROMPT_TOKENS = 512
"""Of the prefill that is estimated where no other is named: pp512."""
_ANSWER_TOKENS = 128
_BOARD = "aarch64"  # of every chip in the table
# The current state of what a stranger's board and build are: users measure RKLLM slower than its maker.
_STRANGER = ("user/vendor-npu",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The model: a file has exact `weights` and its own `quantization`. `reference` is what a user would pull;
    `converted` says that it is a file for an NPU's own engine, and not a GGUF; `sizes_from` says where the sizes are
    from if a server was asked."""

    reference: str
    size: ModelSize
    weights: WeightBytes | None = None
    quantization: str | None = None
    converted: bool = False
    sizes_from: Message | None = None


@dataclass(frozen=True, slots=True)
class Range:
    """An estimate with its two intervals, (low, high)."""

    value: float
    within_80: tuple[float, float]
    within_95: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedEstimate:
    """Speeds in tokens per second, `first_token` in seconds, memory in bytes. `basis` says what it rests on, `verify`
    is the command that measures it."""

    chip: str
    engine: str
    unit: str
    quantization: str
    prefill: Range
    decode: Range
    first_token: Range
    memory: MemoryParts
    basis: str
    verify: str


@cache
def known_engines() -> Mapping[str, Any]:
    engines: Mapping[str, Any] = table_beside(__file__, "engines.toml")["engines"]
    return engines


def estimates(
    subject: Subject,
    chips: Sequence[Chip],
    *,
    engine: str | None = None,
    quantization: str | None = None,
    prompt: int | None = None,
    context: int = 4096,
    shift: Mapping[tuple[str, Phase], float] | None = None,
) -> list[SpeedEstimate]:
    """For every engine that can run the model on each chip: prefill of `prompt` tokens, and decode of an answer after
    it; without one pp512 and tg128, as `bench` measures them. `shift` has, per engine and phase, the logarithm by which
    the user's own measurements differ. Raises UserError for an engine or a quantisation that does not exist."""
    if quantization and subject.quantization and quantization.lower() != subject.quantization.lower():
        raise UserError(
            "{reference} is {quantization}; leave --quant out, or name the model without it",
            reference=subject.reference,
            quantization=subject.quantization,
        )
    if engine is not None and engine not in known_engines():
        fix = alternatives(engine, known_engines())
        raise UserError(Message("there are no estimates for {engine!r}; {fix}", engine=engine, fix=fix))
    rows = []
    for chip in chips:
        for name, row in known_engines().items():
            if engine in (None, name) and _can_run(chip, row, subject):
                forms = _quantizations(row, chip, subject, quantization)
                rows += [_estimate(subject, chip, name, form, prompt, context, shift or {}) for form in forms]
    if not rows:
        _refuse(quantization, engine)
    return rows


def _refuse(quantization: str | None, engine: str | None) -> None:
    what = f"{quantization or 'this model'} with {engine}" if engine else (quantization or "this model")
    raise UserError(
        "no engine of these chips runs {what}; leave out --engine and --quant to see what they run", what=what
    )


def _can_run(chip: Chip, row: Mapping[str, Any], subject: Subject) -> bool:
    own_format = row.get("own_format", False)
    if (subject.weights is not None and own_format) or (subject.converted and not own_format):
        return False
    return not row["chip_field"] or bool(getattr(chip, row["chip_field"]))


def _quantizations(row: Mapping[str, Any], chip: Chip, subject: Subject, wanted: str | None) -> Iterator[str]:
    chosen = subject.quantization or wanted
    offered = row["quantizations"]
    if chosen is None:
        platform = platforms().get(chip.platform)
        yield row.get("default") or (platform.quantizations[0] if platform else offered[0])
    elif any(chosen.lower() == offer.lower() for offer in offered) or (not offered and _is_gguf(chosen)):
        yield next((offer for offer in offered if offer.lower() == chosen.lower()), chosen.upper())


def _is_gguf(quantization: str) -> bool:
    try:
        bits_of(quantization, 256)
    except KeyError:
        raise UserError(
            "unknown quantisation {quantization!r}; write one as Q4_K_M or w8a8", quantization=quantization[:40]
        ) from None
    return not quantization.lower().startswith("w")


def _estimate(
    subject: Subject,
    chip: Chip,
    engine: str,
    quantization: str,
    prompt: int | None,
    context: int,
    shift: Mapping[tuple[str, Phase], float],
) -> SpeedEstimate:
    case = case_for(subject, chip.name, engine, quantization, prompt or PROMPT_TOKENS)
    answer = case_for(subject, chip.name, engine, quantization, prompt)
    decode = predict("decode", answer, fitted()["decode"], shift.get((engine, "decode")))
    prefill = predict("prefill", case, fitted()["prefill"], shift.get((engine, "prefill")))
    own_format = known_engines()[engine].get("own_format", False)
    unpacked = _weights(subject, quantization)
    opened = (
        shlex.quote(subject.reference) if subject.converted or not own_format else "MODEL.rkllm"
    )  # a pulled name is a GGUF
    if own_format:
        memory = vendor_memory(subject.size, unpacked, context)
    else:
        machine = _BOARD if chip.compatible else platform.machine()
        copied = known_engines()[engine].get("copies", False)
        copies = copied_bytes(subject.size, unpacked, quantization, machine) if copied else 0.0
        memory = gguf_memory(subject.size, unpacked, context, copies=copies)
    return SpeedEstimate(
        chip=chip.name,
        engine=engine,
        unit=case.family.unit,
        quantization=quantization,
        prefill=_rate(prefill, prompt or PROMPT_TOKENS),
        decode=_rate(decode, 1),
        first_token=_seconds(prefill),
        memory=memory,
        basis=Message("your own measurements here") if (engine, "decode") in shift else _basis(case, subject),
        verify=f"trilithon bench {opened} --placement {engine}/{case.family.unit}",
    )


def case_for(subject: Subject, chip: str, engine: str, quantization: str, prompt: int | None) -> Case:
    """What is estimated on `chip`, by its name; decode without a `prompt` before it is tg128. Raises UserError for an
    unknown quantisation."""
    row = known_engines()[engine]
    words = Measurement(
        source="",
        date=row.get("date", ""),
        chip=chip,
        board="",
        engine=row["row"],
        unit=row["unit"],
        model=subject.size.key,
        params_b=subject.size.parameters / 1e9,
        quant=quantization,
        threads_or_cores="",
        prompt_tokens=prompt,
        gen_tokens=_ANSWER_TOKENS,
        prefill_tps=None,
        decode_tps=None,
        ttft_ms=None,
        memory_mb=None,
        notes="",
    )
    case = case_of(words)
    if case is None:
        raise UserError("unknown quantisation {quantization!r}; write one as Q4_K_M or w8a8", quantization=quantization)
    weights = case.weights if case.pipeline else _weights(subject, quantization)
    version = tuple(name for name in case.shared if name.startswith("version/"))
    shared = version + (_STRANGER if row.get("own_format") else ())
    return replace(
        case, size=subject.size, weights=weights, shared=shared, kernel="fast" if row["unit"] == "cpu" else ""
    )


def _weights(subject: Subject, quantization: str) -> WeightBytes:
    if subject.weights is not None:
        return subject.weights
    return weights_of(subject.size, *bits_of(quantization, subject.size.embedding))


def _rate(prediction: Prediction, tokens: int) -> Range:
    value = tokens / prediction.seconds
    low, high = prediction.within
    return Range(value, (value / low, value * low), (value / high, value * high))


def _seconds(prediction: Prediction) -> Range:
    value = prediction.seconds
    low, high = prediction.within
    return Range(value, (value / low, value * low), (value / high, value * high))


def _basis(case: Case, subject: Subject) -> Message:
    """What was measured of this chip and engine, and of this model there."""
    there = _measured_models(case.machine, case.family.name)
    same = sum(_key_of(model) == subject.size.key for model in there)
    if not there and machine_rates(case.machine):
        return Message("no measurement of this chip and engine, only the peak rates of its memory and cores: measure")
    if not there:
        return Message("nothing is known of this machine: measure")
    if not subject.size.exact:
        return Message(
            "{count} measurement of this chip and engine; the model's sizes are guessed from its parameters",
            plural="{count} measurements of this chip and engine; the model's sizes are guessed from its parameters",
            count=len(there),
        )
    return Message(
        "{count} measurement of this chip and engine, {same} of this model",
        plural="{count} measurements of this chip and engine, {same} of this model",
        count=len(there),
        same=same,
    )


@cache
def _measured_models(machine: str, family: str) -> Sequence[str]:
    """The model of each row of the atlas."""
    return [row.model for row in atlas() if row.machine == machine and row.family.name == family]


@cache
def _key_of(name: str) -> str:
    size = size_named(name, 1.0)
    return size.key if size is not None else ""
