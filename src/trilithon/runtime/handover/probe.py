"""The probe before a handover: the costs of both halves and of a transfer, and whether a transferred cache gives the
same results as the decoder's own."""

import time
from collections.abc import Sequence
from dataclasses import replace

from trilithon.engines.wire.messages import Candidate, Completion, Timings
from trilithon.errors import EngineError, RunError
from trilithon.measure.divergence import SAME_DIVERGENCE, kl_divergence
from trilithon.runtime.handover.costs import Costs, LinearCost
from trilithon.runtime.handover.transfer import Transfer, TransferFailed
from trilithon.runtime.runner import Runner

__all__ = ["probe", "token_to_force", "warm_up"]

_PROBE_TEXT = """The harbour of a small town lies in the bay between two hills. Early in the morning the boats come
back with fish, and the men who fix the nets sit on the wall and talk about the weather. When the sun stands higher,
the market opens: bread, apples, cheese and flowers are sold there, and children run between the stalls. In the
afternoon it becomes quiet, until the ferry from the island arrives and brings the people who work over there home."""
_CANDIDATES = 64
_SHORT_TOKENS = 16


async def token_to_force(runner: Runner) -> int:
    """For requests of which only the prompt matters: one token is sampled even when none is requested, and some servers
    refuse an answer that ends in a part of a character."""
    return (await runner.tokenize(" a", add_special=False))[-1]


async def warm_up(runner: Runner) -> None:
    """The first evaluation compiles shaders and reads the weights, which no request should wait for."""
    tokens, forced = await runner.tokenize(_PROBE_TEXT), await token_to_force(runner)
    await _timed(runner, tokens[: _max_tokens(runner)], forced, LinearCost())


async def probe(
    prefiller: Runner, decoder: Runner, forced: int, transfer: Transfer, costs: Costs, slot: int = 0
) -> str:
    """Why nothing can be handed over; empty when it can. The prefiller is warmed up. The measurements go to `costs`.
    Raises RunError when the decoder fails, and TransferFailed when the prefiller fails, without a result."""
    tokens = (await decoder.tokenize(_PROBE_TEXT))[: _max_tokens(decoder)]
    question = Completion(prompt=tokens, max_tokens=1, candidates=_CANDIDATES, forced=forced, slot=slot)
    # The decoder is often slow, so it evaluates the whole text only once.
    await _timed(decoder, tokens[:_SHORT_TOKENS], forced, LinearCost(), slot)
    await _timed(decoder, tokens[:_SHORT_TOKENS], forced, costs.decoder, slot)
    without_transfer, timings = await decoder.distribution(question)
    costs.decoder.learn(timings.prompt_n, timings.prompt_ms)
    try:
        for length in (_SHORT_TOKENS, len(tokens) - 1):
            await _timed(prefiller, tokens[:length], forced, costs.prefiller, slot)
        started_ns = time.monotonic_ns()
        transferred = await transfer.run(prefiller, decoder, slot)
        costs.transfer.learn(transferred, (time.monotonic_ns() - started_ns) / 1e6)
    except TransferFailed as failed:
        if isinstance(failed.error, EngineError):
            return f"the probe failed: {failed}"
        if failed.half is decoder:
            raise failed.error from failed
        raise
    except EngineError as error:
        return f"the probe failed: {error}"
    except RunError as error:
        raise TransferFailed(prefiller, error) from error
    with_transfer, timings = await decoder.distribution(replace(question, cache_prompt=True))
    return _objection(len(tokens) - 1, transferred, timings, without_transfer, with_transfer)


def _max_tokens(runner: Runner) -> int:
    return (runner.placement.settings.context or 512) // 2


async def _timed(runner: Runner, tokens: Sequence[int], forced: int, cost: LinearCost, slot: int = 0) -> None:
    done = await runner.timed(Completion(prompt=tokens, max_tokens=0, forced=forced, slot=slot))
    if done.timings:
        cost.learn(done.timings.prompt_n, done.timings.prompt_ms)


def _objection(
    expected: int, transferred: int, timings: Timings, without_transfer: list[Candidate], with_transfer: list[Candidate]
) -> str:
    if transferred != expected:
        return f"{transferred} of {expected} tokens arrived in the decoder's cache"
    if timings.cache_n < expected:
        return f"the decoder evaluated {timings.prompt_n} of the transferred tokens again"
    if not without_transfer or not with_transfer:
        return "the decoder reports no probabilities to compare"
    divergence = kl_divergence(*({c.token: c.logprob for c in side} for side in (without_transfer, with_transfer)))
    if not divergence <= SAME_DIVERGENCE:  # also for NaN
        return f"the decoder gives other answers with the transferred cache (KL divergence {divergence:.3g} nats)"
    return ""
