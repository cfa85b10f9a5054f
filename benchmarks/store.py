"""How fast the store answers: `trilithon list` with 1,000 models, and its parts.

    python benchmarks/store.py [--models 1000] [--runs 5]

Makes a store in a temporary folder (a small blob for each model), then times whole processes, as a user does.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from trilithon.models.names import ModelName
from trilithon.models.store.manifest import Manifest, StoredFile, now
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.upkeep import prune

_TARGET_SECONDS = 0.3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "trilithon" / "models"
        print(f"{words.models} models made in {_seconds(lambda: _fill(root, words.models)):.2f} s")
        environment = os.environ | {"TRILITHON_DATA": str(root.parent), "HOME": folder, "XDG_CONFIG_HOME": folder}
        listed = _median(words.runs, lambda: _run(environment, "list"))
        print(f"trilithon --help           {_median(words.runs, lambda: _run(environment, '--help')):.3f} s")
        print(f"trilithon list             {listed:.3f} s (at most {_TARGET_SECONDS} s)")
        print(f"trilithon list --json      {_median(words.runs, lambda: _run(environment, 'list', '--json')):.3f} s")
        with ModelStore(root) as store:
            print(f"ModelStore.list            {_median(words.runs, store.list):.3f} s")
            print(f"ModelStore.get             {_median(words.runs, lambda: store.get(_name(0))) * 1000:.2f} ms")
            print(f"ModelStore.remove          {_median(words.runs, lambda: _again(store)):.3f} s")
            print(f"prune with nothing to do   {_median(words.runs, lambda: prune(store)):.3f} s")
    return 0 if listed <= _TARGET_SECONDS else 1


def _fill(root: Path, count: int) -> None:
    with ModelStore(root) as store:
        for number in range(count):
            store.put(_manifest(store, number))


def _manifest(store: ModelStore, number: int) -> Manifest:
    content = f"weights {number}".encode()
    file = StoredFile(
        role="weights",
        digest=store.add_bytes(content),
        size_bytes=len(content),
        name=f"model-{number}.gguf",
        format="gguf",
        quantization="Q4_K_M",
    )
    return Manifest(name=_name(number), files=(file,), source="hf.co/someone/model", created=now())


def _name(number: int) -> ModelName:
    return ModelName("registry.ollama.ai", "library", f"model-{number}", "latest")


def _again(store: ModelStore) -> None:
    store.remove(_name(1))
    store.put(_manifest(store, 1))


def _run(environment: dict[str, str], *words: str) -> None:
    program = "from trilithon.cli.main import entry; entry()"
    subprocess.run([sys.executable, "-c", program, *words], env=environment, stdout=subprocess.DEVNULL, check=True)


def _median(runs: int, call: Callable[[], object]) -> float:
    return statistics.median(_seconds(call) for _ in range(runs))


def _seconds(call: Callable[[], object]) -> float:
    started_ns = time.monotonic_ns()
    call()
    return (time.monotonic_ns() - started_ns) / 1e9


if __name__ == "__main__":
    sys.exit(main())
