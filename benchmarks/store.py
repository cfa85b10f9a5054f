"""How fast the model store is: `trilithon list` with many models, and the operations behind it.

    python benchmarks/store.py [--models 1000] [--runs 5] [--json]

Fills a store in a temporary folder (one small blob per model), then times whole processes, as a user starts them,
and single operations. Each figure is the median of the runs.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from _figures import Bound, Figure, arguments, count, report, run
from _timing import command_seconds, median_seconds, seconds

from trilithon.models.names import ModelName
from trilithon.models.store.manifest import Manifest, StoredFile, now
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.upkeep import prune

_LIST = "trilithon list seconds"
_BOUNDS = [Bound(_LIST, most=0.3)]


def of_commands(environment: Mapping[str, str], runs: int) -> dict[str, Figure]:
    return {
        _LIST: command_seconds("list", runs=runs, environment=environment),
        "trilithon list --json seconds": command_seconds("list", "--json", runs=runs, environment=environment),
        "trilithon --help seconds": command_seconds("--help", runs=runs, environment=environment),
    }


def of_operations(root: Path, runs: int) -> dict[str, Figure]:
    with ModelStore(root) as store:
        return {
            "ModelStore.list seconds": median_seconds(store.list, runs),
            "ModelStore.get ms": 1e3 * median_seconds(lambda: store.get(_name(0)), runs),
            "ModelStore.remove and put seconds": median_seconds(lambda: _replace(store), runs),
            "prune with nothing to do seconds": median_seconds(lambda: prune(store), runs),
        }


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


def _replace(store: ModelStore) -> None:
    store.remove(_name(0))
    store.put(_manifest(store, 0))


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--models", type=count, default=1000)
    parser.add_argument("--runs", type=count, default=5)
    options = parser.parse_args()
    figures: dict[str, Figure] = {"models": options.models}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "trilithon" / "models"
        figures["seconds to fill the store"] = seconds(lambda: _fill(root, options.models))
        environment = os.environ | {"TRILITHON_DATA": str(root.parent), "HOME": folder, "XDG_CONFIG_HOME": folder}
        figures |= of_commands(environment, options.runs)
        figures |= of_operations(root, options.runs)
    return report(figures, _BOUNDS, as_json=options.json)


if __name__ == "__main__":
    run(main)
