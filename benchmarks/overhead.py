"""What Trilithon itself costs: CPU time of the parent while a child decodes, and how long short commands take.

    python benchmarks/overhead.py [--json]

The parent's share is measured on the demo model in the embedded llama.cpp, over one answer of 256 tokens, once as
the bench asks (stamp now, read later), which has a bound, and once as a stream that is read token by token.
"""

import asyncio
import contextlib
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from _figures import Bound, Figure, arguments, report
from _placements import configuration_with, demo_path, opened, resolved

from trilithon.engines.wire.messages import Completion

_REQUEST = Completion(prompt=[2], max_tokens=256, ignore_eos=True)
_COMMANDS = {"--help": 0.2, "doctor": 1.0}


async def parent_share() -> dict[str, Figure]:
    configuration = configuration_with()
    (placement,) = resolved(["llama.cpp@embedded/cpu"], demo_path(configuration), [], configuration)
    figures: dict[str, Figure] = {}
    async with opened(placement, configuration) as runner:
        await runner.complete(_REQUEST)
        cpu, wall = time.process_time(), time.monotonic()
        _, finished = await runner.complete(_REQUEST)
        figures["parent CPU share, bench"] = (time.process_time() - cpu) / (time.monotonic() - wall)
        cpu, wall = time.process_time(), time.monotonic()
        async with contextlib.aclosing(runner.stream(_REQUEST)) as events:
            async for _ in events:
                pass
        figures["parent CPU share, stream"] = (time.process_time() - cpu) / (time.monotonic() - wall)
        assert finished.timings is not None
        figures["child decode tokens/s"] = (finished.timings.predicted_n - 1) / finished.timings.predicted_ms * 1e3
    return figures


def seconds_of(*words: str, times: int = 11) -> float:
    """Median wall time of the command, page cache warm."""
    program = Path(sys.executable).with_name("trilithon")
    walls = []
    for _ in range(times):
        start = time.monotonic()
        subprocess.run([program, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        walls.append(time.monotonic() - start)
    return median(walls)


def main() -> int:
    words = arguments(__doc__ or "").parse_args()
    figures = asyncio.run(parent_share())
    figures |= {f"trilithon {command} seconds": seconds_of(command) for command in _COMMANDS}
    bounds = [Bound("parent CPU share, bench", most=0.02)]
    bounds += [Bound(f"trilithon {command} seconds", most=most) for command, most in _COMMANDS.items()]
    return report(figures, bounds, as_json=words.json)


if __name__ == "__main__":
    sys.exit(main())
