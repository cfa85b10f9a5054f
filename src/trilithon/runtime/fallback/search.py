"""Settings with which a placement works: its own, or one of its engine's fallback steps, found by a short probe.

GPU and NPU drivers make this necessary: some crash, hang or compute wrong results with some settings."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from trilithon.engines.base import Engine, FallbackStep, Placement
from trilithon.engines.wire.messages import Completion
from trilithon.errors import EngineError, RunError, TaintedAnswer
from trilithon.measure.divergence import kl_divergence
from trilithon.runtime.diagnostics import settings_help
from trilithon.runtime.fallback.store import FailedAttempt, recall, remember
from trilithon.runtime.runner import Runner
from trilithon.runtime.taint import meaning_of
from trilithon.settings import Configuration

__all__ = ["Fallback", "FallbackProbe", "FallbackSearch", "probe"]

# GPU back-ends have a matrix product of their own for batches of more than 64 tokens (ggml-vulkan.cpp), and another
# one for single tokens.
_PROMPT_TOKENS, _DECODED_TOKENS, _CANDIDATES = 96, 8, 64
_PROBE_TEXT = (
    "A harbour town wakes early. Before the sun is up, the first boats come in with their catch, and the quay is loud "
    "with gulls, carts and voices. By seven the baker has sold half of her bread, and the ferry leaves for the islands "
    "with letters, milk and a few sleepy children on their way to school. At noon the wind turns, as it does on most "
    "days in summer, and the flags on the customs house point the other way. In the evening old men sit on the wall "
    "and tell each other what the weather will be."
)
# Nats per token; the limit above which the quality check calls a placement broken.
_GARBAGE_DIVERGENCE = 2.0
# The most probable tokens of a working model differ in their log-probabilities by more than this.
_FLAT = 1e-6


@dataclass(frozen=True, slots=True)
class FallbackProbe:
    """Next-token distributions, token id → log-probability: after a batch, and after one more single token. Empty for
    an engine without probabilities. `tokens` is the probe text; probes of different tokenizers cannot be compared."""

    prefill: Mapping[int, float]
    decode: Mapping[int, float]
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """`placement` is `planned` with settings that work. `step` names the fallback step (empty: its own settings), and
    `failed` are the attempts before it. `remembered`: it comes from the store and was not probed now."""

    placement: Placement
    planned: Placement
    step: str
    failed: tuple[FailedAttempt, ...]
    remembered: bool

    @property
    def remark(self) -> str:
        """One line for users; empty when the placement works with its own settings."""
        if not self.step:
            return ""
        return f"runs with {self.step}" + (f", because it failed {self.failed[-1]}" if self.failed else "")


class FallbackSearch:
    """`folder` is private and new. `reference` is the probe of a placement that is known to work. `tell` gets a line
    per attempt. An engine without fallback steps is not probed."""

    def __init__(
        self,
        engine: Engine,
        placement: Placement,
        configuration: Configuration,
        folder: Path,
        *,
        reference: FallbackProbe | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ):
        self._engine = engine
        self._placement = placement
        self._configuration = configuration
        self._folder = folder
        self._reference = reference
        self._tell = tell
        self._steps = (FallbackStep(name="", settings=placement.settings), *engine.fallback_steps(placement))

    async def find(self) -> Fallback:
        """The stored fallback, or a new one, which is stored. Raises the last step's RunError when none works, and the
        first one that no settings can help with."""
        if len(self._steps) == 1:
            return self._fallback(self._steps[0], (), remembered=False)
        known = recall(self._configuration, self._placement)
        for step in self._steps:
            if known and known.step == step.name:
                return self._fallback(step, known.failed, remembered=True)
        return await self._try_each(self._steps, ())

    async def find_after(self, fallback: Fallback, error: RunError) -> Fallback:
        """The next step that works, after `fallback` failed in use. Raises `error` when there is none."""
        position = [step.name for step in self._steps].index(fallback.step)
        failed = (*fallback.failed, _failed_attempt(self._steps[position], error))
        if position + 1 == len(self._steps) or not _may_help(error):
            raise error
        return await self._try_each(self._steps[position + 1 :], failed)

    async def _try_each(self, steps: Sequence[FallbackStep], failed: tuple[FailedAttempt, ...]) -> Fallback:
        last_error: RunError | None = None
        for number, step in enumerate(steps):
            self._tell(f"{self._placement.name}: testing {f'with {step.name}' if step.name else 'its settings'}")
            fallback = self._fallback(step, failed, remembered=False)
            try:
                await self._try(fallback.placement, self._folder / str(number))
            except RunError as error:
                if not _may_help(error):
                    raise
                last_error = error
                failed = (*failed, _failed_attempt(step, error))
            else:
                remember(self._configuration, self._placement, step.name, failed)
                return fallback
        assert last_error is not None
        raise last_error

    async def _try(self, placement: Placement, folder: Path) -> None:
        """An error in an engine's answer may be temporary: it is tried again in a new process."""
        try:
            await self._try_once(placement, folder / "first")
        except EngineError as error:
            if not _may_help(error):
                raise
            await self._try_once(placement, folder / "again")

    async def _try_once(self, placement: Placement, folder: Path) -> None:
        async with Runner.open(
            self._engine,
            placement,
            folder,
            start_seconds=self._configuration.start_seconds,
            hang_seconds=self._configuration.hang_seconds,
            memory_bytes=self._configuration.engine_memory,
            tell=self._tell,
        ) as runner:
            result = await probe(runner)
        reference = self._reference
        if reference is None or result.tokens != reference.tokens:
            return
        for actual, expected in ((result.prefill, reference.prefill), (result.decode, reference.decode)):
            if actual and expected and (divergence := kl_divergence(expected, actual)) > _GARBAGE_DIVERGENCE:
                message = f"{placement.name} gives wrong answers: KL divergence {divergence:.2g}"
                raise RunError(message, cause="wrong answers")

    def _fallback(self, step: FallbackStep, failed: tuple[FailedAttempt, ...], *, remembered: bool) -> Fallback:
        placement = replace(self._placement, settings=step.settings)
        return Fallback(
            placement=placement, planned=self._placement, step=step.name, failed=failed, remembered=remembered
        )


async def probe(runner: Runner) -> FallbackProbe:
    """Evaluate a batch, a single token, and generate a short answer. Raises RunError when that fails or computes no
    probabilities."""
    tokens = (await runner.tokenize(_PROBE_TEXT))[: _PROMPT_TOKENS + 1]
    # The token is forced: an answer that ends in a part of a character is an error to some servers.
    forced = (await runner.tokenize(" a", add_special=False))[-1]
    if "logprobs" not in runner.placement.build.features:
        await runner.complete(_request(tokens, _DECODED_TOKENS))
        return FallbackProbe({}, {}, tuple(tokens))
    prefill, decode = [await _distribution(runner, part, forced) for part in (tokens[:-1], tokens)]
    await runner.complete(_request(tokens, _DECODED_TOKENS, forced=forced))
    return FallbackProbe(prefill, decode, tuple(tokens))


async def _distribution(runner: Runner, tokens: Sequence[int], forced: int) -> Mapping[int, float]:
    """Raises RunError when the probabilities are not finite, or all the same."""
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


def _may_help(error: RunError) -> bool:
    """Whether other settings may help: not with a damaged file, nor with a request that the engine understands and
    refuses."""
    refused = isinstance(error, EngineError) and error.status < 500
    cause = meaning_of(error.line).cause if isinstance(error, TaintedAnswer) else error.cause
    return not refused and settings_help(cause)


def _failed_attempt(step: FallbackStep, error: RunError) -> FailedAttempt:
    date = datetime.now(UTC).date().isoformat()
    # The message of an EngineError says more than its cause.
    cause = str(error) if isinstance(error, EngineError) or not error.cause else error.cause
    return FailedAttempt(step=step.name, kind=error.kind, cause=cause, date=date, last_words=error.last_words)
