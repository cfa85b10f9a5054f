"""Whether pp512 and tg128 are the same through HTTP: one llama.cpp, as a placement and as a server at an address.

    python benchmarks/through_http.py [--rounds 10] [--model FILE] [--json]

Each round runs both sides, each in a process of its own, and the order alternates. The ratio is the median of the
rounds' ratios, so that drift of the machine cancels; low and high are its 95% interval. The bound is on the median.
"""

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from _figures import Bound, CannotMeasure, Figure, arguments, count, report, run
from _placements import ENGINE, TESTS, configuration_with, demo_path, rates_of, rates_with, ratio_figures, resolved

from trilithon.bench.workloads import warm_up
from trilithon.engines.base import Placement
from trilithon.engines.llamacpp.argv import embedded_argv
from trilithon.engines.remote.placing import place_server
from trilithon.errors import PlacementError
from trilithon.runtime.remote.runner import RemoteRunner
from trilithon.settings import Configuration

_MOST = {"pp": 0.03, "tg": 0.02}
_BOUNDS = [Bound(f"ratio {test.name}", least=1 - _MOST[test.kind], most=1 + _MOST[test.kind]) for test in TESTS]
_START_SECONDS = 60.0


@contextlib.asynccontextmanager
async def serving(placement: Placement) -> AsyncIterator[str]:
    """The server of the placement, on a free port instead of a socket; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    *command, values = embedded_argv(placement, Path("127.0.0.1"), Path())
    words = json.dumps(json.loads(values) | {"port": port})
    # A session of its own, as children of Trilithon have: the scheduler shares the CPUs out among sessions.
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, words, stderr=quiet, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def through_http(placement: Placement, configuration: Configuration) -> dict[str, float]:
    """Tokens per second of each test, by its name."""
    context = placement.settings.context or 0
    async with serving(placement) as address:
        deadline = asyncio.get_running_loop().time() + _START_SECONDS
        while True:
            try:
                remote = place_server(address, {"address": address}, (placement.file.name,), placement.file, context)
                break
            except PlacementError as error:  # it is loading
                if asyncio.get_running_loop().time() > deadline:
                    raise CannotMeasure(f"the server does not start: {error}") from error
                await asyncio.sleep(0.1)
        async with RemoteRunner.open(remote, hang_seconds=configuration.hang_seconds) as runner:
            await warm_up(runner, TESTS)
            return await rates_with(runner, TESTS)


def one_round(number: int, placement: Placement, configuration: Configuration) -> dict[str, float]:
    """The ratios of rates through HTTP to direct ones, by test."""
    sides = [rates_of, through_http]
    rates = {side: asyncio.run(side(placement, configuration)) for side in (sides if number % 2 else sides[::-1])}
    ratios = {test.name: rates[through_http][test.name] / rates[rates_of][test.name] for test in TESTS}
    words = (f"{name} {ratio:.3f} of {rates[rates_of][name]:.1f}/s" for name, ratio in ratios.items())
    print(f"round {number + 1}: {', '.join(words)}", file=sys.stderr)
    return ratios


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=count, default=10)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    configuration = configuration_with()
    specs = [f"{ENGINE}@embedded/cpu"]
    (placement,) = resolved(specs, options.model or demo_path(configuration), TESTS, configuration)
    placement = replace(placement, settings=replace(placement.settings, cpus=None))
    rounds = [one_round(number, placement, configuration) for number in range(options.rounds)]
    figures: dict[str, Figure] = {}
    for test in TESTS:
        figures |= ratio_figures(f"ratio {test.name}", [ratios[test.name] for ratios in rounds])
    return report(figures, _BOUNDS, as_json=options.json)


if __name__ == "__main__":
    run(main)
