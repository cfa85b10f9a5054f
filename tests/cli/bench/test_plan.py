"""`trilithon plan`, and where else plans are seen: `show` and `doctor`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from trilithon.board.snapshot import read_board
from trilithon.results.fingerprints import fingerprint_of
from trilithon.results.plans import Plan, keep_plan
from trilithon.settings import load_configuration

Program = Callable[..., Any]

PROGRAM = Path(sys.executable).parent / "trilithon"
SCRIPTED, CPU = "scripted/cpu:decode=500", "llama.cpp/cpu"
GONE = "f" * 64


def plans_file(home: Path) -> Path:
    return home / "data/trilithon/plans.json"


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def keep(home: Path, **changes: Any) -> Plan:
    """A campaign's plan, made on this machine unless a change says otherwise."""
    configuration, board = load_configuration(), read_board()
    facts = {
        "placement": CPU,
        "board": board.identity(),
        "campaign": 3,
        "sentence": "It is best.",
        "model": "gone-model",
        "decided_by": "tg",
        "rounds": 7,
        "compared": True,
        "fingerprint": fingerprint_of(CPU, board, configuration),
    }
    plan = Plan(**(facts | changes))
    keep_plan(configuration.data, plan)
    return plan


def stale(facts: dict[str, str]) -> dict[str, str]:
    return fingerprint_of(CPU, read_board(), load_configuration()) | facts


def test_without_plans(trilithon: Program, home: Path) -> None:
    empty = trilithon("plan", "list")
    assert (empty.code, empty.stdout) == (0, "")
    assert "trilithon bench MODEL" in empty.stderr
    assert trilithon("plan", "list", "--json").stdout == "[]\n"


def test_a_plan_is_set_by_hand_shown_and_removed(trilithon: Program, home: Path, tiny: Path) -> None:
    """The scripted engine too, which no campaign plans."""
    done = trilithon("plan", "set", tiny, SCRIPTED)
    assert (done.code, done.stdout) == (0, "")
    assert done.stderr.splitlines()[-1] == (
        f"trilithon serve now runs it on {SCRIPTED} (undo: trilithon plan rm {tiny})"
    )
    titles, row = trilithon("plan", "list").stdout.splitlines()
    assert titles.split() == ["MODEL", "PLACEMENT", "FROM", "STATE"]
    assert row.split() == [str(tiny), SCRIPTED, "set", "by", "hand", "current"]
    (listed,) = json.loads(trilithon("plan", "list", "--json").stdout)
    assert listed["name"] == str(tiny)
    assert listed == json.loads(trilithon("plan", "show", tiny, "--json").stdout)
    assert (listed["sha256"], listed["placement"], listed["by_hand"]) == (digest(tiny), SCRIPTED, True)
    assert (listed["stale"], listed["renewal"], listed["is_of_this_board"]) == ([], "", True)
    shown = trilithon("plan", "show", tiny).stdout
    assert "from         set by hand" in shown
    assert f"kernel       {read_board().kernel}" in shown
    assert f"plan: {SCRIPTED}, set by hand" in trilithon("show", tiny).stdout.splitlines()
    removed = trilithon("plan", "rm", tiny, "--json")
    assert [known["placement"] for known in json.loads(removed.stdout)] == [SCRIPTED]
    assert removed.stderr == f"removed the plan {SCRIPTED} of {tiny}\n"
    assert json.loads(plans_file(home).read_text()) == []
    assert "plan:" not in trilithon("show", tiny).stdout
    assert json.loads(trilithon("show", tiny, "--json").stdout)["plan"] is None


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("set", "TINY", "llama.cpp@none/cpu"), "there is no such build"),
        (("set", "TINY", "llama.cpp"), "write ENGINE/UNIT"),
        (("set", "TINY", "nothing/cpu"), "unknown engine nothing"),
        (("set", "TINY", "scripted/cpu:decode=fast"), "decode"),
        (("set", "nothing-there", CPU), "nothing-there"),
        (("show", "TINY"), "there is no plan for"),
        (("rm", "TINY"), "there is no plan for"),
        (("rm", "nothing-there"), "nothing-there"),
        (("rm", "0123456789ab"), "0123456789ab"),
    ],
)
def test_wrong_words_are_one_line(
    trilithon: Program, home: Path, tiny: Path, words: tuple[str, ...], reason: str
) -> None:
    done = trilithon("plan", *(str(tiny) if word == "TINY" else word for word in words))
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert reason in done.stderr
    assert not plans_file(home).exists()


def test_a_plan_of_a_model_in_the_store_has_its_name(trilithon: Program, home: Path, tiny: Path) -> None:
    (home / "Modelfile").write_text(f"FROM {tiny}\n")
    assert trilithon("create", "small", "-f", home / "Modelfile").code == 0
    assert trilithon("plan", "set", "small", CPU).code == 0  # now the file's digest is known
    keep(home, sha256=digest(tiny))
    (listed,) = json.loads(trilithon("plan", "list", "--json").stdout)
    assert (listed["name"], listed["models"]) == ("small:latest", ["small:latest"])
    assert f"plan: {CPU}, campaign 3, 7 rounds" in trilithon("show", "small").stdout.splitlines()
    (file,) = json.loads(trilithon("show", "small", "--json").stdout)["files"]
    assert (file["plan"]["placement"], file["plan"]["rounds"]) == (CPU, 7)
    assert trilithon("plan", "rm", "small").code == 0
    assert json.loads(plans_file(home).read_text()) == []


@pytest.mark.parametrize("name", ["gone-model", GONE[:12], GONE])
def test_a_plan_of_a_model_that_is_gone_can_be_removed(trilithon: Program, home: Path, name: str) -> None:
    keep(home, sha256=GONE)
    assert "gone-model" in trilithon("plan", "list").stdout
    assert trilithon("plan", "rm", name).code == 0
    assert json.loads(plans_file(home).read_text()) == []


def test_a_plan_of_another_board_is_told_apart(trilithon: Program, home: Path, tiny: Path) -> None:
    keep(home, sha256=digest(tiny), board="Another · chip")
    assert trilithon("plan", "list").stdout.rstrip().endswith("of another board: Another · chip")
    assert "plan:" not in trilithon("show", tiny).stdout
    assert "plan-stale" not in trilithon("doctor", "--json").stdout


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"kernel": "5.10.1"}, f"kernel 5.10.1 → {read_board().kernel}"),
        ({"NPU driver": "rknpu 0.9.6"}, "NPU driver rknpu 0.9.6 → "),
        ({"NPU runtime": "librkllmrt.so 1.1.4"}, "NPU runtime librkllmrt.so 1.1.4 → "),
        ({"GPU driver": "panthor, Mesa 24.1"}, "GPU driver "),
        ({"build": "llama.cpp embedded 1 abc"}, "build llama.cpp embedded 1 abc → "),
        ({"memory": "1 GiB"}, "memory 1 GiB → "),
        ({"CPU quota": "1.5"}, "CPU quota 1.5 → "),
        ({"top clocks": "memory 1 MHz"}, "top clocks memory 1 MHz → "),
        ({"governors": "memory userspace 528 MHz"}, "governors memory userspace 528 MHz → "),
    ],
)
def test_what_changed_makes_a_plan_stale_and_is_named(
    trilithon: Program, home: Path, tiny: Path, facts: dict[str, str], reason: str
) -> None:
    keep(home, sha256=digest(tiny), model=str(tiny), fingerprint=stale(facts))
    for words in (("plan", "list"), ("plan", "show", tiny), ("show", tiny)):
        shown = trilithon(*words).stdout
        assert f"stale: {reason}" in shown, words
        assert f"renew it: trilithon bench {tiny}" in shown
    findings = json.loads(trilithon("doctor", "--json").stdout)["findings"]
    (finding,) = (finding for finding in findings if finding["id"] == "plan-stale")
    assert (finding["severity"], finding["fix"]) == ("warning", f"trilithon bench {tiny}")
    assert f"still runs on {CPU}, campaign 3, 7 rounds: {reason}" in finding["message"]


def test_a_plan_as_it_was_made_is_current(trilithon: Program, home: Path, tiny: Path) -> None:
    keep(home, sha256=digest(tiny), model=str(tiny))
    assert trilithon("plan", "list").stdout.rstrip().endswith("current")
    assert "plan-stale" not in trilithon("doctor", "--json").stdout


def test_a_plan_of_an_older_version_is_stale(trilithon: Program, home: Path, tiny: Path) -> None:
    plan = keep(home, sha256=digest(tiny))
    names = ("sha256", "placement", "board", "campaign", "sentence")
    plans_file(home).write_text(json.dumps([{name: getattr(plan, name) for name in names}]))
    shown = trilithon("show", tiny).stdout  # nothing has hashed the file yet
    assert "plan:" not in shown
    assert "stale: made by an older version; renew it" in trilithon("plan", "show", tiny).stdout
    assert f"plan: {CPU}, campaign 3; stale: made by an older version" in trilithon("show", tiny).stdout


def test_a_plan_whose_build_is_gone_says_so(trilithon: Program, home: Path, tiny: Path) -> None:
    keep(home, sha256=digest(tiny), placement="llama.cpp@gone/cpu")
    assert "stale: cannot run: placement llama.cpp@gone/cpu" in trilithon("plan", "show", tiny).stdout
    keep(home, sha256=digest(tiny), placement="llama.cpp@gone/cpu", by_hand=True)
    assert f"renew it: trilithon plan rm {tiny}" in trilithon("plan", "show", tiny).stdout


def test_damaged_plans_are_a_finding_and_one_line(trilithon: Program, home: Path) -> None:
    plans_file(home).parent.mkdir(parents=True, exist_ok=True)
    plans_file(home).write_text("[{}]")
    done = trilithon("plan", "list")
    assert done.code == 2
    assert done.stderr.startswith("error: ")
    assert "remove it" in done.stderr
    findings = json.loads(trilithon("doctor", "--json").stdout)["findings"]
    assert [finding["severity"] for finding in findings if finding["id"] == "plan-stale"] == ["problem"]


def completed(words: str) -> set[str]:
    count = len(words.split()) - (0 if words.endswith(" ") else 1)
    environment = {**os.environ, "_TRILITHON_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    done = subprocess.run([PROGRAM], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    return {line.partition(",")[2] for line in done.stdout.splitlines() if line}


def test_it_completes(home: Path, tiny: Path) -> None:
    keep(home, sha256=GONE)
    assert completed("trilithon plan ") == {"list", "show", "set", "rm"}
    assert completed("trilithon plan rm go") == {"gone-model"}
    assert completed("trilithon plan show ") == {"gone-model"}
    assert any(name.startswith(CPU.partition("/")[0]) for name in completed(f"trilithon plan set {tiny} "))
    assert completed("trilithon plan set nothing-there ") == set()
