"""A placement set on settings that hold: tried in a short probe, and where it dies, hangs or gives garbage, taken down
its engine's ladder of safer settings rung by rung. GPU and NPU drivers make that necessary.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from trilithon.engines.base import Engine, FallbackStep, Placement
from trilithon.engines.wire.messages import Completion
from trilithon.errors import EngineError, RunError
from trilithon.measure.divergence import kl_divergence
from trilithon.runtime.diagnostics import BEYOND_SETTINGS
from trilithon.runtime.fallback.store import FailedAttempt, recall, remember
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

__all__ = ["Fallback", "FallbackProbe", "find_fallback", "lower", "probe"]

# More than 64 tokens in one batch: GPU back-ends have a product of their own for such (ggml-vulkan.cpp). Then some
# single ones, which take another road.
_PROMPT_TOKENS, _DECODED_TOKENS, _CANDIDATES = 96, 8, 64
_PROBE_TEXT = (
    "A harbour town wakes early. Before the sun is up, the first boats come in with their catch, and the quay is loud "
    "with gulls, carts and voices. By seven the baker has sold half of her bread, and the ferry leaves for the islands "
    "with letters, milk and a few sleepy children on their way to school. At noon the wind turns, as it does on most "
    "days in summer, and the flags on the customs house point the other way. In the evening old men sit on the wall "
    "and tell each other what the weather will be."
)
# Nats per token, as where the quality check calls a placement broken.
_GARBAGE_DIVERGENCE = 2.0
# Over the most probable tokens no model that computes gives them all the same.
_FLAT = 1e-6

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FallbackProbe:
    """Next-token distributions, token id → log-probability: after a batch, and after one token more by itself. Empty
    for an engine that gives none. `tokens` are what the text is to this tokenizer: with another one's, nothing can be
    compared."""

    prefill: Mapping[int, float]
    decode: Mapping[int, float]
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """`placement` with the settings that hold; `planned` as it was; `rung` says what was given up (empty: nothing), and
    `falls` what happened with less given up. `remembered`: it was not probed now."""

    placement: Placement
    planned: Placement
    rung: str
    falls: tuple[FailedAttempt, ...]
    remembered: bool

    @property
    def remark(self) -> str:
        """One line for people; empty where nothing was given up."""
        if not self.rung:
            return ""
        cause = self.falls[-1] if self.falls else None
        return f"runs with {self.rung}" + (f", since without it: {cause}" if cause else "")


async def find_fallback(
    engine: Engine,
    placement: Placement,
    configuration: Configuration,
    folder: Path,
    *,
    reference: FallbackProbe | None = None,
    tell: Tell = lambda _: None,
) -> Fallback:
    """The settings that it stands on: known from before, or found out now (and kept). `folder` is private and new;
    `reference` is what the model says elsewhere. An engine without a ladder is not probed.

    Raises the last rung's RunError when none holds, and at once one that no settings can fix.
    """
    rungs = (FallbackStep(name="", settings=placement.settings), *engine.ladder(placement))
    if len(rungs) == 1:
        return _standing(placement, rungs[0], (), remembered=False)
    known = recall(configuration, placement)
    for rung in rungs:
        if known and known.rung == rung.name:
            return _standing(placement, rung, known.falls, remembered=True)
    return await _descend(engine, placement, configuration, folder, rungs, (), reference, tell)


async def lower(
    engine: Engine,
    standing: Fallback,
    reason: RunError,
    configuration: Configuration,
    folder: Path,
    *,
    reference: FallbackProbe | None = None,
    tell: Tell = lambda _: None,
) -> Fallback:
    """The next rung that holds, below one that failed in use for `reason`. Raises `reason` when there is none."""
    rungs = (FallbackStep(name="", settings=standing.planned.settings), *engine.ladder(standing.planned))
    at = [rung.name for rung in rungs].index(standing.rung)
    falls = (*standing.falls, _fall(rungs[at], reason))
    if at + 1 == len(rungs) or not _fixable(reason):
        raise reason
    return await _descend(engine, standing.planned, configuration, folder, rungs[at + 1 :], falls, reference, tell)


async def probe(runner: Runner) -> FallbackProbe:
    """A batch, a token by itself, and a short answer. Raises RunError where it fails, or is no answer."""
    tokens = (await runner.tokenize(_PROBE_TEXT))[: _PROMPT_TOKENS + 1]
    # Forced: half a character at the end is an error to some servers, and a broken model likes to say that.
    plain = (await runner.tokenize(" a", add_special=False))[-1]
    found: list[Mapping[int, float]] = [{}, {}]
    if "logprobs" in runner.placement.build.features:
        found = [await _distribution(runner, tokens[:end], plain) for end in (len(tokens) - 1, len(tokens))]
        await runner.complete(_request(tokens, _DECODED_TOKENS, forced=plain))
    else:
        await runner.complete(_request(tokens, _DECODED_TOKENS))
    return FallbackProbe(found[0], found[1], tuple(tokens))


async def _descend(
    engine: Engine,
    planned: Placement,
    configuration: Configuration,
    folder: Path,
    rungs: Sequence[FallbackStep],
    falls: tuple[FailedAttempt, ...],
    reference: FallbackProbe | None,
    tell: Tell,
) -> Fallback:
    failure: RunError | None = None
    for number, rung in enumerate(rungs):
        tell(f"{planned.name}: does it hold{f' with {rung.name}' if rung.name else ''}?")
        standing = _standing(planned, rung, falls, remembered=False)
        try:
            await _try(engine, standing.placement, configuration, folder / str(number), reference, tell)
        except RunError as error:
            if not _fixable(error):
                raise
            failure = error
            falls = (*falls, _fall(rung, error))
        else:
            remember(configuration, planned, rung.name, falls)
            return standing
    assert failure is not None
    raise failure


async def _try(
    engine: Engine,
    placement: Placement,
    configuration: Configuration,
    folder: Path,
    reference: FallbackProbe | None,
    tell: Tell,
) -> None:
    """An engine that lives and answers with an error may do so once: it is asked again, in a new process."""
    try:
        await _try_once(engine, placement, configuration, folder / "first", reference, tell)
    except EngineError as error:
        if not _fixable(error):
            raise
        await _try_once(engine, placement, configuration, folder / "again", reference, tell)


async def _try_once(
    engine: Engine,
    placement: Placement,
    configuration: Configuration,
    folder: Path,
    reference: FallbackProbe | None,
    tell: Tell,
) -> None:
    async with Runner.open(
        engine,
        placement,
        folder,
        start_seconds=configuration.start_seconds,
        hang_seconds=configuration.hang_seconds,
        waiting=tell,
    ) as runner:
        found = await probe(runner)
    if reference is None or found.tokens != reference.tokens:
        return
    for said, expected in ((found.prefill, reference.prefill), (found.decode, reference.decode)):
        if said and expected and (divergence := kl_divergence(expected, said)) > _GARBAGE_DIVERGENCE:
            raise RunError(f"{placement.name} answers wrongly: KL divergence {divergence:.2g}", cause="wrong answers")


async def _distribution(runner: Runner, tokens: Sequence[int], forced: int) -> Mapping[int, float]:
    """Raises RunError for one that is no distribution."""
    request = _request(tokens, 1, forced=forced, candidates=_CANDIDATES)
    candidates, _ = await runner.distribution(request)
    values = [candidate.logprob for candidate in candidates]
    if not all(map(math.isfinite, values)) or len(values) < 2 or max(values) - min(values) < _FLAT:
        raise RunError(f"{runner.placement.name} computes no probabilities", cause="garbage in place of probabilities")
    return {candidate.token: candidate.logprob for candidate in candidates}


def _request(tokens: Sequence[int], count: int, *, forced: int | None = None, candidates: int = 0) -> Completion:
    return Completion(
        prompt=tokens, max_tokens=count, cache_prompt=True, ignore_eos=True, forced=forced, candidates=candidates
    )


def _standing(
    planned: Placement, rung: FallbackStep, falls: tuple[FailedAttempt, ...], *, remembered: bool
) -> Fallback:
    placement = replace(planned, settings=rung.settings)
    return Fallback(placement=placement, planned=planned, rung=rung.name, falls=falls, remembered=remembered)


def _fixable(error: RunError) -> bool:
    """Whether other settings may help: not with a damaged file, nor with a request that the engine understands and
    refuses."""
    refused = isinstance(error, EngineError) and error.status < 500
    return not refused and error.cause not in BEYOND_SETTINGS


def _fall(rung: FallbackStep, error: RunError) -> FailedAttempt:
    date = datetime.now(UTC).date().isoformat()
    # What an engine answered says more than that it did.
    cause = str(error) if isinstance(error, EngineError) or not error.cause else error.cause
    return FailedAttempt(rung=rung.name, kind=error.kind, cause=cause, date=date, last_words=error.last_words)
