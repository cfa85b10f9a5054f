"""An engine of another package, installed beside Trilithon: it is measured, checked, listed and in the doctor's report.
One that cannot be loaded is a line there."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import trilithon
from trilithon.bench import campaign
from trilithon.cli import main
from trilithon.engines import table
from trilithon.runtime import diagnostics

SAMPLE = Path(__file__).parent / "sample_engine"
Run = Callable[..., subprocess.CompletedProcess[str]]


def install(package: Path, site: Path) -> None:
    """As pip installs a package without dependencies, without a build."""
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name = project["name"].replace("-", "_")
    shutil.copytree(package / name, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    info = site / f"{name}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{point} = {target}" for point, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def run(home: Path) -> Run:
    """`trilithon` as a process, with the packages of the folder "site" installed."""
    paths = [str(home / "site"), str(Path(trilithon.__file__).parents[1])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": "/usr/bin:/bin",
        "TRILITHON_NPU_LOCK": str(home / "rknpu.lock"),
    }

    def started(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("trilithon")), *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home)

    return started


@pytest.mark.slow
def test_it_is_measured_beside_the_others(
    tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def settle(*, limit_seconds: float) -> tuple[str, ...]:
        return ()

    install(SAMPLE, home / "site")
    monkeypatch.syspath_prepend(home / "site")
    monkeypatch.setattr(campaign, "settle", settle)
    monkeypatch.setattr(campaign, "measure_bandwidth", lambda _: 1e10)
    monkeypatch.setenv("TRILITHON_NPU_LOCK", str(home / "rknpu.lock"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    table.installed.cache_clear()
    diagnostics.known_causes.cache_clear()
    try:
        code = main.run(["bench", str(tiny), "--test", "tg", "-n", "8", "-r", "1", "--no-quality", "-o", "json"])
    finally:
        table.installed.cache_clear()
        diagnostics.known_causes.cache_clear()
    out, err = capsys.readouterr()
    assert code == 0, err
    assert len(json.loads(out)) >= 2  # it is measured although no placement was named
    assert "the sample engine is for tests" in err
    assert "runs with micro-batch 64, because it failed with its own settings: start failed, the micro-batch is" in err
    assert "too large for the sample engine" in err


def test_it_is_listed_checked_and_in_the_doctors_report(tiny: Path, home: Path, run: Run) -> None:
    install(SAMPLE, home / "site")
    assert "sample@only/npu works, with micro-batch 64" in run("engines", "check", "sample@only").stdout
    assert "sample@only" in run("engines", "list").stdout
    assert "sample@only/npu" in run("doctor").stdout
    unknown = run("bench", str(tiny), "--placement", "other/cpu").stderr
    assert "unknown engine other; there are llama.cpp, ik_llama.cpp, rk-llama.cpp, rkllm, scripted, sample" in unknown


def broken(home: Path, code: str) -> None:
    install(SAMPLE, home / "site")
    (home / "site" / "trilithon_sample_engine" / "engine.py").write_text(code)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("1 +", "SyntaxError: invalid syntax"),
        ("class SampleEngine:\n    pass", "TypeError: SampleEngine() takes no arguments"),
        ("def SampleEngine(configuration):\n    return None", "is not an engine of that name"),
    ],
)
def test_one_that_cannot_be_loaded_is_a_line(home: Path, run: Run, code: str, reason: str) -> None:
    broken(home, code)
    done = run("engines", "list")
    shown = " ".join(done.stdout.split())
    assert "engine sample of the package trilithon-sample-engine cannot be loaded" in shown
    assert reason in shown
    assert "pip uninstall trilithon-sample-engine" in shown
    assert "llama.cpp@embedded" in shown


def test_one_that_cannot_be_loaded_stops_nothing_else(tiny: Path, home: Path, run: Run) -> None:
    broken(home, "import no_such_library")
    reason = "cannot be loaded: ModuleNotFoundError: No module named 'no_such_library'"
    assert reason in run("doctor").stdout
    assert run("show", str(tiny)).returncode == 0
    named = run("bench", str(tiny), "--placement", "sample/npu")
    assert (named.returncode, reason in named.stderr, named.stderr.count("\n")) == (2, True, 1)


def test_one_whose_causes_are_malformed_cannot_be_loaded(home: Path, run: Run) -> None:
    install(SAMPLE, home / "site")
    (home / "site" / "trilithon_sample_engine" / "causes.toml").write_text('[[causes]]\nwhy = "x"')
    row = next(row for row in json.loads(run("engines", "list", "--json").stdout) if row["engine"] == "sample")
    assert "causes.toml: KnownCause.__init__() got an unexpected keyword argument 'why'" in row["problem"]


def test_a_name_of_trilithons_own_engines_is_not_taken_over(home: Path, run: Run) -> None:
    install(SAMPLE, home / "site")
    points = home / "site" / "trilithon_sample_engine-1.0.dist-info" / "entry_points.txt"
    points.write_text(points.read_text().replace("sample =", "scripted ="))
    listed = json.loads(run("engines", "list", "--json").stdout)
    scripted = [row for row in listed if row["engine"] == "scripted"]
    assert [row["usable"] for row in scripted] == [True, False]
    assert "Trilithon has an engine of that name" in scripted[1]["problem"]
