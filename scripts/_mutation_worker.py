"""Runs the tests of many mutants of one module, each in a fork of one process that has imported what it can already.

Reads the job as JSON from stdin and writes a line of JSON for each mutant; the last line about a mutant counts. Its
folder is a copy of the tree, in which the mutated module lies while its tests run: what they start finds it there as
well, by PYTHONPATH.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

_PR_SET_CHILD_SUBREAPER = 36
_START_SECONDS = 60.0
_ARGUMENTS = (
    *("-q", "-p", "_mutation_plugin", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"),
    *("--hypothesis-profile=mutation", "--hypothesis-seed=0", "-W", "ignore::pytest.PytestAssertRewriteWarning"),
)
_Limits = dict[str, float]  # tests, and how many seconds each may take


def main() -> None:
    job = json.load(sys.stdin)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what a killed test leaves behind becomes ours
    with warnings.catch_warnings(action="ignore"):
        for name in job["modules"]:
            with contextlib.suppress(ImportError):  # some can only be imported by the package around them
                importlib.import_module(name)
    gc.freeze()  # or each fork would look through all of it again
    _Job(Path(job["path"]), Path(job["folder"])).run(job["mutants"])


class _Job:
    def __init__(self, target: Path, folder: Path):
        self._target = target
        self._original = target.read_text(encoding="utf-8")
        self._folder = folder

    def run(self, mutants: list[dict[str, Any]]) -> None:
        """A test that fails without a mutant as well says nothing: its mutants are run again without it."""
        numbers, unreliable = list(range(len(mutants))), set[str]()
        while numbers:
            failures: dict[str, list[int]] = {}
            for number in numbers:
                limits = {test: limit for test, limit in mutants[number]["tests"].items() if test not in unreliable}
                began = time.monotonic()
                result = self._outcome(mutants[number]["text"], limits)
                result |= {"number": number, "seconds": time.monotonic() - began}
                print(json.dumps(result), flush=True)
                failures.setdefault(result["test"], []).append(number)
            limits = {test: limit for number in numbers for test, limit in mutants[number]["tests"].items()}
            failing = self._failing({test: limit for test, limit in limits.items() if test in failures})
            unreliable |= failing
            numbers = [number for test in failing for number in failures[test]]

    def _failing(self, limits: _Limits) -> set[str]:
        """Those that fail with the original too."""
        failing = set()
        while (result := self._outcome(self._original, limits))["outcome"] != "survived":
            if result["test"] not in limits:
                raise RuntimeError(f"{self._target}: the tests do not run without a mutant: {result['test']}")
            failing.add(result["test"])
            del limits[result["test"]]
        return failing

    def _outcome(self, text: str, limits: _Limits) -> dict[str, Any]:
        for compiled in (self._target.parent / "__pycache__").glob(f"{self._target.stem}.*.pyc"):
            compiled.unlink()  # a file changed twice within a second would be taken for the compiled one
        self._target.write_text(text, encoding="utf-8")
        (self._folder / "tests.json").write_text(json.dumps(limits), encoding="utf-8")
        failed = self._folder / "failed"
        failed.unlink(missing_ok=True)
        code = self._exit_code(limits) if limits else 0
        if failed.exists():
            failure: dict[str, Any] = json.loads(failed.read_text(encoding="utf-8"))
            return failure
        outcomes = {0: "survived", -signal.SIGKILL: "timeout"}
        return {"outcome": outcomes.get(code, "killed"), "test": f"exit code {code}" if code else ""}

    def _exit_code(self, limits: _Limits) -> int:
        child = os.fork()
        if not child:
            _run_tests(list(limits), self._folder)
        if not _wait(child, _START_SECONDS + sum(limits.values())):
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        _end_what_is_left()
        return os.waitstatus_to_exitcode(status)


def _run_tests(tests: list[str], folder: Path) -> None:
    os.setsid()
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {"MUTATION_TESTS": str(folder / "tests.json"), "MUTATION_FAILED": str(folder / "failed")}
    files = dict.fromkeys(test.partition("::")[0] for test in tests)
    os._exit(int(pytest.main([*_ARGUMENTS, f"--basetemp={folder / 't'}", *files])))


def _wait(child: int, seconds: float) -> bool:
    file = os.pidfd_open(child)
    try:
        return bool(select.select([file], [], [], seconds)[0])
    finally:
        os.close(file)


def _end_what_is_left() -> None:
    while left := Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split():
        for pid in map(int, left):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
