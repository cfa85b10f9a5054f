"""The pytest plugin of a mutation run: it records which test runs which line, or runs the tests chosen for a mutant.

MUTATION_RECORD names the folder for the record; MUTATION_TESTS a JSON file with the node ids to run, in their order,
and how many seconds each may take.
"""

import atexit
import json
import os
import sys
import time
from collections.abc import Generator
from pathlib import Path

import coverage
import pytest
from hypothesis import Phase, settings

__all__ = ["Recorder", "Selection", "record_child"]

# As "usual" in tests/conftest.py, but the first example that fails will do: making it smaller takes minutes.
settings.register_profile(
    "mutation", deadline=None, max_examples=25, database=None, phases=[Phase.explicit, Phase.generate]
)


def _coverage(folder: Path, context: str | None = None) -> coverage.Coverage:
    targets = json.loads((folder / "targets.json").read_text(encoding="utf-8"))
    return coverage.Coverage(
        data_file=folder / "coverage", data_suffix=True, config_file=False, include=targets, context=context
    )


def record_child() -> None:
    """In a process that a test starts: its lines count for that test, unless it is killed."""
    test, _, _ = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")
    recording = _coverage(Path(os.environ["MUTATION_RECORD"]), test)
    recording.start()

    @atexit.register
    def save() -> None:
        recording.stop()
        recording.save()


class Recorder:
    """Writes, per process: coverage data with a context per test, and how long each passing test took."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._coverage = _coverage(folder)
        self._coverage.start()
        self._seconds: dict[str, float] = {}
        self._failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._coverage.switch_context(item.nodeid)
        began = time.monotonic()
        result = yield
        self._seconds[item.nodeid] = time.monotonic() - began
        self._coverage.switch_context("")
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self._failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        self._coverage.save()
        passed = {test: seconds for test, seconds in self._seconds.items() if test not in self._failed}
        record = {"seconds": passed, "modules": sorted(_libraries())}
        (self._folder / f"tests-{os.getpid()}.json").write_text(json.dumps(record), encoding="utf-8")


def _libraries() -> set[str]:
    """Modules that a warm process may import before the tests do: not the tests' own."""
    roots = (*sys.path_importer_cache, sys.prefix, sys.base_prefix)
    tests = str(Path.cwd() / "tests")
    names = set()
    for name, module in sys.modules.items():
        file = getattr(module, "__file__", None) or ""
        if file.startswith(roots) and not file.startswith(tests) and not name.startswith(("_mutation", "site", "__m")):
            names.add(name)
    return names


class Selection:
    """Only the tests of a list run, in its order. The first failure ends the process, with a word about it in the file
    MUTATION_FAILED: a mutant's damage is not cleaned up test by test."""

    def __init__(self, limits: dict[str, float]):
        self._limits = limits

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        known = {item.nodeid: item for item in items}
        items[:] = [known[test] for test in self._limits if test in known]
        for item in items:
            item.add_marker(pytest.mark.timeout(self._limits[item.nodeid]), append=False)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            outcome = "timeout" if "from pytest-timeout" in report.longreprtext else "killed"
            failure = json.dumps({"outcome": outcome, "test": report.nodeid})
            Path(os.environ["MUTATION_FAILED"]).write_text(failure, encoding="utf-8")
            os._exit(1)


def pytest_configure(config: pytest.Config) -> None:
    if folder := os.environ.get("MUTATION_RECORD"):
        if hasattr(config, "workerinput"):  # a process that runs tests, and not the one that hands them out
            config.pluginmanager.register(Recorder(Path(folder)))
    elif file := os.environ.get("MUTATION_TESTS"):
        config.pluginmanager.register(Selection(json.loads(Path(file).read_text(encoding="utf-8"))))
