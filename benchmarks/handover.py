"""What a handover gains and costs: (prompt, answer) pairs on A alone, on B alone, handed over from A to B, and the
ideal: A's prefill and B's decode with nothing between them.

    python benchmarks/handover.py [--rounds 5] [--model FILE] [--prefill SPELLING --decode SPELLING] [--json]

Two pairs: a scripted one with the rates of an RK3588's NPU and CPU to each other (prefill 3 to 1, decode 1 to 3.3,
times ten), where what should come out is known; and a real one, the embedded llama.cpp on two threads and on one.
All four are live at once and asked in turn, so that drift of the machine cancels. The bound is on what the handover
takes longer than the ideal, at prompts of 1,024 tokens and more: 3% or 30 ms, whichever is more.
"""

import asyncio
import contextlib
import random
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

from _figures import Bound, Figure, arguments, report
from _placements import configuration_with, demo_path, resolved

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


async def milliseconds(runner: Runner, size: tuple[int, int], seed: int) -> tuple[float, Finished]:
    random.seed(seed)
    prompt = tuple(random.randrange(300, 30_000) for _ in range(size[0]))
    finished = await runner.timed(Completion(prompt=prompt, max_tokens=size[1], ignore_eos=True))
    assert finished.timings is not None
    return finished.timings.prompt_ms + finished.timings.predicted_ms, finished


async def compared(pair: tuple[str, str], model: Path, rounds: int, configuration: Configuration) -> dict[str, Figure]:
    longest = max(prompt + answer for prompt, answer in SIZES) + 64
    tests = (Test(kind="pp", prompt_tokens=longest),)
    spelled = {"A": pair[0], "B": pair[1], "A+B": "+".join(pair)}
    placements = resolved(list(spelled.values()), model, tests, configuration, keep_window=True)
    taken: dict[tuple[str, tuple[int, int]], list[float]] = defaultdict(list)
    parts: dict[tuple[str, tuple[int, int]], list[float]] = defaultdict(list)
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(workspace())
        runners = {
            name: await stack.enter_async_context(open_runner(placement, folder / str(number), configuration))
            for number, (name, placement) in enumerate(zip(spelled, placements, strict=True))
        }
        for number in range(rounds + 1):
            for size in SIZES:
                for name in list(runners) if number % 2 else list(runners)[::-1]:
                    total, finished = await milliseconds(runners[name], size, number)
                    if number == 0:
                        continue  # the first round warms up
                    assert finished.timings is not None
                    taken[name, size].append(total)
                    if name == "A":
                        parts["prefill", size].append(finished.timings.prompt_ms)
                    if name == "B":
                        parts["decode", size].append(finished.timings.predicted_ms)
                    if finished.handed is not None and finished.handed.transfer_bytes:
                        parts["transfer", size].append(finished.handed.transfer_ms)
                print(f"{pair[0]}+{pair[1]}: round {number} of {rounds}, {size}", file=sys.stderr)
        for notice in runners["A+B"].notices:
            print(notice, file=sys.stderr)
    return summary(taken, parts)


def summary(
    taken: dict[tuple[str, tuple[int, int]], list[float]], parts: dict[tuple[str, tuple[int, int]], list[float]]
) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for size in SIZES:
        name = f"({size[0]}, {size[1]})"
        for who in ("A", "B", "A+B"):
            figures[f"{name} {who} ms"] = median(taken[who, size])
        ideals = [a + b for a, b in zip(parts["prefill", size], parts["decode", size], strict=True)]
        over = median(together - ideal for together, ideal in zip(taken["A+B", size], ideals, strict=True))
        figures[f"{name} ideal ms"] = median(ideals)
        figures[f"{name} transfer ms"] = median(parts["transfer", size]) if parts["transfer", size] else None
        figures[f"{name} over the ideal ms"] = over
        allowed = max(BOUND_FRACTION * median(ideals), BOUND_MS)
        figures[f"{name} over the ideal, of what is allowed"] = over / allowed
        best = min(median(taken["A", size]), median(taken["B", size]))
        figures[f"{name} speed-up over the better one alone"] = best / median(taken["A+B", size])
    return figures


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--prefill", default=REAL[0])
    parser.add_argument("--decode", default=REAL[1])
    words = parser.parse_args()
    configuration = configuration_with()
    model = words.model or demo_path(configuration)
    figures: dict[str, Figure] = {}
    for title, pair in (("scripted", SCRIPTED), ("real", (words.prefill, words.decode))):
        found = asyncio.run(compared(pair, model, words.rounds, configuration))
        figures |= {f"{title} {name}": figure for name, figure in found.items()}
    bounds = [
        Bound(f"{title} ({prompt}, {answer}) over the ideal, of what is allowed", most=1)
        for title in ("scripted", "real")
        for prompt, answer in SIZES
        if prompt >= BOUND_FROM
    ]
    # What the arithmetic of the scripted rates promises for (4096, 128), less a tenth.
    bounds.append(Bound("scripted (4096, 128) speed-up over the better one alone", least=1.5))
    return report(figures, bounds, as_json=words.json)


if __name__ == "__main__":
    sys.exit(main())
