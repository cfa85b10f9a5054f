"""The probe before a handover: what both sides and a move cost, and whether a brought cache is as good as one's own."""

import time
from collections.abc import Sequence
from dataclasses import replace

from trilithon.engines.wire.messages import Candidate, Completion, Timings
from trilithon.errors import EngineError, RunError
from trilithon.measure.divergence import SAME_DIVERGENCE, kl_divergence
from trilithon.runtime.handover.costs import Costs, LinearCost
from trilithon.runtime.handover.transfer import MoveFailed, Transfer
from trilithon.runtime.runner import Runner

__all__ = ["plain_token", "probe", "warm_up"]

_PROBE_TEXT = """The harbour of a small town lies in the bay between two hills. Early in the morning the boats come
back with fish, and the men who fix the nets sit on the wall and talk about the weather. When the sun stands higher,
the market opens: bread, apples, cheese and flowers are sold there, and children run between the stalls. In the
afternoon it becomes quiet, until the ferry from the island arrives and brings the people who work over there home."""
_CANDIDATES = 64
_SHORT = 16


async def plain_token(runner: Runner) -> int:
    """What to force where only the prompt matters: some servers refuse an answer that ends in half a character, and
    one token is sampled even where none is asked for."""
    return (await runner.tokenize(" a", add_special=False))[-1]


async def warm_up(runner: Runner) -> None:
    """A first evaluation compiles shaders and touches the weights: it should be no request's."""
    tokens, plain = await runner.tokenize(_PROBE_TEXT), await plain_token(runner)
    await _timed(runner, tokens[: _most(runner)], plain, LinearCost())


async def probe(prefiller: Runner, decoder: Runner, plain: int, transfer: Transfer, costs: Costs, slot: int = 0) -> str:
    """Why nothing can be handed over; empty when it can. The prefiller is warm. `costs` learn. Raises RunError when
    the decoder fails, MoveFailed when the prefiller does: then nothing is known."""
    tokens = (await decoder.tokenize(_PROBE_TEXT))[: _most(decoder)]
    question = Completion(prompt=tokens, max_tokens=1, candidates=_CANDIDATES, forced=plain, slot=slot)
    # The decoder is often slow, and nobody waits for it gladly: it evaluates the whole text once.
    await _timed(decoder, tokens[:_SHORT], plain, LinearCost(), slot)
    await _timed(decoder, tokens[:_SHORT], plain, costs.decoder, slot)
    own, timings = await decoder.distribution(question)
    costs.decoder.learn(timings.prompt_n, timings.prompt_ms)
    try:
        for length in (_SHORT, len(tokens) - 1):
            await _timed(prefiller, tokens[:length], plain, costs.prefiller, slot)
        started_ns = time.monotonic_ns()
        arrived = await transfer.move(prefiller, decoder, slot)
        costs.move.learn(arrived, (time.monotonic_ns() - started_ns) / 1e6)
    except MoveFailed as failed:
        if isinstance(failed.error, EngineError):
            return f"the probe failed: {failed}"
        if failed.side is decoder:
            raise failed.error from failed
        raise
    except EngineError as error:
        return f"the probe failed: {error}"
    except RunError as error:
        raise MoveFailed(prefiller, error) from error
    brought, timings = await decoder.distribution(replace(question, cache_prompt=True))
    return _objection(len(tokens) - 1, arrived, timings, own, brought)


def _most(runner: Runner) -> int:
    return (runner.placement.settings.context or 512) // 2


async def _timed(runner: Runner, tokens: Sequence[int], plain: int, cost: LinearCost, slot: int = 0) -> None:
    done = await runner.timed(Completion(prompt=tokens, max_tokens=0, forced=plain, slot=slot))
    if done.timings:
        cost.learn(done.timings.prompt_n, done.timings.prompt_ms)


def _objection(wanted: int, arrived: int, timings: Timings, own: list[Candidate], brought: list[Candidate]) -> str:
    if arrived != wanted:
        return f"{arrived} of {wanted} tokens arrived in the decoder's cache"
    if timings.cache_n < wanted:
        return f"the decoder evaluated {timings.prompt_n} tokens again that had been brought to it"
    if not own or not brought:
        return "the decoder gives no probabilities to compare"
    divergence = kl_divergence(*({c.token: c.logprob for c in side} for side in (own, brought)))
    if not divergence <= SAME_DIVERGENCE:  # which is true of no number too
        return f"with the brought cache the decoder answers otherwise (divergence {divergence:.3g} nats)"
    return ""
