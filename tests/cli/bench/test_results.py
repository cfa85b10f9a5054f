import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trilithon.measure.records import Campaign, PlacementRecord, Run, Sample, Test
from trilithon.results.store.database import Store

Program = Callable[..., Any]

PP = Test(kind="pp", prompt_tokens=512)
TG = Test(kind="tg", generated_tokens=128)
MODEL = {"name": "Tiny", "quantization": "F16", "sha256": "a" * 64, "parameters": 1000, "size_bytes": 2000}


def placement(name: str, **more: Any) -> PlacementRecord:
    words = {
        "name": name,
        "engine": "llama.cpp",
        "build": "embedded",
        "build_version": "1",
        "unit": "cpu",
        "model": MODEL,
        "settings": {"threads": 4, "batch": 2048},
        "must_match": {"kernel": "6.1", "board": "a board"},
    }
    return PlacementRecord(**words | more)


def run_of(name: str, number: int, rate: float) -> Run:
    second = 10**9
    samples = (
        Sample(test=PP, started_ns=0, finished_ns=second, prompt_evaluated=512, prompt_ns=round(51.2 / rate * second)),
        Sample(test=TG, started_ns=0, finished_ns=second, decode_steps=128, decode_ns=round(128 / rate * second)),
    )
    return Run(
        placement=name, round=number, outcome="finished", started_ns=number, finished_ns=number + 1, samples=samples
    )


def campaign(*rates: tuple[str, float], runs: int = 15, started: str = "2026-01-01T00:00:00+00:00") -> Campaign:
    """Placements with their decode rate; each run of a placement is within 0.4% of it."""
    return Campaign(
        id=0,
        started=started,
        status="finished",
        source="trilithon",
        version="0.1.0",
        board={"description": "a board"},
        plan={},
        placements=tuple(placement(name) for name, _ in rates),
        runs=tuple(
            run_of(name, number, rate * (1 + (number * 7 % 5 - 2) / 500))
            for number in range(runs)
            for name, rate in rates
        ),
    )


@pytest.fixture
def keep(home: Path) -> Callable[[Campaign], int]:
    def add(made: Campaign) -> int:
        with Store.open(home / "data" / "trilithon" / "results.sqlite") as store:
            return store.add(made)

    return add


Keep = Callable[[Campaign], int]
THEIRS = Path(__file__).parents[2] / "results" / "data" / "llama-bench.json"


def test_an_empty_database(trilithon: Program) -> None:
    listed = trilithon("results", "list")
    assert (listed.code, listed.stdout) == (0, "")
    assert "no measurements yet" in listed.stderr
    assert json.loads(trilithon("results", "list", "--json").stdout) == []
    for words in (
        ("show", "last"),
        ("export", "last"),
        ("report", "last"),
        ("rm", "last"),
        ("compare", "last", "last"),
    ):
        done = trilithon("results", *words)
        assert (done.code, done.stderr) == (2, "error: no measurements yet; start with: trilithon bench\n")


def test_list(trilithon: Program, keep: Keep) -> None:
    keep(campaign(("llama.cpp/cpu", 10)))
    keep(replace(campaign(("a", 1), ("b", 2), runs=1), status="interrupted"))
    lines = trilithon("results", "list").stdout.splitlines()
    assert lines == [
        "   1  2026-01-01T00:00:00+00:00  a board  Tiny F16  llama.cpp/cpu  pp512, tg128  measured here",
        "   2  2026-01-01T00:00:00+00:00  a board  Tiny F16  a, b  pp512, tg128  measured here (interrupted)",
    ]
    first, second = json.loads(trilithon("results", "list", "--json").stdout)
    assert (first["id"], first["status"], first["runs"]) == (1, "finished", 15)
    assert second["placements"] == ["a", "b"]


def test_show_tells_what_disturbed_the_runs(trilithon: Program, keep: Keep) -> None:
    quiet = campaign(("llama.cpp/cpu", 10), runs=5)
    busy = replace(quiet.runs[0], warnings=("swapped 3 MiB in",), remarks=("runs with flash attention off",))
    keep(replace(quiet, runs=(busy, *quiet.runs[1:])))
    keep(quiet)
    told = [
        "warning: llama.cpp/cpu: 1 of 5 runs were disturbed, one by this: swapped 3 MiB in",
        "note: llama.cpp/cpu: runs with flash attention off (1 of 5 runs)",
    ]
    assert trilithon("results", "show", "1").stderr.splitlines() == told
    assert trilithon("results", "show", "2").stderr == ""
    both = trilithon("results", "show", "2", "1").stderr.splitlines()
    assert both == [line.replace(": ", ": 1: ", 1) for line in told]


def test_show(trilithon: Program, keep: Keep) -> None:
    keep(campaign(("llama.cpp/cpu", 10)))
    table = trilithon("results", "show", "1")
    assert table.code == 0
    assert table == trilithon("results", "show", "last")
    assert "llama.cpp/cpu is the only placement measured: decode" in table.stdout
    assert "|" in trilithon("results", "show", "1", "-o", "md").stdout
    rows = list(csv.DictReader(io.StringIO(trilithon("results", "show", "1", "-o", "csv").stdout)))
    assert [row["test"] for row in rows] == ["pp512", "tg128"]
    lines = [json.loads(line) for line in trilithon("results", "show", "1", "-o", "jsonl").stdout.splitlines()]
    assert len(lines) == 2
    assert json.loads(trilithon("results", "show", "1", "-o", "json").stdout)


def test_an_import_stands_in_the_same_table(trilithon: Program, keep: Keep) -> None:
    keep(campaign(("llama.cpp/cpu", 10)))
    assert trilithon("results", "import", THEIRS).code == 0
    table = trilithon("results", "show", "1", "2").stdout
    assert "1:llama.cpp/cpu" in table
    assert "2:llama.cpp/cpu" in table


@pytest.mark.parametrize("command", ["show", "export", "report", "rm"])
@pytest.mark.parametrize(
    ("text", "message"),
    [("9", "there is no campaign 9"), ("first", "first is not the number"), ("9" * 30, ""), ("1.5", "not the number")],
)
def test_a_campaign_that_is_not_there(trilithon: Program, keep: Keep, command: str, text: str, message: str) -> None:
    keep(campaign(("llama.cpp/cpu", 10), runs=1))
    done = trilithon("results", command, text)
    assert done.code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.mark.parametrize(("other", "answer"), [(10.0, "same"), (12.0, "worse"), (8.0, "better")])
def test_compare_two_campaigns(trilithon: Program, keep: Keep, other: float, answer: str) -> None:
    keep(campaign(("llama.cpp/cpu", 10)))
    keep(campaign(("llama.cpp/cpu", other), started="2026-01-02T00:00:00+00:00"))
    found = json.loads(trilithon("results", "compare", "1", "2", "--json").stdout)
    assert [(each["test"], each["verdict"]) for each in found] == [("pp512", answer), ("tg128", answer)]
    assert found[1]["ratio"]["ratio"] == pytest.approx(10 / other, rel=0.01)
    text = trilithon("results", "compare", "1", "2").stdout
    assert text.count(answer) >= 2
    assert len(text.splitlines()) == 2


def test_compare_with_itself(trilithon: Program, keep: Keep) -> None:
    keep(campaign(("llama.cpp/cpu", 10)))
    keep(campaign(("llama.cpp/cpu", 10), runs=2))
    done = trilithon("results", "compare", "1", "1", "--json")
    assert done.code == 0
    assert {each["verdict"] for each in json.loads(done.stdout)} == {"same"}
    few = trilithon("results", "compare", "2", "2")
    assert few.code == 0
    assert few.stdout.count("not comparable") == 2


def test_compare_placements_by_name(trilithon: Program, keep: Keep) -> None:
    keep(campaign(("llama.cpp/cpu", 10), ("scripted/cpu:t=1,decode=9", 12)))
    found = json.loads(
        trilithon("results", "compare", "last:llama.cpp/cpu", "1:scripted/cpu:t=1,decode=9", "--json").stdout
    )
    assert {(each["a"], each["b"], each["verdict"]) for each in found} == {
        ("llama.cpp/cpu", "scripted/cpu:t=1,decode=9", "worse")
    }
    done = trilithon("results", "compare", "1", "1")
    assert done.code == 2
    assert "name a placement, for example 1:llama.cpp/cpu; there are llama.cpp/cpu, scripted" in done.stderr
    done = trilithon("results", "compare", "1:vllm/cpu", "1")
    assert done.code == 2
    assert "campaign 1 has no placement vllm/cpu; it has llama.cpp/cpu" in done.stderr


def test_compare_what_differs(trilithon: Program, keep: Keep) -> None:
    keep(campaign(("llama.cpp/cpu", 10)))
    later = campaign(("llama.cpp/cpu", 10))
    keep(replace(later, placements=(placement("llama.cpp/cpu", must_match={"kernel": "6.12", "board": "a board"}),)))
    assert "kernel 6.1 → 6.12" in trilithon("results", "compare", "1", "2").stdout


def test_compare_without_anything_in_common(trilithon: Program, keep: Keep) -> None:
    keep(campaign(("a", 10)))
    keep(replace(campaign(("b", 10), runs=1), runs=()))
    keep(replace(campaign(), placements=(), runs=()))
    assert "no test in common" in trilithon("results", "compare", "1", "2").stderr
    for words in (("1", "3"), ("3", "1"), ("3", "3")):
        done = trilithon("results", "compare", *words)
        assert done.code == 2
        assert "campaign 3 has no measurements" in done.stderr


def test_an_export_comes_back_as_it_was_and_never_twice(trilithon: Program, keep: Keep, home: Path) -> None:
    secret = replace(campaign(("llama.cpp/cpu", 10), ("llama.cpp/gpu", 12), runs=2), plan={"model": "/srv/acme/a.gguf"})
    keep(secret)
    printed, bundle, table = home / "export.json", home / "my campaign", home / "export.csv"
    printed.write_text(trilithon("results", "export", "1").stdout)
    assert trilithon("results", "export", "1", "-o", bundle) == (0, "", "")
    assert trilithon("results", "export", "1", "-o", table).code == 0
    assert table.read_text() == trilithon("results", "export", "1", "-o", "csv").stdout
    assert "acme" not in printed.read_text()
    assert "acme" in trilithon("results", "export", "1", "--private").stdout
    done = trilithon("results", "import", printed, bundle)
    assert done == (0, "export.json: already here as 1\nmy campaign: already here as 1\n", "")
    before = trilithon("results", "show", "1", "-o", "csv").stdout
    trilithon("results", "rm", "1")
    done = trilithon("results", "import", bundle, printed)
    assert done.stdout == "my campaign: saved as campaign 2\nexport.json: already here as 2\n"
    assert trilithon("results", "show", "2", "-o", "csv").stdout == before
    assert trilithon("results", "list").stdout.endswith("tg128  imported\n")
    done = trilithon("results", "export", "2", "-o", home / "no" / "folder")
    assert (done.code, done.stderr.count("\n")) == (2, 1)


def test_an_export_of_a_campaign_that_still_runs_says_so(trilithon: Program, keep: Keep) -> None:
    number = keep(replace(campaign(("a", 1), runs=1), status="running"))
    done = trilithon("results", "export", "last", "-o", "csv")
    note = f"note: campaign {number} is not finished: only what was measured so far is exported\n"
    assert (done.code, done.stderr) == (0, note)


def test_where_an_export_goes(trilithon: Program, keep: Keep, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(campaign(("llama.cpp/cpu", 10), runs=1))
    monkeypatch.chdir(home)
    before = set(home.iterdir())
    for name in ("", ".", "..", "/", "cvs", "CSV"):
        done = trilithon("results", "export", "1", "-o", name)
        assert (done.code, done.stderr.count("\n")) == (2, 1), name
        assert "or a format: trilithon, json, jsonl, csv, sql, md" in done.stderr
    assert set(home.iterdir()) == before
    assert trilithon("results", "export", "1", "-o", "x.json").code == 0
    assert json.loads((home / "x.json").read_text())[0]["avg_ts"]


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "sql"])
def test_llama_benchs_formats_come_back_with_the_same_figures(
    trilithon: Program, keep: Keep, home: Path, form: str
) -> None:
    keep(campaign(("llama.cpp/cpu", 10)))
    path = home / f"export.{form}"
    path.write_text(trilithon("results", "export", "1", "-o", form).stdout)
    done = trilithon("results", "import", path)
    assert done.code == 0, done.stderr

    def medians(number: int) -> list[float]:
        lines = trilithon("results", "show", str(number), "-o", "jsonl").stdout.splitlines()
        return [json.loads(line)["median"] for line in lines]

    assert medians(2) == pytest.approx(medians(1), rel=0.01)


def test_an_import_says_what_it_left_out_and_what_is_rounded(trilithon: Program, home: Path) -> None:
    log, table = home / "bench.log", home / "table.md"
    log.write_text(f"ggml_vulkan: Found 1 Vulkan devices:\n{THEIRS.read_text()}Killed\n")
    table.write_text(THEIRS.with_suffix(".md").read_text())
    done = trilithon("results", "import", log, table)
    assert (done.code, done.stdout) == (0, "bench.log: saved as campaign 1\ntable.md: saved as campaign 2\n")
    assert "lines of bench.log left out, because they are no whole rows: 2\n" in done.stderr
    assert "llama-bench: a Markdown table's rounded averages ± deviations; each is counted as one run\n" in done.stderr
    shown = trilithon("results", "show", "2")
    assert "(± 31.8) tokens/s" in shown.stdout
    assert "a table's rounded average ± deviation" in shown.stdout
    compared = trilithon("results", "compare", "1", "2").stdout
    assert "not comparable – llama.cpp/cpu is a table's rounded average, without its runs" in compared


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff\xfe\x00garbage"),
        lambda path: path.write_text("{}"),
        lambda path: path.write_text("[1, 2]"),
        lambda path: path.write_text("a,b\n1,2\n"),
        lambda path: path.write_text('{"trilithon": "9999", "campaigns": 5}'),
    ],
    ids=["missing", "folder", "empty", "binary", "object", "numbers", "other csv", "wrong export"],
)
def test_a_file_that_is_no_result_is_refused(trilithon: Program, home: Path, make: Callable[[Path], None]) -> None:
    path = home / "results.json"
    make(path)
    done = trilithon("results", "import", path)
    assert done.code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert trilithon("results", "list").stdout == ""


def test_one_bad_file_keeps_all_out(trilithon: Program, keep: Keep, home: Path) -> None:
    keep(campaign(("llama.cpp/cpu", 10)))
    good, bad = home / "good.json", home / "bad.json"
    good.write_text(trilithon("results", "export", "1").stdout)
    bad.write_text("nothing")
    assert trilithon("results", "import", good, bad).code == 2
    assert len(trilithon("results", "list").stdout.splitlines()) == 1


def test_report(trilithon: Program, keep: Keep, home: Path) -> None:
    keep(campaign(("llama.cpp/cpu", 10), ("llama.cpp/gpu", 12)))
    done = trilithon("results", "report", "last", "1")
    assert done.code == 0, done.stderr
    page, *pictures = map(Path, done.stdout.splitlines())
    assert page == home / "data" / "trilithon" / "reports" / "1" / "report.html"
    html = page.read_text(encoding="utf-8")
    assert "llama.cpp/gpu" in html
    assert "<svg" in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert pictures
    assert all(picture.suffix == ".png" for picture in pictures)
    other = trilithon("results", "report", "1", "--report", home / "elsewhere")
    assert (home / "elsewhere" / "report.html").is_file()
    assert str(home / "elsewhere") in other.stdout


def test_a_report_of_nothing(trilithon: Program, keep: Keep) -> None:
    keep(replace(campaign(("a", 1)), runs=()))
    done = trilithon("results", "report", "1")
    assert done.code == 2
    assert "campaign 1 has no measurements yet" in done.stderr
    assert trilithon("results", "show", "1").code == 0


def test_rm(trilithon: Program, keep: Keep) -> None:
    for _ in range(4):
        keep(campaign(("a", 1), runs=1))
    done = trilithon("results", "rm", "2", "last")
    assert (done.code, done.stdout, done.stderr) == (0, "", "removed campaign 2\nremoved campaign 4\n")
    assert [each["id"] for each in json.loads(trilithon("results", "list", "--json").stdout)] == [1, 3]
    assert trilithon("results", "rm", "2").code == 2


def test_several_campaigns_make_an_article(trilithon: Program, keep: Keep, home: Path) -> None:
    keep(campaign(("llama.cpp/cpu", 10), ("llama.cpp/gpu", 7), runs=3))
    keep(campaign(("llama.cpp/cpu", 20), runs=3, started="2026-01-02T00:00:00+00:00"))
    words = ("results", "report", "1", "2", "--report", home / "article")
    done = trilithon(*words, "--lang", "ru", "--label", "llama.cpp/gpu=Видео", "--width", "800", "--svg")
    assert (done.code, done.stderr) == (0, "")
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert all(path.is_file() for path in paths)
    assert "Видео" in (home / "article" / "tg128.svg").read_text()
    assert len(paths) == 7
    for odd in (("--baseline", "npu"), ("--label", "npu=x"), ("--label", "x"), ("--width", "1")):
        done = trilithon(*words, *odd)
        assert (done.code, done.stdout) == (2, "")
    assert trilithon("results", "report", "1", "9").code == 2
