"""Texts for the reasons of a verdict. A translation has the same keys and values."""

from collections.abc import Callable

__all__ = ["REASONS", "Say", "english"]

Say = Callable[..., str]
"""`say(key, **values)`."""

REASONS: dict[str, str] = {
    "reason_few": "{a} and {b} runs; at least {least} on each side are needed",
    "reason_few_each": "{a} runs on each side; at least {least} on each side are needed",
    "reason_no_ratio": "a value is not positive, so the ratio is undefined",
    "reason_shown_none": "no significant difference (a difference of {percent:.1f}% or more would have been detected)",
    "reason_needs_runs": "a difference of {sought:.0%} takes about {runs} runs on each side",
    "reason_needs_many": "a difference of {sought:.0%} takes more than {runs} runs on each side, or a quieter machine",
    "reason_negligible": "{difference}, below the threshold of {negligible:.0%}",
    "reason_claimed": "{difference} (p {p})",
    "reason_times": "{ratio:.3g} times as much",
    "reason_more": "{share:.1%} more",
    "reason_less": "{share:.1%} less",
}


def english(key: str, /, **values: object) -> str:
    return REASONS[key].format(**values)
