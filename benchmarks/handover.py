"""What a handover gains and costs: (prompt, answer) pairs on A alone, on B alone, handed over from A to B, and the
ideal: A's prefill and B's decode with nothing between them.

    python benchmarks/handover.py [--rounds 5] [--model FILE] [--prefill PLACEMENT] [--decode PLACEMENT]
                                  [--pair scripted|real|both] [--size PROMPT,ANSWER ...] [--json]

The scripted pair has the relative rates of an RK3588's NPU and CPU (prefill 3 to 1, decode 1 to 3.3, times ten), so
that the expected result is known. The real pair is --prefill and --decode, by default the embedded llama.cpp with two
threads and with one. A, B and the pair run at the same time and are measured in turn, so that drift of the machine
cancels. The bound is on the overhead, the time beyond the ideal, for prompts of 1,024 tokens and more: 3% or 30 ms,
whichever is more.

Rounds in which the decoder evaluated the prompt itself do not count for the overhead; "handed over" says how many
there were, and why. After such a round the pair is started again: each failure pauses the handover for longer, and
one would otherwise decide the rest of the benchmark.
"""

import argparse
import asyncio
import contextlib
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median

from _figures import Bound, CannotMeasure, Figure, arguments, attempted, count, not_measured, report, run
from _placements import configuration_with, demo_path, resolved

from trilithon.engines.base import Placement
from trilithon.engines.wire.messages import Completion, Finished
from trilithon.measure.records import Test
from trilithon.runtime.opening import open_runner
from trilithon.runtime.process import workspace
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

SIZES = ((256, 64), (1024, 128), (4096, 128))
BOUND_FROM, BOUND_FRACTION, BOUND_MS = 1024, 0.03, 30.0
SCRIPTED = ("scripted/npu:prefill=3000,decode=60,noise=0", "scripted/cpu:prefill=1000,decode=200,noise=0")
REAL = ("llama.cpp@embedded/cpu:t=2", "llama.cpp@embedded/cpu:t=1")
_A, _B, _PAIR = "A", "B", "A+B"
_OVERHEAD, _SPEED_UP = "overhead, of what is allowed", "speed-up over the better one alone"

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Timed:
    """One request. `transfer_ms` is None when nothing was handed over, and `reason` says why."""

    prompt_ms: float
    decode_ms: float
    transfer_ms: float | None
    reason: str

    @classmethod
    def of(cls, finished: Finished) -> "Timed":
        if finished.timings is None:
            raise CannotMeasure("the engine reports no timings; choose another with --prefill and --decode")
        result = finished.handover
        if result is not None and result.transfer_bytes:
            transfer_ms, reason = result.transfer_ms, ""
        else:
            transfer_ms, reason = None, (result.reason if result else "") or "the runner gives no reason"
        return cls(finished.timings.prompt_ms, finished.timings.predicted_ms, transfer_ms, reason)

    @property
    def total_ms(self) -> float:
        return self.prompt_ms + self.decode_ms


Results = dict[tuple[str, Size], list[Timed]]
"""By the runner's name and the size: one per round."""


async def timed(runner: Runner, size: Size, seed: int) -> Timed:
    random = Random(seed)
    prompt = tuple(random.randrange(300, 30_000) for _ in range(size[0]))
    return Timed.of(await runner.timed(Completion(prompt=prompt, max_tokens=size[1], ignore_eos=True)))


@dataclass(slots=True)
class Comparison:
    """A, B and the pair over several rounds."""

    title: str
    sizes: Sequence[Size]
    rounds: int
    configuration: Configuration
    results: Results

    async def measure(self, placements: dict[str, Placement]) -> None:
        async with contextlib.AsyncExitStack() as stack:
            folder = stack.enter_context(workspace())
            runners = {
                name: await stack.enter_async_context(open_runner(placements[name], folder / name, self.configuration))
                for name in (_A, _B)
            }
            number = 0  # the first round warms up
            while number <= self.rounds:
                place = folder / f"pair-{number}"
                async with open_runner(placements[_PAIR], place, self.configuration) as pair:
                    if number:
                        await timed(pair, self.sizes[-1], seed=-1)
                    number = await self._rounds_of({**runners, _PAIR: pair}, number)
                    for notice in pair.notices:
                        print(f"{self.title}: {notice}", file=sys.stderr)

    async def _rounds_of(self, runners: dict[str, Runner], number: int) -> int:
        """Measure from round `number` on, until the last round or one in which the pair should have handed over and
        did not. Returns the next round's number."""
        while number <= self.rounds:
            reasons = [await self._one(runners, number, size) for size in self.sizes]
            number += 1
            failed = [reason for reason, size in zip(reasons, self.sizes, strict=True) if has_bound(size) and reason]
            if failed:
                state = runners[_PAIR].handover
                retry = f" (tried again in {state.retry_in_seconds:.0f} s)" if state and state.retry_in_seconds else ""
                print(f"{self.title}: not handed over: {failed[0]}{retry}", file=sys.stderr)
                break
        return number

    async def _one(self, runners: dict[str, Runner], number: int, size: Size) -> str:
        """One request to each; returns why the pair did not hand over, or an empty text."""
        of_round = {
            name: await timed(runners[name], size, number)
            for name in (list(runners) if number % 2 else reversed(runners))
        }
        print(f"{self.title}: round {number} of {self.rounds}, {name_of(size)}", file=sys.stderr)
        if number:
            for name, result in of_round.items():
                self.results[name, size].append(result)
        return of_round[_PAIR].reason


def name_of(size: Size) -> str:
    return f"({size[0]}, {size[1]})"


def has_bound(size: Size) -> bool:
    return size[0] >= BOUND_FROM


def handed_over(pair: Sequence[Timed]) -> str:
    """How many rounds were handed over, and why the others were not."""
    reasons = Counter(result.reason for result in pair if result.transfer_ms is None)
    others = "".join(f"; {times}: {reason}" for reason, times in reasons.most_common())
    return f"{len(pair) - reasons.total()} of {len(pair)} rounds{others}"


def figures_of(a: Sequence[Timed], b: Sequence[Timed], pair: Sequence[Timed]) -> dict[str, Figure]:
    """Of one size, by figure."""
    ideals = [first.prompt_ms + second.decode_ms for first, second in zip(a, b, strict=True)]
    alone = [median(result.total_ms for result in side) for side in (a, b)]
    together = median(result.total_ms for result in pair)
    figures: dict[str, Figure] = {"A ms": alone[0], "B ms": alone[1], "A+B ms": together, "ideal ms": median(ideals)}
    # Where nothing is handed over, these often say why: the first placement is the slower one.
    figures |= {f"{name} prefill ms": median(r.prompt_ms for r in side) for name, side in ((_A, a), (_B, b))}
    figures["handed over"] = handed_over(pair)
    transfers = [result.transfer_ms for result in pair if result.transfer_ms is not None]
    overheads = [r.total_ms - ideal for r, ideal in zip(pair, ideals, strict=True) if r.transfer_ms is not None]
    names = ("transfer ms", "overhead ms", _OVERHEAD, _SPEED_UP)
    if not transfers:
        reason = Counter(result.reason for result in pair).most_common(1)[0][0]
        return figures | dict.fromkeys(names, not_measured(reason))
    allowed = max(BOUND_FRACTION * median(ideals), BOUND_MS)
    values = (median(transfers), median(overheads), median(overheads) / allowed, min(alone) / together)
    return figures | dict(zip(names, values, strict=True))


def compared(
    title: str, pair: tuple[str, str], model: Path, options: argparse.Namespace, configuration: Configuration
) -> dict[str, Figure]:
    sizes = options.size or SIZES
    tests = (Test(kind="pp", prompt_tokens=max(map(sum, sizes)) + 64),)
    specs = {_A: pair[0], _B: pair[1], _PAIR: "+".join(pair)}
    placements = resolved(list(specs.values()), model, tests, configuration, keep_window=True)
    comparison = Comparison(title, sizes, options.rounds, configuration, defaultdict(list))
    asyncio.run(comparison.measure(dict(zip(specs, placements, strict=True))))
    figures: dict[str, Figure] = {}
    for size in sizes:
        of_size = figures_of(*(comparison.results[name, size] for name in specs))
        figures |= {f"{title} {name_of(size)} {name}": value for name, value in of_size.items()}
    return figures


def bounds_of(title: str, sizes: Sequence[Size]) -> list[Bound]:
    bounds = [Bound(f"{title} {name_of(size)} {_OVERHEAD}", most=1) for size in sizes if has_bound(size)]
    if title == "scripted" and SIZES[-1] in sizes:
        # What the arithmetic of the scripted rates promises, less a tenth.
        bounds.append(Bound(f"{title} {name_of(SIZES[-1])} {_SPEED_UP}", least=1.5))
    return bounds


def _size(text: str) -> Size:
    prompt, _, answer = text.partition(",")
    return count(prompt), count(answer)


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--prefill", default=REAL[0], metavar="PLACEMENT")
    parser.add_argument("--decode", default=REAL[1], metavar="PLACEMENT")
    parser.add_argument("--pair", choices=("scripted", "real", "both"), default="both", help="which pair to measure")
    parser.add_argument("--size", type=_size, action="append", metavar="PROMPT,ANSWER", help="tokens; repeatable")
    options = parser.parse_args()
    configuration = configuration_with()
    model = options.model or demo_path(configuration)
    pairs = {"scripted": SCRIPTED, "real": (options.prefill, options.decode)}
    figures: dict[str, Figure] = {}
    bounds = []
    for title, pair in pairs.items():
        bounds_of_pair = bounds_of(title, options.size or SIZES)
        names = [bound.figure for bound in bounds_of_pair]
        if options.pair in (title, "both"):
            figures |= attempted(names, compared, title, pair, model, options, configuration)
            bounds += bounds_of_pair
        else:
            figures |= dict.fromkeys(names, not_measured(f"--pair {options.pair} leaves it out"))
    return report(figures, bounds, as_json=options.json)


if __name__ == "__main__":
    run(main)
