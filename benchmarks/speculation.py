"""What guessing ahead gains: decode with and without it, by how much of the answer stands in the prompt, as a ratio.

    python benchmarks/speculation.py [--rounds 7] [--model FILE] [--placement llama.cpp/cpu] [--json] [WAY ...]

WAY is a value of spec=, by default ngram-simple and ngram-mod. Three questions are asked greedily of each: to copy a
list, to copy it with other prices, and to tell something. Every round asks all of them of every server, in turn first;
a ratio is the median of the rounds' ratios, with its 95% interval. Servers evaluate guesses several at a time, and
rounding may then tip a near tie: "same answer" tells how many of the answers were word for word those without guesses.
"""

import asyncio
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

from _figures import Bound, Figure, arguments, report
from _placements import demo_path, opened, resolved

from trilithon.bench.setup import in_turn
from trilithon.engines.base import Placement
from trilithon.engines.wire.messages import Chat, Finished, Token
from trilithon.measure.records import Test
from trilithon.measure.statistics import interval
from trilithon.settings import Configuration, load_configuration

WAYS = ("ngram-simple", "ngram-mod")
TOKENS = 200
THINGS = ("apple", "pear", "plum", "stone", "river", "tree", "house") * 3
LIST = " ".join(f"The {thing} costs {number * 3} coins." for number, thing in enumerate(THINGS))
QUESTIONS = {
    "copy": f"Repeat this text word for word:\n{LIST}",
    "edit": f'Repeat this text word for word, but write "dollars" for "coins":\n{LIST}',
    "prose": "tell me about openai",
}
Answer = tuple[str, Finished]


async def answers_of(placement: Placement, configuration: Configuration) -> dict[str, Answer]:
    found = {}
    async with opened(placement, configuration) as runner:
        await runner.complete(Chat(messages=[("user", "hello")], max_tokens=4))
        for name, question in QUESTIONS.items():
            events, finished = await runner.complete(Chat(messages=[("user", question)], max_tokens=TOKENS))
            found[name] = "".join(event.text for event in events if isinstance(event, Token)), finished
    return found


def rate(finished: Finished) -> float:
    timings = finished.timings
    if timings is None or timings.predicted_ms <= 0:
        sys.exit("the engine gave no timings")
    return (timings.predicted_n - 1) / timings.predicted_ms * 1e3


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("ways", nargs="*", default=WAYS, metavar="WAY")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--placement", default="llama.cpp@embedded/cpu")
    words = parser.parse_args()
    configuration = load_configuration()
    comma = "," if ":" in words.placement else ":"
    spelled = [words.placement, *(f"{words.placement}{comma}spec={way}" for way in words.ways)]
    tests = [Test(kind="question", question=question) for question in QUESTIONS.values()]
    placements = resolved(spelled, words.model or demo_path(configuration), tests, configuration, keep_window=True)
    answers: dict[tuple[str, str], list[Answer]] = defaultdict(list)
    for number in range(words.rounds):
        for placement in in_turn(placements, number):
            for name, answer in asyncio.run(answers_of(placement, configuration)).items():
                answers[placement.settings.speculation or "plain", name].append(answer)
        latest = (f"{way} {name} {rate(given[-1][1]):.1f}" for (way, name), given in answers.items())
        print(f"round {number + 1}: {', '.join(latest)}", file=sys.stderr)
    figures: dict[str, Figure] = {}
    for name in QUESTIONS:
        plain = answers["plain", name]
        figures[f"plain {name} tokens/s"] = median(rate(finished) for _, finished in plain)
        for way in words.ways:
            figures |= beside(f"{way} {name}", answers[way, name], plain)
    bounds = [Bound(f"{way} copy ratio", least=1.2) for way in words.ways]
    if "ngram-mod" in words.ways:  # the one that guesses nothing where little repeats
        bounds.append(Bound("ngram-mod prose ratio", least=0.93))
    return report(figures, bounds, as_json=words.json)


def beside(label: str, answers: list[Answer], plain: list[Answer]) -> dict[str, Figure]:
    pairs = list(zip(answers, plain, strict=True))
    found = interval([rate(guessed) / rate(other) for (_, guessed), (_, other) in pairs])
    timings = [finished.timings for _, finished in answers if finished.timings is not None]
    drafted, right = sum(each.draft_n for each in timings), sum(each.draft_accepted for each in timings)
    return {
        f"{label} ratio": found.median,
        f"{label} ratio low": found.low,
        f"{label} ratio high": found.high,
        f"{label} guesses right": right / drafted if drafted else None,
        f"{label} same answer": f"{sum(text == other for (text, _), (other, _) in pairs)} of {len(pairs)}",
    }


if __name__ == "__main__":
    sys.exit(main())
