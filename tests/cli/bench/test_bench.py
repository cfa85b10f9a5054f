import contextlib
import csv
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trilithon.measure.records import Campaign
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.results.store.database import Store

Program = Callable[..., Any]

PROGRAM = Path(sys.executable).parent / "trilithon"
REFUSING = "scripted/cpu:refuse_start=no"
FAST = "prefill=50000,decode=5000"
GOOD = f"scripted/cpu:{FAST}"
SHORT = ("-p", "16", "-n", "8", "-r", "1", "--test", "pp", "--test", "tg", "--no-quality")
ONE = (*SHORT, "--placement", GOOD)

# The program itself, which does not wait for an idle machine: here it never is.
HURRIED = """
import signal
from trilithon.bench import campaign
from trilithon.cli.main import entry
campaign._SETTLE_FIRST_SECONDS = campaign._SETTLE_SECONDS = 0
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
entry()
"""


def database(home: Path) -> Path:
    return home / "data" / "trilithon" / "results.sqlite"


def campaign_of(home: Path, number: int = 1) -> Campaign:
    with Store.open(database(home)) as store:
        return store.campaign(number)


def is_one_line(text: str) -> bool:
    return text.startswith("error: ") and text.count("\n") == 1


# -- what is measured


def test_a_table_a_verdict_and_the_paths(trilithon: Program, home: Path, tiny: Path) -> None:
    done = trilithon("bench", tiny, *SHORT, "--placement", "llama.cpp/cpu:t=1", "--report", home / "report")
    assert done.code == 0, done.stderr
    assert "llama.cpp/cpu" in done.stdout
    assert "pp16" in done.stdout
    assert "llama.cpp/cpu:t=1 is the only placement measured: decode" in done.stdout
    paths = [Path(line) for line in done.stdout.splitlines() if line.startswith("/")]
    assert paths[0] == home / "report" / "report.html"
    assert paths[0].read_text(encoding="utf-8").startswith("<!")
    assert len(paths) > 1
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n") for path in paths[1:])
    assert "[1/1] llama.cpp/cpu:t=1: pp16" in done.stderr
    assert "trilithon results show 1" in done.stderr


def test_a_crash_is_in_the_table_and_the_rest_is_measured(trilithon: Program, home: Path, tiny: Path) -> None:
    bad = f"scripted/gpu:{FAST},crash_after=3"
    done = trilithon("bench", tiny, *ONE, "--placement", bad, "-r", "2")
    assert done.code == 0, done.stderr
    assert "failed 2 of 2: segmentation fault" in done.stdout
    assert f"{GOOD} is the only placement that worked" in done.stdout
    assert Counter((run.placement, run.outcome) for run in campaign_of(home).runs) == {
        (GOOD, "finished"): 2,
        (bad, "failed"): 2,
    }


def test_where_nothing_worked_the_exit_code_is_1(trilithon: Program, home: Path, tiny: Path) -> None:
    done = trilithon("bench", tiny, *SHORT, "--placement", f"{GOOD},refuse_start=no licence")
    assert done.code == 1
    assert "No placement worked" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: no placement worked")
    (run,) = campaign_of(home).runs
    assert run.failure is not None
    assert "no licence" in " ".join(run.failure.last_words)


def test_the_one_line_of_a_file_that_does_not_load_names_the_reason(trilithon: Program, home: Path, tiny: Path) -> None:
    odd = home / "odd.gguf"
    odd.write_bytes(tiny.read_bytes().replace(b"blk.0.ffn_down.weight", b"blk.0.ffn_none.weight"))
    done = trilithon("bench", odd, *SHORT, "--placement", "llama.cpp/cpu:t=1")
    assert done.code == 1
    reason = "model file does not fit this build: tensor 'blk.0.ffn_down.weight' not found"
    assert reason in done.stdout
    advice = "use a newer build of the engine, or another conversion of the model"
    assert done.stderr.splitlines()[-1].startswith(f"error: no placement worked: {reason}; {advice}; for their output")


@pytest.mark.slow
def test_a_scripted_placement_is_never_planned(trilithon: Program, home: Path, tiny: Path) -> None:
    """Whatever its speed, its verdict, and what there is beside it."""
    words = ("-p", "16", "-n", "8", "-r", "1", "--test", "tg", "--placement", GOOD, "--placement", f"{GOOD},noise=0")
    for more in (["--no-quality"], []):
        done = trilithon("bench", tiny, *words, *more)
        assert done.code == 0, done.stderr
        assert "is the fastest placement, but is not recommended" in done.stdout
        assert "its engine is used only where it is named" in done.stdout
        assert done.stderr.splitlines()[-1].startswith(f"no plan is made for {GOOD}")
        assert not (home / "data/trilithon/plans.json").exists()


@pytest.mark.slow
def test_what_is_recommended_is_what_is_served(trilithon: Program, home: Path, tiny: Path) -> None:
    """The last line says so, and how to undo it; rounds that are too few replace nothing."""
    words = ("bench", tiny, "-n", "8", "--test", "tg", "--placement", "llama.cpp/cpu:t=1", "--placement", GOOD)
    done = trilithon(*words, "-r", "5")
    assert done.code == 0, done.stderr
    said = "trilithon serve now runs it on llama.cpp/cpu:t=1"
    assert done.stderr.splitlines()[-1] == f"{said} (undo: trilithon plan rm {tiny})"
    plans = home / "data/trilithon/plans.json"
    before = json.loads(plans.read_text())
    assert [(plan["placement"], plan["rounds"], plan["compared"]) for plan in before] == [
        ("llama.cpp/cpu:t=1", 5, True)
    ]
    done = trilithon(*words[:-4], "--placement", "llama.cpp/cpu:t=2", "--placement", GOOD, "-r", "1")
    assert "trilithon serve still runs it on llama.cpp/cpu:t=1" in done.stderr.splitlines()[-1]
    assert json.loads(plans.read_text()) == before


@pytest.mark.parametrize("form", ["md", "csv", "json", "jsonl", "sql"])
def test_stdout_is_data_alone(trilithon: Program, home: Path, tiny: Path, form: str) -> None:
    done = trilithon("bench", tiny, *ONE, "-o", form)
    assert done.code == 0, done.stderr
    text = done.stdout
    if form == "md":
        assert all(line.startswith("|") for line in text.strip().splitlines())
    elif form == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [("16", "0"), ("0", "8")]
    elif form == "sql":
        with contextlib.closing(sqlite3.connect(":memory:")) as connection:
            connection.executescript(text)
            assert connection.execute("SELECT n_prompt, n_gen FROM llama_bench").fetchall() == [(16, 0), (0, 8)]
    else:
        entries = json.loads(text) if form == "json" else [json.loads(line) for line in text.splitlines()]
        assert [(entry["n_prompt"], entry["n_gen"]) for entry in entries] == [(16, 0), (0, 8)]
        assert all(entry["avg_ts"] > 0 for entry in entries)
    report = home / "data" / "trilithon" / "reports" / "1" / "report.html"
    assert str(report) in done.stderr.splitlines()
    assert report.is_file()
    assert "pp16" in done.stderr  # the progress


def planned(trilithon: Program, home: Path, *words: object) -> tuple[list[dict[str, Any]], list[str]]:
    """Names of the tests and of the placements, from a campaign that fails at once."""
    trilithon("bench", *words, "-r", "1", "--no-quality")
    campaign = campaign_of(home)
    return campaign.plan["tests"], [placement.name for placement in campaign.placements]


def test_ranges_make_the_product_of_tests(trilithon: Program, home: Path, tiny: Path) -> None:
    bad = "scripted/cpu:refuse_start=not now"
    tests, _ = planned(
        trilithon, home, tiny, "-p", "16-32+16,20", "-n", "0", "-d", "0,64", "-pg", "8,4", "--placement", bad
    )
    found = [(test["kind"], test["prompt_tokens"], test["generated_tokens"], test["depth"]) for test in tests]
    assert found == [
        ("pp", 16, 0, 0),
        ("pp", 32, 0, 0),
        ("pp", 20, 0, 0),
        ("pg", 8, 4, 0),
        ("pp", 16, 0, 64),
        ("pp", 32, 0, 64),
        ("pp", 20, 0, 64),
        ("pg", 8, 4, 64),
        ("question", 0, 0, 0),
    ]


def test_settings_make_placements(trilithon: Program, home: Path, tiny: Path) -> None:
    _, names = planned(
        trilithon,
        home,
        tiny,
        "-t",
        "1,2",
        "-fa",
        "on,1,0",
        "--test",
        "pp",
        "--placement",
        "scripted/cpu:refuse_start=no",
    )
    assert names == [f"{REFUSING},t={t},fa={fa}" for t in (1, 2) for fa in ("on", "off")]


def test_preset_article(trilithon: Program, home: Path, tiny: Path) -> None:
    tests, _ = planned(trilithon, home, tiny, "--preset", "article", "--placement", REFUSING)
    assert [(test["kind"], test["prompt_tokens"] + test["generated_tokens"]) for test in tests] == [
        ("pp", 512),
        ("tg", 128),
        ("question", 0),
    ]
    done = trilithon("bench", tiny, "--preset", "article", "-p", "99")
    assert (done.code, done.stderr) == (2, "error: --preset article says what to measure; leave -p out\n")


@pytest.mark.slow
def test_depth_and_pg_are_measured(trilithon: Program, home: Path, tiny: Path) -> None:
    words = ("-p", "16", "-n", "4", "-d", "32", "-pg", "8,4", "--test", "pp", "--test", "tg", "--test", "pg")
    done = trilithon(
        "bench", tiny, *words, "-r", "1", "--no-quality", "--placement", GOOD, "--placement", "llama.cpp/cpu"
    )
    assert done.code == 0, done.stderr
    for run in campaign_of(home).runs:
        assert run.failure is None
        assert [sample.test.name for sample in run.samples] == ["pp16 @ d32", "tg4 @ d32", "pp8+tg4 @ d32"]
        assert [sample.prompt_cached for sample in run.samples] == [32, 32, 32]


def test_a_question_and_a_cold_start(trilithon: Program, home: Path, tiny: Path) -> None:
    placement = f"{GOOD},text=Two upright stones and a third one"
    done = trilithon(
        "bench", tiny, "--test", "question", "--test", "cold", "-r", "1", "--no-quality", "--placement", placement
    )
    assert done.code == 0, done.stderr
    (run,) = campaign_of(home).runs
    question, cold = sorted(run.samples, key=lambda sample: sample.test.kind, reverse=True)
    assert question.test.question == "tell me about openai"
    assert question.answer_text == "Two upright stones and a third one"
    assert "load_warm_ns" in cold.marks
    assert "Words per" in done.stdout  # and "second" in the next line


def test_the_budget_ends_it(trilithon: Program, home: Path, tiny: Path) -> None:
    words = ("-p", "16", "-n", "8", "--test", "tg", "--no-quality", "--placement", GOOD)
    done = trilithon("bench", tiny, *words, "--time-budget", "1s")
    assert done.code == 0, done.stderr
    campaign = campaign_of(home)
    assert campaign.status == "finished"
    assert 1 <= len(campaign.runs) < 20


# -- bad input


def _cut(path: Path, tiny: Path) -> None:
    path.write_bytes(tiny.read_bytes()[: tiny.stat().st_size // 2])


def _no_gguf(path: Path, _: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(4096))


@pytest.mark.parametrize(
    "make",
    [
        _cut,
        _no_gguf,
        lambda path, tiny: path.write_bytes(tiny.read_bytes()[:20]),
        lambda path, _: path.write_bytes(b""),
        lambda path, _: path.write_bytes(b"GGUF"),
        lambda path, _: path.mkdir(),
        lambda path, _: None,
        lambda path, _: path.symlink_to(path),
    ],
    ids=["truncated", "not a GGUF", "cut in the header", "empty", "magic only", "folder", "missing", "link to itself"],
)
def test_a_bad_model_file(trilithon: Program, home: Path, tiny: Path, make: Callable[[Path, Path], None]) -> None:
    path = home / "model.gguf"
    make(path, tiny)
    done = trilithon("bench", path, *ONE)
    assert done.code == 2
    assert is_one_line(done.stderr), done.stderr
    assert "model.gguf" in done.stderr
    assert done.stdout == ""
    reference = trilithon("bench", tiny, *ONE, "--reference", path)
    assert reference.code == 2
    assert is_one_line(reference.stderr), reference.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-p", "abc"), "-p abc: write 512"),
        (("-p", ""), "-p"),
        (("-p", "512-128"), "never reaches its end"),
        (("-n", "1-10*1"), "never reaches its end"),
        (("-p", "-5"), "-p -5: write"),
        (("-d", "1.5"), "-d 1.5: write"),
        (("-p", "1-99999"), "more than 1000 values"),
        (("-p", "99999999"), "need a context of"),
        (("-pg", "5"), "-pg 5: write two numbers"),
        (("-pg", "5,x"), "-pg 5,x: write two numbers"),
        (("-pg", "0,5"), "-pg 0,5: write two numbers"),
        (("-t", "0"), "-t 0: 0 is less than 1"),
        (("-t", "two"), "-t two: write"),
        (("-ub", "-1"), "-ub -1: write"),
        (("-fa", "maybe"), "flash attention is on, off or auto"),
        (("--placement", "llama.cpp/cpu", "-ctk", "q3_7"), "unknown KV type q3_7"),
        (("--time-budget", "soon"), "--time-budget soon: write 90"),
        (("--question", " "), "--question is empty"),
        (("-p", "0", "-n", "0", "--test", "pp"), "nothing to measure"),
        (("--placement", "vllm/cpu"), "unknown engine vllm"),
        (("--placement", "scripted/tpu"), "unknown unit tpu; there are cpu, gpu, npu"),
        (("--placement", "llama.cpp/npu"), "there are llama.cpp"),
        (("--placement", "llama.cpp@nightly/cpu"), "no such build"),
        (("--placement", "scripted/gpu:speed=9"), "unknown option speed"),
        (("--placement", "scripted/gpu:wrong=2"), "wrong = '2' is not valid"),
        (("--placement", GOOD), "named twice"),
        (("--resume",), "leave MODEL out"),
        (("--test", "pp", "-pg", "8,4"), "leave -pg out"),
        (("--test", "pp", "--question", "why?"), "leave --question out"),
        (("--no-quality", "--reference", "x.gguf"), "leave --reference out"),
    ],
)
def test_nonsense_is_refused_in_one_line(
    trilithon: Program, home: Path, tiny: Path, words: tuple[str, ...], message: str
) -> None:
    done = trilithon("bench", tiny, "--placement", GOOD, *words)
    assert done.code == 2
    assert is_one_line(done.stderr), done.stderr
    assert message in done.stderr
    assert done.stdout == ""
    if database(home).exists():  # nothing was begun
        with Store.open(database(home)) as store:
            assert store.campaigns() == []


@pytest.mark.parametrize("words", [("-r", "0"), ("-r", "x"), ("--test", "ppp"), ("-o", "xml"), ("--preset", "book")])
def test_what_click_refuses(trilithon: Program, tiny: Path, words: tuple[str, ...]) -> None:
    done = trilithon("bench", tiny, *words)
    assert done.code == 2
    assert "Invalid value" in done.stderr


@pytest.mark.parametrize("variable", ["TRILITHON_DATA", "XDG_DATA_HOME", "TRILITHON_CACHE"])
@pytest.mark.parametrize("folder", ["/proc/nope", "a file"])
def test_a_folder_that_cannot_be_written(
    trilithon: Program, home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, variable: str, folder: str
) -> None:
    (home / "file").touch()
    monkeypatch.setenv(variable, str(home / "file" / "below") if folder == "a file" else folder)
    done = trilithon("bench", tiny, *ONE, "-o", "json")
    if variable == "TRILITHON_CACHE":  # it only saves time
        assert done.code == 0, done.stderr
        return
    assert done.code == 2
    assert done.stdout == ""
    assert is_one_line(done.stderr), done.stderr
    assert "TRILITHON_DATA" in done.stderr


def test_a_report_folder_that_cannot_be_written(trilithon: Program, home: Path, tiny: Path) -> None:
    (home / "file").touch()
    done = trilithon("bench", tiny, *ONE, "--report", home / "file")
    assert done.code == 2
    assert is_one_line(done.stderr.splitlines(keepends=True)[-1]), done.stderr
    assert "--report" in done.stderr
    assert not database(home).exists()  # it is found before anything is measured


def _corrupt(path: Path) -> None:
    with Store.open(path):
        pass
    data = bytearray(path.read_bytes())
    data[100:] = b"\xa5" * (len(data) - 100)
    path.write_bytes(data)


def _newer(path: Path) -> None:
    with Store.open(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


def _foreign(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"no database at all, but something of the user's"), "not a results database"),
        (_corrupt, "corrupt"),
        (_newer, "newer Trilithon"),
        (_foreign, "another program's database"),
        (lambda path: path.mkdir(), "results.sqlite"),
    ],
    ids=["text", "corrupt", "newer", "foreign", "folder"],
)
def test_a_database_that_is_not_ours_to_write(
    trilithon: Program, home: Path, tiny: Path, make: Callable[[Path], None], message: str
) -> None:
    path = database(home)
    path.parent.mkdir(parents=True)
    make(path)
    before = path.read_bytes() if path.is_file() else None
    for words in (("bench", tiny, *ONE), ("bench", "--resume"), ("results", "list"), ("results", "show", "last")):
        done = trilithon(*words)
        assert done.code == 2
        assert is_one_line(done.stderr), done.stderr
        assert message in done.stderr
        assert done.stdout == ""
    assert (path.read_bytes() if path.is_file() else None) == before


def test_there_is_nothing_to_resume(trilithon: Program, tiny: Path) -> None:
    done = trilithon("bench", "--resume")
    assert done.code == 2
    assert is_one_line(done.stderr)
    assert "no interrupted campaign" in done.stderr
    assert trilithon("bench", tiny, *ONE).code == 0
    assert trilithon("bench", "--resume").code == 2  # that one was finished


@pytest.mark.parametrize("words", [("-p", "5"), ("--placement", GOOD), ("--no-quality",), ("--question", "why?")])
def test_resume_refuses_what_it_would_ignore(trilithon: Program, words: tuple[str, ...]) -> None:
    done = trilithon("bench", "--resume", *words)
    assert (done.code, done.stderr) == (2, f"error: --resume keeps the original options; leave {words[0]} out\n")


# -- stopped


class Live:
    """A campaign of two placements and two rounds in a process of its own."""

    placements = ("scripted/cpu:prefill=50000,decode=100", "scripted/gpu:prefill=50000,decode=100")
    rounds = 2

    def __init__(self, home: Path, model: Path):
        self.home = home
        words = ["bench", str(model), "-p", "16", "-n", "16", "-r", str(self.rounds), "--test", "pp", "--test", "tg"]
        for placement in self.placements:
            words += ["--placement", placement]
        self.process = subprocess.Popen(
            [sys.executable, "-c", HURRIED, *words, "--no-quality"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def samples(self) -> int:
        """As another process sees them on disk at this moment."""
        try:
            with contextlib.closing(sqlite3.connect(f"file:{database(self.home)}?mode=ro", uri=True)) as connection:
                return int(connection.execute("SELECT COUNT(*) FROM samples").fetchone()[0])
        except sqlite3.OperationalError:  # not there yet
            return 0

    def await_samples(self, count: int) -> None:
        deadline = time.monotonic() + 40
        while self.samples() < count:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def children(self) -> list[str]:
        mark = f"trilithon-{self.process.pid}-"
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                text = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if mark in text:
                    found.append(text)
        return found

    def await_no_children(self) -> None:
        deadline = time.monotonic() + 60
        while self.children() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self.children() == []


@pytest.fixture
def live(home: Path, tiny: Path) -> Iterator[Live]:
    found = Live(home, tiny)
    yield found
    if found.process.poll() is None:
        found.process.kill()
    found.process.communicate()


def completes(live: Live, trilithon: Program, home: Path, kept: int, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    """Resume it, in another folder, and hold what there is now against the plan."""
    monkeypatch.chdir(home)
    done = trilithon("bench", "--resume")
    assert done.code == 0, done.stderr
    campaign = campaign_of(home)
    assert campaign.status == "finished"
    finished = [(run.placement, run.round) for run in campaign.runs if run.outcome == "finished"]
    assert sorted(finished) == sorted((name, number) for name in live.placements for number in range(live.rounds))
    assert sum(len(run.samples) for run in campaign.runs) >= max(kept, 2 * len(finished))
    assert trilithon("bench", "--resume").code == 2
    return campaign


@pytest.mark.parametrize(
    ("samples", "delay_seconds"),
    [
        pytest.param(0, 1.0, marks=pytest.mark.slow),
        (1, 0.0),
        pytest.param(2, 0.15, marks=pytest.mark.slow),
        pytest.param(5, 0.3, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_it_loses_nothing_and_goes_on(
    live: Live, trilithon: Program, home: Path, monkeypatch: pytest.MonkeyPatch, samples: int, delay_seconds: float
) -> None:
    live.await_samples(samples)
    if samples == 0:  # at its very beginning, but when it is written down
        while not database(home).exists():
            time.sleep(0.01)
    time.sleep(delay_seconds)
    before = live.samples()
    live.process.kill()
    live.process.wait()
    live.await_no_children()
    after = live.samples()
    assert after >= before
    with Store.open(database(home)) as store:
        summaries = store.campaigns()
    if not summaries:
        pytest.fail("killed before it began: nothing was tested")
    assert summaries[0].status == "interrupted"
    assert sum(len(run.samples) for run in campaign_of(home).runs) == after
    completes(live, trilithon, home, after, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_by_a_signal_it_says_how_to_go_on(
    live: Live, trilithon: Program, home: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    live.await_samples(3)
    before = live.samples()
    live.process.send_signal(number)
    stdout, stderr = live.process.communicate(timeout=20)
    assert live.process.returncode == 130
    assert stdout == ""
    assert stderr.splitlines()[-1] == "error: stopped; what was finished is kept. Go on with: trilithon bench --resume"
    assert "Traceback" not in stderr
    live.await_no_children()
    assert campaign_of(home).status == "interrupted"
    assert "(interrupted)" in trilithon("results", "list").stdout
    if number == signal.SIGINT:
        completes(live, trilithon, home, before, monkeypatch)


@pytest.mark.slow
def test_stopped_while_the_machine_is_looked_at(home: Path, tiny: Path) -> None:
    """Signals that come before anything is measured end it as well."""
    process = subprocess.Popen(
        [PROGRAM, "bench", str(tiny), *ONE], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    process.stderr.readline()  # the board
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_two_campaigns_at_once_leave_each_other_alone(live: Live, trilithon: Program, home: Path, tiny: Path) -> None:
    live.await_samples(1)
    done = trilithon("bench", "--resume")
    assert done.code == 2  # the other one is alive
    assert "no interrupted campaign" in done.stderr
    removal = trilithon("results", "rm", "1")
    assert removal.code == 2
    assert "being measured" in removal.stderr
    assert trilithon("bench", tiny, *ONE).code == 0
    assert live.process.wait(timeout=60) == 0
    with Store.open(database(home)) as store:
        assert [summary.status for summary in store.campaigns()] == ["finished", "finished"]


@pytest.mark.slow
def test_the_whole_thing_as_a_user_runs_it(home: Path, tiny: Path) -> None:
    done = subprocess.run(
        [
            PROGRAM,
            "bench",
            str(tiny),
            "-p",
            "32",
            "-n",
            "8",
            "-t",
            "1",
            "-r",
            "1",
            "--test",
            "pp",
            "--test",
            "tg",
            "-o",
            "jsonl",
        ],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["n_prompt"] for line in done.stdout.splitlines()] == [32, 0]
    (placement,) = campaign_of(home).placements
    assert placement.name == "llama.cpp/cpu:t=1"
    assert placement.bandwidth_bytes_per_second is not None
    assert placement.bandwidth_bytes_per_second > 1e8
    assert placement.quality is not None
    assert placement.quality.positions >= 64
    assert re.search(r"^\[1/1\] llama.cpp/cpu:t=1: quality$", done.stderr, re.MULTILINE)


@pytest.mark.slow
def test_a_model_that_moved_cannot_be_resumed(trilithon: Program, home: Path, tmp_path: Path, tiny: Path) -> None:
    with Store.open(database(home)) as store:
        plan = {"model": str(tmp_path / "gone.gguf"), "tests": [{"kind": "pp"}], "placements": [GOOD], "variants": [{}]}
        number = store.start_campaign(started="2026", source="trilithon", version="0", board={}, plan=plan)
        store.set_status(number, "interrupted")
    done = trilithon("bench", "--resume")
    assert done.code == 2
    assert is_one_line(done.stderr)
    assert "gone.gguf" in done.stderr
    write_tiny_model(tmp_path / "gone.gguf")
    assert trilithon("bench", "--resume", "-o", "json").code in (0, 1)


def test_a_round_that_was_made_up_for_is_no_failure(trilithon: Program, home: Path, tiny: Path) -> None:
    with Store.open(database(home)) as store:
        assert trilithon("bench", tiny, *ONE, "-r", "2").code == 0
        begun = store.start_run(1, GOOD, 1, 0)  # as if a kill had come within round 1, which was then made up
        store.set_status(1, "interrupted")
        assert store.campaign(1).runs[-1].failure is not None, begun
    assert "interrupted" not in trilithon("results", "show", "1").stdout


# -- handover


@pytest.mark.slow
def test_a_handover_is_measured_beside_its_halves(trilithon: Program, home: Path, tiny: Path) -> None:
    halves = ("scripted/npu:prefill=4000,decode=25", "scripted/cpu:prefill=500,decode=1000")
    words = [word for name in (*halves, "+".join(halves)) for word in ("--placement", name)]
    done = trilithon("bench", tiny, "-p", "256", "-n", "8", "-pg", "256,8", "-r", "1", "--no-quality", *words)
    assert done.code == 0, done.stderr
    campaign = campaign_of(home)
    rates: dict[str, dict[str, float]] = {}
    for run in campaign.runs:
        assert run.outcome == "finished", run.failure
        for sample in run.samples:
            seconds = ((sample.prompt_ns or 0) + (sample.decode_ns or 0)) / 1e9
            rates.setdefault(run.placement, {})[sample.test.name] = seconds
    npu, cpu, both = (rates[name] for name in (*halves, "+".join(halves)))
    assert both["pp256+tg8"] < 0.8 * min(npu["pp256+tg8"], cpu["pp256+tg8"])
    (handed,) = [run for run in campaign.runs if "+" in run.placement]
    marks = next(sample.marks for sample in handed.samples if sample.test.name == "pp256")
    assert marks["prefill_elsewhere_ns"] > 0 and marks["transfer_ns"] > 0
    record = next(placement for placement in campaign.placements if "+" in placement.name)
    assert "prefill build" in record.must_match


def test_a_handover_that_did_not_happen_is_said(trilithon: Program, home: Path, tiny: Path) -> None:
    name = f"scripted/npu:refuse_start=broken+{GOOD}"
    done = trilithon("bench", tiny, *SHORT, "--placement", name)
    assert done.code == 0
    (run,) = campaign_of(home).runs
    assert any("scripted/npu:refuse_start=broken failed" in remark for remark in run.remarks)


@pytest.mark.parametrize(
    ("placement", "reason"),
    [
        ("scripted/npu+scripted/cpu+scripted/gpu", "two halves"),
        ("llama.cpp/cpu:ctk=q8_0+llama.cpp/cpu:ctk=f16", "kv_type_k is q8_0 in one half and f16 in the other"),
        ("scripted/npu+nothing/cpu", "unknown engine nothing"),
    ],
)
def test_a_handover_that_cannot_be(trilithon: Program, home: Path, tiny: Path, placement: str, reason: str) -> None:
    done = trilithon("bench", tiny, *SHORT, "--placement", placement)
    assert done.code == 2 and is_one_line(done.stderr) and reason in done.stderr
