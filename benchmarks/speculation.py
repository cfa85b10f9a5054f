"""What speculative decoding gains: decode rates with and without it, by how much of the answer repeats the prompt.

    python benchmarks/speculation.py [--rounds 7] [--model FILE] [--placement llama.cpp/cpu] [--json] [METHOD ...]

METHOD is a value of the setting spec=; ngram-simple and ngram-mod by default. Each server gets three questions,
sampled greedily: copy a list, copy it with other words, and tell something. Each round asks every server, and the
order alternates. A ratio is the median of the rounds' ratios; low and high are its 95% interval. A server evaluates
several drafted tokens at a time, and rounding may then decide a near tie between two tokens: "same answer" says how
many answers are word for word those without speculation.
"""

import asyncio
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

from _figures import Bound, CannotMeasure, Figure, arguments, count, not_measured, report, run
from _placements import demo_path, opened, ratio_figures, resolved

from trilithon.bench.setup import in_turn
from trilithon.engines.base import Placement
from trilithon.engines.wire.messages import Chat, Finished, Token
from trilithon.measure.records import Test
from trilithon.settings import Configuration, load_configuration

_METHODS = ("ngram-simple", "ngram-mod")
_PLAIN = "plain"
_TOKENS = 200
_THINGS = ("apple", "pear", "plum", "stone", "river", "tree", "house") * 3
_LIST = " ".join(f"The {thing} costs {number * 3} coins." for number, thing in enumerate(_THINGS))
_QUESTIONS = {
    "copy": f"Repeat this text word for word:\n{_LIST}",
    "edit": f'Repeat this text word for word, but write "dollars" for "coins":\n{_LIST}',
    "prose": "tell me about openai",
}
Answer = tuple[str, Finished]
Answers = dict[tuple[str, str], list[Answer]]


async def answers_of(placement: Placement, configuration: Configuration, tokens: int) -> dict[str, Answer]:
    """The text and the timings by the question's name."""
    answers = {}
    async with opened(placement, configuration) as runner:
        await runner.complete(Chat(messages=[("user", "hello")], max_tokens=4))
        for name, question in _QUESTIONS.items():
            events, finished = await runner.complete(Chat(messages=[("user", question)], max_tokens=tokens))
            answers[name] = "".join(event.text for event in events if isinstance(event, Token)), finished
    return answers


def rate(finished: Finished) -> float:
    timings = finished.timings
    if timings is None or timings.predicted_ms <= 0:
        raise CannotMeasure("the engine reports no timings; choose another with --placement")
    return (timings.predicted_n - 1) / timings.predicted_ms * 1e3


def answers_of_rounds(placements: list[Placement], rounds: int, tokens: int, configuration: Configuration) -> Answers:
    answers: Answers = defaultdict(list)
    for number in range(rounds):
        for placement in in_turn(placements, number):
            for name, answer in asyncio.run(answers_of(placement, configuration, tokens)).items():
                answers[placement.settings.speculation or _PLAIN, name].append(answer)
        latest = (f"{method} {name} {rate(given[-1][1]):.1f}" for (method, name), given in answers.items())
        print(f"round {number + 1}: {', '.join(latest)}", file=sys.stderr)
    return answers


def compared(label: str, drafted: list[Answer], plain: list[Answer]) -> dict[str, Figure]:
    pairs = list(zip(drafted, plain, strict=True))
    timings = [finished.timings for _, finished in drafted if finished.timings is not None]
    proposed, accepted = sum(t.draft_n for t in timings), sum(t.draft_accepted for t in timings)
    return {
        **ratio_figures(
            f"{label} ratio", [rate(with_draft) / rate(without) for (_, with_draft), (_, without) in pairs]
        ),
        f"{label} drafted tokens accepted": accepted / proposed if proposed else not_measured("nothing was drafted"),
        f"{label} same answer": f"{sum(text == other for (text, _), (other, _) in pairs)} of {len(pairs)}",
    }


def bounds_of(methods: list[str]) -> list[Bound]:
    bounds = [Bound(f"{method} copy ratio", least=1.2) for method in methods]
    if "ngram-mod" in methods:  # the one that drafts nothing where little repeats
        bounds.append(Bound("ngram-mod prose ratio", least=0.93))
    return bounds


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("methods", nargs="*", default=_METHODS, metavar="METHOD")
    parser.add_argument("--rounds", type=count, default=7)
    parser.add_argument("--tokens", type=count, default=_TOKENS, help="the longest answer")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--placement", default="llama.cpp@embedded/cpu")
    options = parser.parse_args()
    configuration = load_configuration()
    comma = "," if ":" in options.placement else ":"
    specs = [options.placement, *(f"{options.placement}{comma}spec={method}" for method in options.methods)]
    tests = [Test(kind="question", question=question) for question in _QUESTIONS.values()]
    placements = resolved(specs, options.model or demo_path(configuration), tests, configuration, keep_window=True)
    answers = answers_of_rounds(placements, options.rounds, options.tokens, configuration)
    figures: dict[str, Figure] = {}
    for name in _QUESTIONS:
        plain = answers[_PLAIN, name]
        figures[f"{_PLAIN} {name} tokens/s"] = median(rate(finished) for _, finished in plain)
        for method in options.methods:
            figures |= compared(f"{method} {name}", answers[method, name], plain)
    return report(figures, bounds_of(list(options.methods)), as_json=options.json)


if __name__ == "__main__":
    run(main)
