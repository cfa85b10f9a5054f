"""Run by the Python of rkllm-toolkit's own environment, never imported: it makes the calls that it is handed.

    python rkllm_toolkit.py probe [cuda]   says on its last line, as JSON, whether the toolkit is there
    python rkllm_toolkit.py FILE           makes the calls in FILE: [["load_gguf", [], {"model": ...}], ...]

Each call begins with a line `::NAME`; a call that fails ends with a line `error: ...`. Only the standard library of
Python 3.9 is used, because Trilithon is not installed in the toolkit's environment."""

import importlib
import importlib.metadata
import importlib.util
import json
import platform
import sys
from pathlib import Path
from typing import Any, TextIO

__all__ = ["main"]


class _Lines:
    """Turns rewritten lines of progress bars into separate lines, for a reader of the pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        written = self._stream.write(text.replace("\r", "\n"))
        self._stream.flush()
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def probe(with_cuda: bool) -> int:
    facts: dict[str, Any] = {"python": platform.python_version(), "toolkit": None, "cuda": None}
    if importlib.util.find_spec("rkllm") is not None:
        try:
            facts["toolkit"] = importlib.metadata.version("rkllm-toolkit")
        except importlib.metadata.PackageNotFoundError:
            facts["toolkit"] = "unknown"
    if with_cuda and importlib.util.find_spec("torch") is not None:
        facts["cuda"] = bool(importlib.import_module("torch").cuda.is_available())
    print(json.dumps(facts))  # noqa: T201 - the answer
    return 0


def convert(calls: list[Any]) -> int:
    print("::start", flush=True)  # noqa: T201 - the protocol
    toolkit = importlib.import_module("rkllm.api").RKLLM()
    for name, values, parameters in calls:
        print(f"::{name}", flush=True)  # noqa: T201
        result = getattr(toolkit, name)(*values, **parameters)
        if result != 0:
            print(f"error: {name} of rkllm-toolkit gave {result}", flush=True)  # noqa: T201
            return 1
    return 0


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["probe"]:
        return probe("cuda" in arguments)
    # It has what print and tqdm use of a stream.
    sys.stdout = _Lines(sys.stdout)
    sys.stderr = _Lines(sys.stderr)
    return convert(json.loads(Path(arguments[0]).read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
