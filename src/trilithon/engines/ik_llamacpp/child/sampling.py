"""The choice of the next token from the model's scores: llama-server's default chain, in its order (repeat penalties,
top-k, typical left out, top-p, min-p, temperature), with its default values.

Method: common/sampling.cpp of llama.cpp."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["IkSampling", "TokenSampler", "logprobs_of"]

_WIDTH = 16.0  # of scores that are looked at first; a token further below has e^-16 of the best one's probability


@dataclass(frozen=True, slots=True, kw_only=True)
class IkSampling:
    """`last_n` is how far the penalties look back, in tokens; `seed` is None for another answer each time. Temperature
    0 is greedy."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    last_n: int = 64
    seed: int | None = None

    @property
    def penalizes(self) -> bool:
        return (self.repeat_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)


class TokenSampler:
    """For one answer. `bias` is added to scores; `never` are tokens that are not chosen."""

    def __init__(self, sampling: IkSampling, bias: Mapping[int, float], never: Collection[int]) -> None:
        self._sampling = sampling
        self._bias = bias
        self._never = list(never)
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: NDArray[np.float32], before: Sequence[int]) -> int:
        """`before` are the tokens so far, the prompt's too."""
        if self._bias or self._never or self._sampling.penalizes:
            logits = self._adjusted(logits.copy(), before)
        if self._sampling.temperature <= 0 or self._sampling.top_k == 1:
            return int(logits.argmax())
        tokens = self._best(logits)
        scores = logits[tokens].astype(np.float64)
        weights = np.exp(scores - scores[0])
        shares = weights / weights.sum()
        kept = 1 + int(np.searchsorted(shares.cumsum(), self._sampling.top_p, side="left"))
        kept = max(1, min(kept, int((weights >= self._sampling.min_p).sum())))
        tempered = np.exp((scores[:kept] - scores[0]) / self._sampling.temperature)
        return int(self._random.choice(tokens[:kept], p=tempered / tempered.sum()))

    def _adjusted(self, logits: NDArray[np.float32], before: Sequence[int]) -> NDArray[np.float32]:
        sampling = self._sampling
        for token, bias in self._bias.items():
            if 0 <= token < len(logits):
                logits[token] += bias
        if sampling.penalizes:
            recent = before if sampling.last_n < 0 else before[len(before) - min(sampling.last_n, len(before)) :]
            tokens, counts = np.unique(np.asarray(recent, dtype=np.int64), return_counts=True)
            scores = logits[tokens]
            scores = np.where(scores > 0, scores / sampling.repeat_penalty, scores * sampling.repeat_penalty)
            logits[tokens] = scores - counts * sampling.frequency_penalty - sampling.presence_penalty
        logits[self._never] = -np.inf
        return logits

    def _best(self, logits: NDArray[np.float32]) -> NDArray[np.intp]:
        """The top-k tokens, best first. Sorting a vocabulary takes longer than a small model's token: only those near
        the best are looked at, if there are enough of them."""
        most = min(self._sampling.top_k, len(logits)) if self._sampling.top_k > 0 else len(logits)
        near = np.flatnonzero(logits > logits.max() - _WIDTH)
        if len(near) < most:
            near = np.arange(len(logits))
        return near[np.argsort(-logits[near], kind="stable")][:most]


def logprobs_of(logits: NDArray[np.float32], token: int, most: int) -> tuple[float, list[tuple[int, float]]]:
    """The natural log-probability of `token`, and of the `most` best tokens, best first."""
    best = logits.max()
    normal = float(best) + float(np.log(np.exp(logits - best, dtype=np.float64).sum()))
    count = min(most, len(logits))
    tokens = np.argpartition(-logits, count - 1)[:count] if count else np.empty(0, dtype=np.intp)
    tokens = tokens[np.argsort(-logits[tokens], kind="stable")]
    return float(logits[token]) - normal, [(int(other), float(logits[other]) - normal) for other in tokens]
