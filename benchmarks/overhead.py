"""What Trilithon itself costs: CPU time of the parent while a child decodes, and the wall time of short commands.

    python benchmarks/overhead.py [--model FILE] [--runs 11] [--json]

The parent's share is measured on the demo model (or FILE) in the embedded llama.cpp, over one answer of 256 tokens:
once as the bench requests it (events are stamped now and read later), which has a bound, and once as a stream that is
read token by token. The time of a command is the median of the runs, with a warm page cache.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from _figures import Bound, CannotMeasure, Figure, arguments, attempted, count, report, run
from _placements import configuration_with, demo_path, opened, resolved
from _timing import command_seconds

from trilithon.engines.wire.messages import Completion

_REQUEST = Completion(prompt=[2], max_tokens=256, ignore_eos=True)
_BENCH, _STREAM = "parent CPU share, bench", "parent CPU share, stream"
_COMMANDS = {"--help": 0.2, "doctor": 1.0}
_BOUNDS = [
    Bound(_BENCH, most=0.02),
    *(Bound(f"trilithon {command} seconds", most=most) for command, most in _COMMANDS.items()),
]


async def parent_share(model: Path | None) -> dict[str, Figure]:
    configuration = configuration_with()
    (placement,) = resolved(["llama.cpp@embedded/cpu"], model or demo_path(configuration), [], configuration)
    figures: dict[str, Figure] = {}
    async with opened(placement, configuration) as runner:
        await runner.complete(_REQUEST)
        async with _cpu_share(figures, _BENCH):
            _, finished = await runner.complete(_REQUEST)
        async with _cpu_share(figures, _STREAM), contextlib.aclosing(runner.stream(_REQUEST)) as events:
            async for _ in events:
                pass
    if finished.timings is None:
        raise CannotMeasure("the engine reports no timings")
    figures["child decode tokens/s"] = (finished.timings.predicted_n - 1) / finished.timings.predicted_ms * 1e3
    return figures


@contextlib.asynccontextmanager
async def _cpu_share(figures: dict[str, Figure], name: str) -> AsyncIterator[None]:
    cpu, wall = time.process_time(), time.monotonic()
    yield
    figures[name] = (time.process_time() - cpu) / (time.monotonic() - wall)


def of_command(command: str, runs: int) -> dict[str, Figure]:
    return {f"trilithon {command} seconds": command_seconds(command, runs=runs)}


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--runs", type=count, default=11, help="runs of each command")
    parser.add_argument("--model", type=Path, metavar="FILE")
    options = parser.parse_args()
    figures = attempted([_BENCH], lambda: asyncio.run(parent_share(options.model)))
    for command in _COMMANDS:
        figures |= attempted([f"trilithon {command} seconds"], of_command, command, options.runs)
    return report(figures, _BOUNDS, as_json=options.json)


if __name__ == "__main__":
    run(main)
