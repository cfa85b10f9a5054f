"""The words for why a verdict is as it is. Another language hands in its own, of the same keys and values."""

from collections.abc import Callable

__all__ = ["REASONS", "Say", "english"]

Say = Callable[..., str]
"""`say(key, **values)`."""

REASONS: dict[str, str] = {
    "reason_few": "{a} and {b} runs; at least {least} on each side are needed",
    "reason_few_each": "{a} runs on each side; at least {least} on each side are needed",
    "reason_no_ratio": "a value is not above 0, so there is no ratio",
    "reason_shown_none": "no difference shown; one of {percent:.1f}% would have been",
    "reason_negligible": "{difference}: less than the {negligible:.0%} that counts",
    "reason_claimed": "{difference} (p {p})",
    "reason_times": "{ratio:.3g} times as much",
    "reason_more": "{share:.1%} more",
    "reason_less": "{share:.1%} less",
}


def english(key: str, /, **values: object) -> str:
    return REASONS[key].format(**values)
