"""Runs inside the arm64 root: Trilithon's vision encoder with the real rknn-toolkit-lite2, in a process for each case.

    rknnlite_cases.py CASES.json LIBRARY OUT.json

A case has the content of /proc/device-tree/compatible (null: no device tree), `files` that are there, the `library` in
the place of librknnrt.so ("": none, "standin": LIBRARY, else its content), and the `code` and `line` of the stand-in.
All of it lies below QEMU_LD_PREFIX, where qemu looks first. OUT has the message of each case.
"""

import json
import os
import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from rknnlite.api import RKNNLite

from trilithon.engines.rkllm.child.vision import VisionEncoder, VisionForm
from trilithon.errors import RunError

PLANTED = Path(os.environ["QEMU_LD_PREFIX"])
assert RKNNLite.NPU_CORE_0_1_2 == 7


def plant(case, standin):
    shutil.rmtree(PLANTED, ignore_errors=True)
    for name in case.get("files", ()):
        path = PLANTED / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if case["compatible"] is not None:
        tree = PLANTED / "proc" / "device-tree"
        tree.mkdir(parents=True)
        (tree / "compatible").write_text(case["compatible"])
    if library := case.get("library", ""):
        (PLANTED / "usr" / "lib").mkdir(parents=True, exist_ok=True)
        path = PLANTED / "usr" / "lib" / "librknnrt.so"
        path.write_bytes(standin.read_bytes() if library == "standin" else library.encode())
    os.environ["STANDIN_CODE"], os.environ["STANDIN_LINE"] = str(case.get("code", 0)), case.get("line", "")


def message(case, log, picture):
    """In a process of its own: the runtime's state, and what qemu remembers of paths, end with it."""
    if not (child := os.fork()):
        file = os.open(log, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        encoder = VisionEncoder(Path("/tmp/encoder.rknn"), VisionForm(32, 32, ("a", "b", "c")), case["chip"])
        try:
            encoder.picture("", [picture])
            text = "no failure"
        except RunError as error:
            text = str(error)
        log.with_suffix(".message").write_text(text)
        os._exit(0)
    os.waitpid(child, 0)
    return log.with_suffix(".message").read_text()


def main():
    cases, standin, out = map(Path, sys.argv[1:])
    Path("/tmp/encoder.rknn").write_bytes(b"RKNN")
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    outcomes = {}
    for name, case in json.loads(cases.read_text()).items():
        plant(case, standin)
        log = Path("/tmp") / f"{name}.log"
        outcomes[name] = {"message": message(case, log, buffer.getvalue()), "printed": log.read_text()}
    out.write_text(json.dumps(outcomes))


main()
