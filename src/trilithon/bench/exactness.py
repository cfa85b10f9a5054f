"""How exactly a build computes: its next-token log-probabilities, compared with those of the same weights in F32.

Made of tiny models with fixed random weights, whose whole vocabulary is compared. Speed has no part in it."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

from trilithon.engines.wire.messages import Completion
from trilithon.errors import RunError
from trilithon.measure.divergence import agreement, kl_divergence
from trilithon.models.synthetic.architectures import architectures
from trilithon.models.synthetic.tiny import requantise, write_tiny_model
from trilithon.runtime.runner import Runner

__all__ = ["LENGTHS", "TINY_VOCABULARY", "Exactness", "Reading", "compare", "kinds", "read_exactly", "write_pair"]

LENGTHS = (8, 32, 128, 512, 2000)
"""Of prompts, in tokens: a batch that is smaller than any kernel's block, up to several micro-batches."""

TINY_VOCABULARY = 512
_CONTROL_TOKENS = 259  # of `write_tiny_model`: three special ones and the bytes
# The last of six layers has no window; without it ik_llama.cpp 0.1.5 crashes (the mask of such layers has no buffer).
_LAYERS = {"gemma3": 6}
_LEAST_LOGPROB = -20.0  # less is one in 10^9: no sampler sees it

Reading = Mapping[tuple[Literal["prefill", "decode"], int], Mapping[int, float]]
"""Log-probabilities by token, after so many tokens, of which the last one was evaluated with the others or alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exactness:
    """`largest` and `mean` are absolute differences of log-probabilities in nats, `divergence` is the largest KL
    divergence of a position, `top1` the fraction of equal most probable tokens."""

    largest: float
    mean: float
    divergence: float
    top1: float
    positions: int


def kinds() -> tuple[str, ...]:
    """The architectures for which there are models of true size, and thus tiny ones."""
    return tuple(dict.fromkeys(model.architecture for model in architectures().values()))


def write_pair(folder: Path, architecture: str, quantization: str, embedding: int = 256) -> tuple[Path, Path]:
    """A tiny model in that quantisation, one that `requantise` writes, and the same weights in F32. Written once. Rows
    of K-quants are multiples of 256 long, those of others of 32."""
    stem = f"{architecture}-{quantization.lower()}"
    pair = folder / f"{stem}.gguf", folder / f"{stem}-f32.gguf"
    if pair[1].exists():
        return pair
    plain = write_tiny_model(
        folder / f"{architecture}.gguf",
        architecture=architecture,
        layers=_LAYERS.get(architecture, 2),
        embedding=embedding,
        vocabulary=TINY_VOCABULARY,
    )
    return requantise(plain, pair[0], quantization), requantise(pair[0], pair[1], "F32")


async def read_exactly(runner: Runner, lengths: Sequence[int] = LENGTHS) -> Reading:
    """The distributions after fixed random tokens. Raises RunError."""
    tokens = random.Random(0).choices(range(_CONTROL_TOKENS, TINY_VOCABULARY), k=max(lengths))
    plain = (await runner.tokenize(" a", add_special=False))[-1]
    fresh = Completion(prompt=(), max_tokens=1, forced=plain, candidates=TINY_VOCABULARY)
    reading: dict[tuple[Literal["prefill", "decode"], int], Mapping[int, float]] = {}
    for length in lengths:
        reading["prefill", length] = await _distribution(runner, replace(fresh, prompt=tokens[:length]))
        await runner.timed(replace(fresh, prompt=tokens[: length - 1], candidates=0))
        request = replace(fresh, prompt=tokens[:length], cache_prompt=True)
        reading["decode", length] = await _distribution(runner, request)
    return reading


def compare(reference: Reading, measured: Reading) -> Exactness:
    """Raises RunError where `measured` lists other tokens."""
    errors, divergences, equal = [], [], []
    for place, expected in reference.items():
        other = measured[place]
        if expected.keys() != other.keys():
            raise RunError(f"{len(other)} tokens were listed, and the reference lists {len(expected)}", cause="a list")
        likely = [token for token, logprob in expected.items() if logprob > _LEAST_LOGPROB]
        errors += [abs(max(other[token], 2 * _LEAST_LOGPROB) - expected[token]) for token in likely]
        divergences.append(kl_divergence(expected, other))
        equal.append(agreement(expected, other))
    return Exactness(
        largest=max(errors), mean=fmean(errors), divergence=max(divergences), top1=fmean(equal), positions=len(equal)
    )


async def _distribution(runner: Runner, request: Completion) -> Mapping[int, float]:
    candidates, _ = await runner.distribution(request)
    if not candidates:
        raise RunError("the engine gave no log-probabilities", cause="no log-probabilities")
    return {c.token: c.logprob if math.isfinite(c.logprob) else 2 * _LEAST_LOGPROB for c in candidates}
