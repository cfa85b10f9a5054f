"""How many small faults in the code the tests notice: runs the tests on mutants of the modules that must be right.

    python scripts/mutate.py [--sample N [--seed S]] [--module PATTERN]... [--tests FOLDER]...
        [--workers N] [--again FILE] [--json]

First it records which test runs which line (kept in build/ until a test or a target changes), then it runs, for each
mutant, those tests alone, the quickest first, in a copy of the tree. A mutant that no test fails with has survived.
Slow tests are left out. The exit code is 1 under 90%.
"""

import argparse
import ast
import fnmatch
import hashlib
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from _mutants import Mutant, mutants_of
from coverage import CoverageData

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
# Below src/trilithon, and the tests that may notice.
TARGETS = (
    *("measure/*", "results/compare.py", "results/conditions.py", "bench/checks.py"),
    *("runtime/pool/*", "models/store/*"),
)
TESTS = ("tests/measure", "tests/results", "tests/bench", "tests/runtime", "tests/models")
LEAST_PERCENT = 90.0
_MAP = ROOT / "build" / "mutation-map.json"
_TESTS_SECONDS = 60.0  # of one mutant's tests, by the time that they take without it
_SLOWEST, _LEAST_LIMIT_SECONDS = 5.0, 10.0  # times as long, and so much longer, a mutant's test may take
_JOB_MUTANTS = 60


@dataclass(frozen=True, slots=True)
class Result:
    mutant: Mutant
    outcome: str  # "killed", "timeout", "survived" or "uncovered"
    test: str = ""
    seconds: float = 0.0


class CoverageMap:
    """Which tests run a line of a target, and how long each takes; which lines run at import; what the tests import."""

    def __init__(self, files: dict[str, Any], imported: dict[str, list[int]], modules: list[str]):
        self.modules = modules
        self._imported = {path: set(lines) for path, lines in imported.items()}
        self._seconds: dict[str, float] = {}
        self._by_line: dict[tuple[str, int], set[str]] = {}
        self._by_path: dict[str, set[str]] = {}
        for tests in (entry["tests"] for entry in files.values()):
            for test, (seconds, lines_by_path) in tests.items():
                self._seconds[test] = seconds
                for path, lines in lines_by_path.items():
                    self._by_path.setdefault(path, set()).add(test)
                    for line in lines:
                        self._by_line.setdefault((path, line), set()).add(test)

    def tests_for(self, mutant: Mutant) -> list[str]:
        """The module's own tests first, then the quickest files, as long as there is time. What runs at import may
        be noticed by every test that runs anything of the module, and by its own tests that only read its tables."""
        lines = range(mutant.first, mutant.last + 1)
        covering = {test for line in lines for test in self._by_line.get((mutant.path, line), ())}
        if mutant.at_import or not self._imported.get(mutant.path, set()).isdisjoint(lines):
            covering |= self._by_path.get(mutant.path, set())
            covering |= {test for test in self._seconds if _is_own(test.partition("::")[0], mutant.path)}
        files: dict[str, list[str]] = {}
        for test in sorted(covering, key=lambda test: (self._seconds[test], test)):
            files.setdefault(test.partition("::")[0], []).append(test)
        chosen, total = [], 0.0
        for _, tests in sorted(files.items(), key=lambda item: self._order(item, mutant.path)):
            for test in tests:
                if total + self._seconds[test] <= _TESTS_SECONDS:
                    chosen.append(test)
                    total += self._seconds[test]
        return chosen

    def limit(self, test: str) -> float:
        return _LEAST_LIMIT_SECONDS + _SLOWEST * self._seconds[test]

    def seconds(self, tests: Iterable[str]) -> float:
        return sum(self._seconds[test] for test in tests)

    def _order(self, item: tuple[str, list[str]], path: str) -> tuple[bool, float]:
        file, tests = item
        return not _is_own(file, path), self.seconds(tests) / len(tests)


def _is_own(file: str, path: str) -> bool:
    """Whether a file of tests has the name of the module and lies in the folder that mirrors its folder."""
    return file.startswith(f"tests/{PurePath(path).parent.relative_to('src/trilithon')}/test_{PurePath(path).stem}")


def targets(patterns: Iterable[str]) -> list[str]:
    package = ROOT / "src" / "trilithon"
    names = [path.relative_to(package).as_posix() for path in sorted(package.rglob("*.py"))]
    chosen = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    return [f"src/trilithon/{name}" for name in chosen]


# -- copies of the tree


def make_tree(folder: Path) -> Path:
    """What git would commit, compiled."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".pytest_cache").mkdir()
    (ROOT / ".pytest_cache" / "demo").mkdir(parents=True, exist_ok=True)
    (folder / ".pytest_cache" / "demo").symlink_to(ROOT / ".pytest_cache" / "demo")
    subprocess.run([sys.executable, "-m", "compileall", "-q", "src"], cwd=folder, check=True)
    return folder


def environment(tree: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join(map(str, (tree / "src", SCRIPTS)))
    return os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "COVERAGE_CORE": "ctrace"} | more


# -- which test runs which line


def coverage_map(tree: Path, folder: Path, folders: Iterable[str], workers: int) -> CoverageMap:
    """Of the last run, as far as neither a file of tests nor a target of which it runs a line has changed."""
    known = json.loads(_MAP.read_text(encoding="utf-8")) if _MAP.exists() else {"files": {}, "modules": []}
    digests = {path: _digest(path) for path in targets(TARGETS)}
    names = [path.relative_to(ROOT).as_posix() for name in folders for path in (ROOT / name).rglob("test_*.py")]
    files = {name: _digest(name) for name in sorted(names)}
    entries = {
        name: entry
        for name, entry in known["files"].items()
        if entry["digest"] == files.get(name) and entry["targets"].items() <= digests.items()
    }
    if stale := [name for name in files if name not in entries]:
        print(f"recording which lines the tests of {len(stale)} files run", file=sys.stderr)
        recorded, modules = _record(tree, folder, list(digests), stale, workers)
        for name in stale:
            tests = recorded.get(name, {})
            paths = {path for _, lines in tests.values() for path in lines}
            entries[name] = {
                "digest": files[name],
                "targets": {path: digests[path] for path in sorted(paths)},
                "tests": tests,
            }
        known = {"files": known["files"] | entries, "modules": sorted({*known["modules"], *modules})}
        _MAP.parent.mkdir(exist_ok=True)
        _MAP.write_text(json.dumps(known), encoding="utf-8")
    return CoverageMap(entries, _imported_lines(tree, list(digests)), known["modules"])


def _imported_lines(tree: Path, paths: list[str]) -> dict[str, list[int]]:
    """The lines that run when the targets are imported, by path."""
    names = {path: _module(tree / path, tree) for path in paths}
    program = (
        "import coverage, importlib, json, sys\n"
        "recording, names = coverage.Coverage(data_file=None), json.load(sys.stdin)\n"
        "with recording.collect():\n"
        "    list(map(importlib.import_module, names.values()))\n"
        "data = recording.get_data()\n"
        "print(json.dumps({path: data.lines(sys.modules[name].__file__) or [] for path, name in names.items()}))\n"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(
        command, cwd=tree, env=environment(tree), input=json.dumps(names), capture_output=True, text=True, check=True
    )
    imported: dict[str, list[int]] = json.loads(ended.stdout)
    return imported


def _digest(path: str) -> str:
    return hashlib.sha256((ROOT / path).read_bytes()).hexdigest()


def _record(
    tree: Path, folder: Path, paths: list[str], files: list[str], workers: int
) -> tuple[dict[str, dict[str, Any]], set[str]]:
    (folder / "site").mkdir(parents=True)
    hook = 'import os\nif "PYTEST_CURRENT_TEST" in os.environ:\n    __import__("_mutation_plugin").record_child()\n'
    (folder / "site" / "sitecustomize.py").write_text(hook, encoding="utf-8")
    (folder / "targets.json").write_text(json.dumps([str(tree / path) for path in paths]), encoding="utf-8")
    variables = environment(tree, MUTATION_RECORD=str(folder))
    variables["PYTHONPATH"] += os.pathsep + str(folder / "site")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "_mutation_plugin", "-m", "not slow", "-n", str(workers)]
    command += ["--dist", "loadfile", "--hypothesis-profile=mutation", f"--basetemp={folder / 't'}"]
    ended = subprocess.run([*command, *files], cwd=tree, env=variables, capture_output=True, text=True, check=False)
    if ended.returncode not in (0, 1) or not ended.stdout:
        raise RuntimeError(f"the tests cannot be run:\n{ended.stdout}{ended.stderr}")
    failed = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    print(*failed, ended.stdout.splitlines()[-1], sep="\n", file=sys.stderr)
    seconds: dict[str, float] = {}
    modules: set[str] = set()
    for file in folder.glob("tests-*.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        seconds |= record["seconds"]
        modules |= set(record["modules"])
    tests = {test: (round(taken, 3), lines) for test, (taken, lines) in _with_lines(tree, folder, seconds).items()}
    grouped: dict[str, dict[str, Any]] = {}
    for test, entry in tests.items():
        grouped.setdefault(test.partition("::")[0], {})[test] = entry
    return grouped, modules


def _with_lines(tree: Path, folder: Path, seconds: dict[str, float]) -> dict[str, tuple[float, dict[str, list[int]]]]:
    lines: dict[str, dict[str, set[int]]] = {test: {} for test in seconds}
    for file in folder.glob("coverage.*"):
        data = CoverageData(file)
        data.read()
        for measured in data.measured_files():
            path = Path(measured).relative_to(tree).as_posix()
            for line, tests in data.contexts_by_lineno(measured).items():
                for test in tests:
                    if test in lines:
                        lines[test].setdefault(path, set()).add(line)
    return {
        test: (seconds[test], {path: sorted(of_path) for path, of_path in by_path.items()})
        for test, by_path in lines.items()
    }


# -- running them


def independent(modules: Iterable[str], path: str) -> list[str]:
    """Those that a process may have imported before it imports the mutant: they don't import it, however far down.
    The C part of a package is left to the package: asyncio does not know its tasks where _asyncio came first."""
    graph = {_module(file): _imports(file) for file in (ROOT / "src" / "trilithon").rglob("*.py")}
    dependent = {_module(ROOT / path)}
    while more := {name for name, needs in graph.items() if needs & dependent} - dependent:
        dependent |= more
    return [name for name in modules if name not in dependent and not name.startswith("_")]


def _module(file: Path, root: Path = ROOT) -> str:
    parts = file.relative_to(root / "src").with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def _imports(file: Path) -> set[str]:
    imported = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return imported


class Run:
    """Takes the mutants of one module after another to worker processes, each of which has a tree of its own."""

    def __init__(self, coverage: CoverageMap, mutants: list[Mutant]):
        self._coverage = coverage
        self._total = len(mutants)
        self._results: dict[str, Result] = {}
        self._jobs: queue.SimpleQueue[list[Mutant]] = queue.SimpleQueue()
        by_path: dict[str, list[Mutant]] = {}
        for mutant in mutants:
            if coverage.tests_for(mutant):
                by_path.setdefault(mutant.path, []).append(mutant)
            else:
                self._results[mutant.text] = Result(mutant, "uncovered")
        for chosen in by_path.values():
            for start in range(0, len(chosen), _JOB_MUTANTS):
                self._jobs.put(chosen[start : start + _JOB_MUTANTS])

    def results(self, trees: list[tuple[Path, Path]]) -> list[Result]:
        """In the order of the files. A tree is a copy and a folder for what its worker needs."""
        with ThreadPoolExecutor() as threads:
            for finished in [threads.submit(self._work, *tree) for tree in trees]:
                finished.result()
        return sorted(self._results.values(), key=lambda result: (result.mutant.path, result.mutant.line))

    def _work(self, tree: Path, folder: Path) -> None:
        folder.mkdir()
        while True:
            try:
                self._run(self._jobs.get_nowait(), tree, folder)
            except queue.Empty:
                return

    def _run(self, mutants: list[Mutant], tree: Path, folder: Path) -> None:
        path = mutants[0].path
        limits = [{test: self._coverage.limit(test) for test in self._coverage.tests_for(mutant)} for mutant in mutants]
        job = {
            "path": str(tree / path),
            "folder": str(folder),
            "modules": independent(self._coverage.modules, path),
            "mutants": [{"text": mutant.text, "tests": tests} for mutant, tests in zip(mutants, limits, strict=True)],
        }
        worker = subprocess.Popen(
            [sys.executable, SCRIPTS / "_mutation_worker.py"],
            cwd=tree,
            env=environment(tree, PYTHONDONTWRITEBYTECODE="1"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert worker.stdin is not None and worker.stdout is not None
        with worker, worker.stdin as stdin:
            stdin.write(json.dumps(job))
            stdin.close()
            for line in worker.stdout:
                result = json.loads(line)
                self._note(Result(mutants[result["number"]], result["outcome"], result["test"], result["seconds"]))
        if worker.returncode:
            raise RuntimeError(f"the worker for {path} ended with {worker.returncode}")

    def _note(self, result: Result) -> None:
        self._results[result.mutant.text] = result
        if result.outcome == "survived":
            print(f"\r{result.mutant.path}:{result.mutant.line} survived\n{result.mutant.diff}", file=sys.stderr)
        print(f"\r{len(self._results)} of {self._total}", end="", file=sys.stderr, flush=True)


# -- what came out


def summary(results: list[Result], seconds: float) -> dict[str, Any]:
    modules = {}
    for path in dict.fromkeys(result.mutant.path for result in results):
        counts = Counter(result.outcome for result in results if result.mutant.path == path)
        modules[path] = {"mutants": counts.total(), **counts, "percent": _percent(counts)}
    counts = Counter(result.outcome for result in results)
    survivors = [
        {"file": result.mutant.path, "line": result.mutant.line, "outcome": result.outcome, "diff": result.mutant.diff}
        for result in results
        if result.outcome in ("survived", "uncovered")
    ]
    total = {"mutants": len(results), **counts, "percent": _percent(counts), "seconds": round(seconds)}
    return {"total": total, "modules": modules, "survivors": survivors}


def _percent(counts: Counter[str]) -> float:
    return round(100 * (counts["killed"] + counts["timeout"]) / max(counts.total(), 1), 1)


def print_report(report: dict[str, Any]) -> None:
    for survivor in report["survivors"]:
        print(f"{survivor['file']}:{survivor['line']} {survivor['outcome']}\n{survivor['diff']}\n")
    for name, counts in {**report["modules"], "total": report["total"]}.items():
        print(name, *(f"{key} {value}" for key, value in counts.items()), sep="  ")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Runs the tests on mutants of the modules that must be right.")
    parser.add_argument("--sample", type=int, metavar="N", help="so many mutants, chosen at random")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the sample")
    parser.add_argument(
        "--module", action="append", metavar="PATTERN", help="below src/trilithon; more than one can be given"
    )
    parser.add_argument("--tests", action="append", metavar="FOLDER", help="only these tests; may be repeated")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes at once (default 2)")
    parser.add_argument("--again", type=Path, metavar="FILE", help="only the survivors of a run, from its --json")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser.parse_args()


def main() -> int:
    options, began = arguments(), time.monotonic()
    mutants = [
        mutant
        for path in targets(options.module or TARGETS)
        for mutant in mutants_of(path, (ROOT / path).read_text(encoding="utf-8"))
    ]
    if options.again:
        survivors = json.loads(options.again.read_text(encoding="utf-8"))["survivors"]
        known = {(survivor["file"], survivor["diff"]) for survivor in survivors}
        mutants = [mutant for mutant in mutants if (mutant.path, mutant.diff) in known]
    if options.sample is not None and options.sample < len(mutants):
        mutants = random.Random(options.seed).sample(mutants, options.sample)
    with tempfile.TemporaryDirectory(prefix="mu") as temporary:
        folder = Path(temporary)
        first = make_tree(folder / "tree-0")
        coverage = coverage_map(first, folder / "record", options.tests or TESTS, options.workers)
        trees = [first]
        trees += [Path(shutil.copytree(first, folder / f"tree-{n}", symlinks=True)) for n in range(1, options.workers)]
        results = Run(coverage, mutants).results([(tree, folder / str(n)) for n, tree in enumerate(trees)])
    report = summary(results, time.monotonic() - began)
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        print_report(report)
    return 0 if report["total"]["percent"] >= LEAST_PERCENT else 1


if __name__ == "__main__":
    sys.exit(main())
