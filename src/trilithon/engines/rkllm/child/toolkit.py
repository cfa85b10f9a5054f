"""Run by the Python of a converter's own environment, never imported: it makes the calls that it is handed.

    toolkit.py probe PACKAGE DISTRIBUTION [cuda]   says on its last line, as JSON, whether the toolkit is there
    toolkit.py onnx FILE                           the same with what an ONNX file needs, or why it cannot be read
    toolkit.py FILE                                makes the calls in FILE, in `folder` where it is named:
        {"name": "rkllm-toolkit", "class": "rkllm.api.RKLLM", "calls": [["load_gguf", [], {"model": ...}], ...]}

Each call begins with a line `::NAME`; a call that fails ends with a line `error: ...`. Only the standard library of
Python 3.9 is used, and for `onnx` the package of that name, because Trilithon is not installed in that environment."""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import types
from pathlib import Path
from typing import Any, TextIO

__all__ = ["main", "replace_absent_torch"]

# rknn-toolkit2 imports torch (800 MB), and needs nothing of it for ONNX.
_TORCH = ("torch", "torch.nn", "torch.jit", "torch.onnx", "torch.utils", "torch.utils.data", "torchvision")
_TORCH_VERSION = "2.4.0"  # the newest that rknn-toolkit2 2.5.0 takes
_STANDARD_DOMAINS = ("", "ai.onnx")


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


class _AbsentModule(types.ModuleType):
    """In the place of a module that is not installed: any attribute is another one, and may be a base class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        module = _AbsentModule(f"{self.__name__}.{name}")
        sys.modules[module.__name__] = module
        setattr(self, name, module)
        return module

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self

    def __mro_entries__(self, _: Any) -> tuple[type, ...]:
        return (object,)


def probe(package: str, distribution: str, with_cuda: bool) -> int:
    facts: dict[str, Any] = {"python": platform.python_version(), "toolkit": None, "cuda": None}
    if importlib.util.find_spec(package) is not None:
        try:
            facts["toolkit"] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            facts["toolkit"] = "unknown"
    if with_cuda and importlib.util.find_spec("torch") is not None:
        facts["cuda"] = bool(importlib.import_module("torch").cuda.is_available())
    print(json.dumps(facts))  # noqa: T201 - the answer
    return 0


def describe_onnx(path: str) -> int:
    """Prints `inputs` (name and shape; a side that is not fixed is a text) and `unknown` operators, or an `error`."""
    try:
        facts = _onnx_facts(path)
    except Exception as error:  # noqa: BLE001 - whatever protobuf raises: the file is not ONNX
        facts = {"error": _reason(error)}
    print(json.dumps(facts))  # noqa: T201 - the answer
    return 0


def _onnx_facts(path: str) -> dict[str, Any]:
    onnx: Any = importlib.import_module("onnx")
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [entry for entry in graph.input if entry.name not in weights]
    versions = {entry.domain: entry.version for entry in model.opset_import}
    local = {(function.domain, function.name) for function in model.functions}
    beside = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    unknown = {
        node.op_type
        for node in graph.node
        if (node.domain, node.op_type) not in local
        and (
            node.domain not in _STANDARD_DOMAINS
            or not onnx.defs.has(node.op_type, max(versions.get("", 1), versions.get("ai.onnx", 1)), "")
        )
    }
    return {
        "inputs": [[entry.name, _shape(entry.type.tensor_type)] for entry in inputs],
        "nodes": len(graph.node),
        "unknown": sorted(unknown),
        "absent": sorted(name for name in beside if not (Path(path).parent / name).is_file()),
    }


def _shape(tensor: Any) -> list[Any]:
    return [side.dim_value if side.dim_value > 0 else side.dim_param or "?" for side in tensor.shape.dim]


def replace_absent_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        for name in _TORCH:
            sys.modules[name] = _AbsentModule(name)
        sys.modules["torch"].__dict__["__version__"] = _TORCH_VERSION


def convert(job: Any) -> int:
    print("::start", flush=True)  # noqa: T201 - the protocol
    if "folder" in job:
        os.chdir(job["folder"])
    module, _, name = job["class"].rpartition(".")
    if module.startswith("rknn."):
        replace_absent_torch()
    step = "start"
    try:
        toolkit = getattr(importlib.import_module(module), name)()
        for step, values, parameters in job["calls"]:
            print(f"::{step}", flush=True)  # noqa: T201
            result = getattr(toolkit, step)(*values, **parameters)
            if result not in (0, None):
                return _failed(step, job["name"], f"gave {result}")
    except Exception as error:  # noqa: BLE001 - a toolkit raises what its libraries raise; the log has the traceback
        sys.excepthook(*sys.exc_info())
        return _failed(step, job["name"], f"failed: {_reason(error)}")
    return 0


def _failed(step: str, name: str, what: str) -> int:
    print(f"error: {step} of {name} {what}", flush=True)  # noqa: T201
    return 1


def _reason(error: Exception) -> str:
    """On one line. rknn-toolkit2 raises errors whose text is a traceback; the error itself is its end."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "Traceback" in lines[0]:
        lines = lines[max(number for number, line in enumerate(lines) if not line.startswith((" ", "\t"))) :]
    return " ".join(" ".join(lines).split())


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["probe"]:
        return probe(arguments[1], arguments[2], "cuda" in arguments[3:])
    if arguments[:1] == ["onnx"]:
        return describe_onnx(arguments[1])
    # It has what print and tqdm use of a stream.
    sys.stdout = _Lines(sys.stdout)
    sys.stderr = _Lines(sys.stderr)
    return convert(json.loads(Path(arguments[0]).read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
