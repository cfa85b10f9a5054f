"""What becomes of the server under attack: what is tried, what is held, and what the server keeps of it.

    python benchmarks/attack.py [--families NAMES] [--json]

One `trilithon serve` with tiny models on llama.cpp, some of them hostile. NAMES are of the families in _attacks.py,
separated by commas. While an attack goes on, /health is asked ten times a second, and the memory of the server and its
engines is looked at. Before and after the campaign the server is idle, with one engine: its memory, descriptors and
children have to be as before.
"""

import argparse
import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from _attacks import FAMILIES, TEMPLATES, Attempt
from _figures import Bound, CannotMeasure, Figure, arguments, report, run
from _server import Server, at_rest, children, private_folders, resident_megabytes, serving

from trilithon.models.synthetic.tiny import write_tiny_model

_PAUSE_SECONDS = 0.1
_BOUNDS = [
    Bound("attacks not held", most=0),
    Bound("memory MB of all processes at most", most=1500.0),
    Bound("memory MB more than before", most=20.0),
    Bound("descriptors more than before", most=0),
    Bound("children more than before", most=0),
]


@dataclass(slots=True)
class Watch:
    """What was seen of the server meanwhile."""

    slowest_seconds: float = 0.0
    most_megabytes: float = 0.0


@contextlib.contextmanager
def watched(server: Server) -> Iterator[Watch]:
    watch, over = Watch(), threading.Event()

    def look() -> None:
        while not over.wait(_PAUSE_SECONDS):
            used = resident_megabytes(server.process)
            for child in children(server.process):
                with contextlib.suppress(CannotMeasure, OSError):  # it has ended
                    used += resident_megabytes(child)
            watch.most_megabytes = max(watch.most_megabytes, used)
            began = time.monotonic()
            with contextlib.suppress(httpx.HTTPError):  # the time that it took counts all the same
                httpx.get(f"{server.url}/health", timeout=60)
            watch.slowest_seconds = max(watch.slowest_seconds, time.monotonic() - began)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()


def only_the_good_model_stays(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for model in client.get("/api/ps").json()["models"]:
            client.post("/api/generate", json={"model": model["name"], "keep_alive": 0})
        client.post("/api/generate", json={"model": next(iter(TEMPLATES)), "keep_alive": -1})


def measured(server: Server, families: list[str]) -> dict[str, Figure]:
    for _ in range(20):  # every code path and pool is warm before the first look
        httpx.get(f"{server.url}/health", timeout=60)
    only_the_good_model_stays(server)
    at_rest(server)
    only_the_good_model_stays(server)
    before = at_rest(server)
    attempts: dict[str, list[Attempt]] = {}
    began = time.monotonic()
    with watched(server) as watch:
        for family in families:
            attempts[family] = list(FAMILIES[family](server))
    seconds = time.monotonic() - began
    only_the_good_model_stays(server)
    after = at_rest(server, before)
    every = [attempt for tried in attempts.values() for attempt in tried]
    for attempt in every:
        if not attempt.held:
            print(f"not held: {attempt.name}: {attempt.words}", flush=True)
    return {
        **{f"{family} tried": len(tried) for family, tried in attempts.items()},
        **{f"{family} held": sum(attempt.held for attempt in tried) for family, tried in attempts.items()},
        "attacks tried": len(every),
        "attacks not held": sum(not attempt.held for attempt in every),
        "seconds": seconds,
        "seconds of the slowest /health": watch.slowest_seconds,
        "memory MB of all processes at most": watch.most_megabytes,
        "memory MB more than before": after[0] - before[0],
        "descriptors more than before": after[1] - before[1],
        "children more than before": after[2] - before[2],
    }


def _families(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in FAMILIES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown; there are {', '.join(FAMILIES)}")
    return names


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--families", type=_families, default=list(FAMILIES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = []
        for model, template in TEMPLATES.items():
            (folder / model).mkdir()
            models.append(write_tiny_model(folder / model / f"{model}.gguf", template=template))
        words = ("--placement", "llama.cpp@embedded/cpu:t=1", "--context", "512", "--no-pages")
        with serving(*models, *words, environment=private_folders(folder)) as server:
            figures = measured(server, options.families)
    return report(figures, _BOUNDS, as_json=options.json)


if __name__ == "__main__":
    run(main)
