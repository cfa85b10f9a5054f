"""llama-bench's files in and out: the real tool's own output comes back byte for byte, and hostile files do nothing."""

import csv
import io
import json
import re
import sqlite3
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trilithon.errors import UserError
from trilithon.measure.metrics import metrics_of
from trilithon.measure.records import Campaign, Failure, PlacementRecord, QualityRecord, Run, Sample, Test
from trilithon.results.formats import FORMATS, Format, export_campaigns, import_campaigns, import_file
from trilithon.results.llama_bench.columns import COLUMNS
from trilithon.results.llama_bench.rows import figures
from trilithon.results.store.database import Store

DATA = Path(__file__).parent / "data"
REAL: tuple[Format, ...] = ("json", "jsonl", "csv", "sql")
TESTS = ["pp32", "tg8", "pp16+tg4", "pp32 @ d16", "tg8 @ d16", "pp16+tg4 @ d16"]


def real(form: str) -> Path:
    return DATA / f"llama-bench.{form}"


@pytest.mark.parametrize("form", REAL)
def test_llama_benchs_own_output_comes_back_byte_for_byte(form: Format) -> None:
    export = export_campaigns(import_file(real(form)), form)
    assert export.text == real(form).read_text(encoding="utf-8")
    assert (export.rows, export.left_out, export.note) == (6, (), "")


@pytest.mark.parametrize("form", REAL)
def test_it_does_also_by_way_of_the_store(form: Format, tmp_path: Path) -> None:
    with Store.open(tmp_path / "results.sqlite") as store:
        numbers = [store.add(campaign) for campaign in import_file(real(form))]
        campaigns = [store.campaign(number) for number in numbers]
    assert export_campaigns(campaigns, form).text == real(form).read_text(encoding="utf-8")


def test_the_markdown_table_is_llama_benchs(tmp_path: Path) -> None:
    export = export_campaigns(import_file(DATA / "llama-bench-threads.jsonl"), "md")
    assert export.text == (DATA / "llama-bench-threads.md").read_text(encoding="utf-8")


def test_markdown_has_the_shape_of_the_captured_table() -> None:
    """The five captures are runs of their own, so the rates differ; everything else is the same."""
    text = export_campaigns(import_file(real("json")), "md").text
    assert re.sub(r" +[\d.]+ ± [\d.]+", " RATE", text) == re.sub(
        r" +[\d.]+ ± [\d.]+", " RATE", real("md").read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("source", REAL)
@pytest.mark.parametrize("target", REAL)
def test_every_format_goes_into_every_other(source: Format, target: Format) -> None:
    campaigns = import_file(real(source))
    again = import_campaigns(export_campaigns(campaigns, target).text.encode(), "again")
    assert again[0].placements == campaigns[0].placements
    assert export_campaigns(again, "csv").text == export_campaigns(campaigns, "csv").text


@pytest.mark.parametrize("form", REAL)
def test_what_an_import_says(form: Format) -> None:
    (campaign,) = import_file(real(form))
    (placement,) = campaign.placements
    assert (campaign.source, campaign.status, campaign.board["cpu_info"]) == ("llama-bench", "finished", "AMD EPYC")
    assert re.fullmatch(r"2026-11-22T13:42:\d\dZ", campaign.started)
    assert (placement.name, placement.engine, placement.unit) == ("llama.cpp/cpu", "llama.cpp", "cpu")
    assert (placement.build, placement.build_version) == ("0c1e570", "0c1e570 (1)")
    assert placement.model == {
        "name": "gemma-3-270m-q4_k_m",
        "file": "models/gemma-3-270m-q4_k_m.gguf",
        "quantization": "Q4_K_M",
        "size_bytes": 246587904,
        "parameters": 268098176,
        "bytes_per_token": None,
        "sha256": "",
    }
    assert (placement.settings["threads"], placement.settings["flash_attention"]) == (2, "auto")
    assert placement.must_match["cpu_info"] == "AMD EPYC"
    repetitions = 3 if form.startswith("json") else 1
    assert [run.samples[0].test.name for run in campaign.runs] == [name for name in TESTS for _ in range(repetitions)]
    assert [run.round for run in campaign.runs] == list(range(repetitions)) * 6
    assert len(campaign.plan["notes"]) == (1 if form.startswith("json") else 2)


def test_rates_are_llama_benchs() -> None:
    rows = json.loads(real("json").read_text(encoding="utf-8"))
    (campaign,) = import_file(real("json"))
    rates = [next(iter(metrics_of(run.samples[0]).values())) for run in campaign.runs]
    assert rates == pytest.approx([rate for row in rows for rate in row["samples_ts"]], rel=1e-5)


def test_its_averages_follow_from_its_samples() -> None:
    for row in json.loads(real("json").read_text(encoding="utf-8")):
        ours = figures(row["n_prompt"] + row["n_gen"], row["samples_ns"])
        assert (ours["avg_ns"], ours["stddev_ns"]) == (row["avg_ns"], row["stddev_ns"])
        assert ours["avg_ts"] == pytest.approx(row["avg_ts"], abs=1e-6)
        assert ours["stddev_ts"] == pytest.approx(row["stddev_ts"], abs=1e-6)


@given(tokens=st.integers(1, 10**6), samples=st.lists(st.integers(1, 10**13), min_size=1, max_size=8))
def test_averages_hold_for_any_samples(tokens: int, samples: list[int]) -> None:
    found = figures(tokens, samples)
    assert found["avg_ns"] == sum(samples) // len(samples)
    assert found["stddev_ns"] >= 0
    if len(samples) > 1:
        # Cutting off the mean adds up to 2·mean/(n−1) to the variance, so small deviations come out too large there.
        limit = (2 * max(samples) * len(samples) / (len(samples) - 1)) ** 0.5 + 2
        assert found["stddev_ns"] == pytest.approx(statistics.stdev(samples), abs=limit, rel=1e-9)


def test_two_thread_counts_are_two_placements() -> None:
    (campaign,) = import_file(DATA / "llama-bench-threads.jsonl")
    assert [placement.name for placement in campaign.placements] == [
        "llama.cpp/cpu (n_threads=1)",
        "llama.cpp/cpu (n_threads=2)",
    ]
    assert {run.placement for run in campaign.runs} == {placement.name for placement in campaign.placements}


def row(**changes: Any) -> dict[str, Any]:
    first: dict[str, Any] = json.loads(real("jsonl").read_text(encoding="utf-8").splitlines()[0])
    return {name: value for name, value in (first | changes).items() if value is not None}


def imported(*rows: Any) -> list[Campaign]:
    return import_campaigns(json.dumps(rows).encode(), "some.json")


def test_rows_of_two_machines_are_two_campaigns() -> None:
    campaigns = imported(row(), row(cpu_info="RK3588"))
    assert [campaign.board["description"] for campaign in campaigns] == ["AMD EPYC", "RK3588"]


@pytest.mark.parametrize(
    ("columns", "unit"),
    [
        ({"backends": "CPU"}, "cpu"),
        ({"backends": "BLAS"}, "cpu"),
        ({"backends": "Vulkan", "gpu_info": "Mali-G610"}, "gpu"),
        ({"backends": "CUDA,RPC", "gpu_info": "Orin"}, "gpu"),
        ({"backends": "Vulkan", "gpu_info": "Mali-G610", "n_gpu_layers": 0}, "cpu"),
        ({"backends": "Vulkan", "gpu_info": "Mali-G610", "devices": "none"}, "cpu"),
        # A build with Vulkan on a board without a Vulkan device; the list of GPUs is empty.
        ({"backends": "Vulkan", "gpu_info": "", "n_gpu_layers": 99}, "cpu"),
        ({"backends": "Vulkan,RPC", "gpu_info": "", "n_gpu_layers": -1}, "cpu"),
        ({"backends": "OpenCL,BLAS", "gpu_info": ""}, "cpu"),
        ({"backends": "Vulkan", "gpu_info": None}, "gpu"),
        ({"backends": "RPC", "gpu_info": "", "n_gpu_layers": -1}, "cpu"),
        ({"backends": "RPC,BLAS"}, "cpu"),
        ({"backends": "RPC", "gpu_info": "192.168.1.2:50052"}, "cpu"),
        ({"backends": "RKNPU", "gpu_info": ""}, "npu"),
        ({"backends": None, "gpu_info": "", "vulkan": True}, "gpu"),
        ({"backends": "RKNPU"}, "npu"),
        ({"backends": "RKNPU,BLAS", "n_gpu_layers": 0}, "npu"),
        ({"backends": None, "cuda": True, "metal": False}, "gpu"),
        ({"backends": None, "cuda": False}, "cpu"),
        ({"backends": None}, "cpu"),
    ],
)
def test_the_unit_follows_from_the_backend(columns: dict[str, Any], unit: str) -> None:
    assert imported(row(**columns))[0].placements[0].unit == unit


def test_an_old_file_with_few_columns() -> None:
    old = {"build_commit": "abc", "model_type": "llama 7B mostly Q4_0", "n_prompt": 512, "n_gen": 0, "avg_ns": 10**9}
    (campaign,) = imported(old | {"f16_kv": True, "flash_attn": False})
    (placement,) = campaign.placements
    assert (placement.name, placement.build_version, placement.model["quantization"]) == (
        "llama.cpp/cpu",
        "abc",
        "Q4_0",
    )
    assert (placement.settings["threads"], placement.settings["flash_attention"]) == (None, "off")
    (again,) = json.loads(export_campaigns([campaign], "json").text)
    assert (again["avg_ns"], again["n_depth"], list(again)[:42]) == (10**9, 0, list(COLUMNS))


@pytest.mark.parametrize(
    ("model_type", "quantization"),
    [
        ("gemma3 270M Q4_K - Medium", "Q4_K_M"),
        ("Gemma 3 270m Q4_K_M", "Q4_K_M"),
        ("llama 1B all F32 (guessed)", "F32"),
        ("gpt-oss 20B MXFP4 MoE", "MXFP4"),
        ("qwen3 4B IQ3_S mix - 3.66 bpw", "IQ3_S"),
        ("llama 7B strange", "strange"),
        ("unknown", ""),
    ],
)
def test_the_quantization_is_found_in_the_type(model_type: str, quantization: str) -> None:
    assert imported(row(model_type=model_type))[0].placements[0].model["quantization"] == quantization


def test_build_and_commit_are_told_apart() -> None:
    build = "0.5.0-dev (build 17, commit 0c1e570)"
    ours = replace(CAMPAIGN, placements=(replace(CAMPAIGN.placements[0], build_version=build),))
    first, *_ = json.loads(export_campaigns([ours], "json").text)
    assert (first["build_commit"], first["build_number"]) == ("0c1e570", 17)


def test_a_fact_that_is_no_number_is_refused() -> None:
    exported = json.loads(export_campaigns([CAMPAIGN], "trilithon").text)
    exported["campaigns"][0]["placements"][0]["model"]["bytes_per_token"] = "many"
    with pytest.raises(UserError, match=r"bytes_per_token of .* is not a number"):
        import_campaigns(json.dumps(exported).encode(), "theirs.json")


def test_a_rate_alone_is_enough() -> None:
    (campaign,) = imported({"n_prompt": 0, "n_gen": 100, "avg_ts": 50.0})
    assert campaign.runs[0].samples[0].decode_ns == 2 * 10**9


@pytest.mark.parametrize("form", REAL)
def test_files_that_several_runs_were_appended_to(form: Format) -> None:
    twice = real(form).read_bytes() * 2
    (campaign,) = import_campaigns(twice, "twice")
    (once,) = import_file(real(form))
    assert len(campaign.runs) == 2 * len(once.runs)
    assert campaign.placements == once.placements
    assert export_campaigns([campaign], "json").rows == 6


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_from_windows(encoding: str) -> None:
    text = real("csv").read_text(encoding="utf-8").replace("\n", "\r\n")
    assert import_campaigns(text.encode(encoding), "x") == import_file(real("csv"))


def test_a_dump_of_the_table_by_sqlite(tmp_path: Path) -> None:
    database = sqlite3.connect(":memory:")
    database.executescript(real("sql").read_text(encoding="utf-8"))
    dump = "PRAGMA foreign_keys=OFF;\n" + "\n".join(database.iterdump())
    database.close()
    assert import_campaigns(dump.encode(), "x") == import_file(real("sql"))


def test_our_sql_and_csv_escape_what_llama_benchs_do_not() -> None:
    campaigns = imported(row(model_filename='it\'s "mine", yes.gguf'))
    for form in REAL:
        again = import_campaigns(export_campaigns(campaigns, form).text.encode(), form)
        assert again[0].placements[0].model["file"] == 'it\'s "mine", yes.gguf'


INSERT = "INSERT INTO llama_bench (n_prompt, n_gen, avg_ns) VALUES "
CREATE = "CREATE TABLE llama_bench (n_prompt INTEGER, n_gen INTEGER, avg_ns INTEGER);"


def test_the_least_sql(tmp_path: Path) -> None:
    assert imported_sql(f"{CREATE}\n{INSERT} (1, 0, 5);")[0].runs[0].finished_ns == 5


def imported_sql(text: str) -> list[Campaign]:
    return import_campaigns(text.encode(), "hostile.sql")


@pytest.mark.parametrize(
    "statement",
    [
        "ATTACH '{file}' AS other;",
        "VACUUM INTO '{file}';",
        "PRAGMA journal_mode = DELETE;",
        "PRAGMA writable_schema = ON;",
        "SELECT load_extension('{file}');",
        "CREATE TABLE other (x);",
        "CREATE TEMP TABLE llama_bench (x);",
        "CREATE TRIGGER t AFTER INSERT ON llama_bench BEGIN SELECT 1; END;",
        "CREATE VIEW v AS SELECT 1;",
        "CREATE VIRTUAL TABLE v USING fts5(x);",
        "INSERT INTO sqlite_master VALUES (1, 2, 3, 4, 5);",
        "UPDATE llama_bench SET n_prompt = 1;",
        "DELETE FROM llama_bench;",
        "DROP TABLE llama_bench;",
        INSERT + "(1, 0, abs(-5));",
        INSERT + "(1, 0, (SELECT 5));",
        "INSERT INTO llama_bench SELECT 1, 0, 5;",
        "INSERT INTO llama_bench WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i, 0, 5 FROM n;",
        INSERT + "(randomblob(1000000000), 0, 5);",
        INSERT + "(1, 0, 5) RETURNING randomblob(9);",
    ],
)
def test_hostile_sql_does_nothing(statement: str, tmp_path: Path) -> None:
    file = tmp_path / "touched"
    with pytest.raises(UserError, match=r"hostile.sql is not llama-bench's sql: .*; write the file again with"):
        imported_sql(f"{CREATE}\n{INSERT} (1, 0, 5);\n{statement.format(file=file)}")
    assert not file.exists()


def test_a_hostile_table_does_nothing() -> None:
    for column in ("x DEFAULT (randomblob(1000000000))", "x AS (randomblob(1000000000))", "x CHECK (zeroblob(9))"):
        with pytest.raises(UserError, match="something other than a table llama_bench of plain columns"):
            imported_sql(f"{CREATE[:-2]}, {column});\n{INSERT} (1, 0, 5);")
    with pytest.raises(UserError, match="too many columns"):
        imported_sql("CREATE TABLE llama_bench (" + ", ".join(f"c{i} TEXT" for i in range(300)) + ");")
    for text in ("\n" * 2000, "x" * (1 << 21)):
        with pytest.raises(UserError, match="a statement is too long"):
            imported_sql(f"{CREATE}\n{INSERT} (1, 0, '{text}');")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no results that can be read; give what llama-bench -o json"),
        (b"hello", "holds no results that can be read"),
        (b"\x80\x81\x82", "is not text"),
        (b"\xff\xfea", "is not text"),
        (b"[]", "holds no results: the run that wrote it may have been interrupted"),
        (b"{}", "row 1: it is not one of llama-bench's"),
        (b"[1, 2]", "row 1: it is not one of llama-bench's"),
        (b"[{]", "is not complete JSON"),
        (b"[" * 200_000, "is nested too deeply"),
        (b'[{"n_prompt": ' + b"9" * 5000 + b"}]", "is not complete JSON"),
        (b"n_prompt,n_gen,avg_ns\n1,0\n", "a line is cut short or too long"),
        (b"n_prompt,n_gen,avg_ns\n1,0,2,3\n", "a line is cut short or too long"),
        (b'n_prompt,n_gen,avg_ns\n1,0,"2"x\n', "is not csv"),
        (b"n_prompt,n_gen,avg_ns\n", "holds no results"),
        (b"n_prompt,n_gen,avg_ns\n1,0,x\n", "row 1: avg_ns is not a whole number"),
        (CREATE.encode(), "holds no results"),
        (b"CREATE TABLE", "its last statement is cut short"),
        (b"CREATE \x00", "is not llama-bench's sql"),
        (b"| model | size |", "holds no results that can be read; give what llama-bench -o json"),
        (b'{"trilithon_results": 2, "campaigns": []}', r"newer Trilithon \(format 2\); upgrade Trilithon"),
        (b'{"trilithon_results": "x", "campaigns": []}', "is not a complete export"),
        (b'{"trilithon_results": 1}', "is not a complete export"),
        (b'{"trilithon_results": 1, "campaigns": [{"id": 1}]}', r"campaigns\[0\].started is missing"),
        (b'{"trilithon_results": 1, "campaigns": [{"id": true}]}', r"campaigns\[0\].id is True, not a whole number"),
        (b'{"trilithon_results": 1, "campaigns": [{"x": 1}]}', r"campaigns\[0\].x is unknown"),
        (b'{"trilithon_results": 1, "campaigns": [{"status": "odd"}]}', "not one of running, interrupted, finished"),
    ],
)
def test_what_is_no_results_file(content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        import_campaigns(content, "odd.file")
    assert str(caught.value).startswith("odd.file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples_ns": [0]}, "samples_ns has a duration that is not more than 0"),
        ({"samples_ns": ["x"]}, "avg_ns is not a whole number"),
        ({"samples_ns": 5}, "samples_ns is not a list of durations"),
        ({"n_prompt": -1}, "a negative number of tokens"),
        ({"n_prompt": 0}, "a test without tokens"),
        ({"n_prompt": 1.5}, "n_prompt is not a whole number"),
        ({"n_prompt": 2**63}, "n_prompt is too large"),
        ({"n_prompt": [1]}, "n_prompt is not a plain value"),
        ({"samples_ns": None, "avg_ns": -5}, "avg_ns is not more than 0"),
        ({"samples_ns": None, "avg_ns": None, "avg_ts": 0}, "neither samples_ns nor avg_ns nor avg_ts"),
        ({"avg_ts": float("nan")}, "avg_ts is not a finite number"),
        ({"repack": "maybe"}, "repack is neither true nor false"),
    ],
)
def test_a_row_that_makes_no_sense(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"some.json: row 2: {said}; write the file again"):
        imported(row(), row(**changes))


def test_a_future_column_is_kept_and_a_nested_one_is_not() -> None:
    (placement,) = imported(row(n_moons=3, moons=[1, 2]))[0].placements
    assert placement.settings["llama_bench"]["n_moons"] == "3"
    assert "moons" not in placement.settings["llama_bench"]


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.json: No such file or directory"):
        import_file(tmp_path / "gone.json")
    with pytest.raises(UserError, match="Is a directory"):
        import_file(tmp_path)


@given(st.text() | st.sampled_from(REAL).flatmap(lambda form: st.integers(0, 2000).map(lambda n: cut(form, n))))
@settings(max_examples=150, deadline=None)
def test_any_text_is_results_or_one_clear_line(text: str) -> None:
    try:
        campaigns = import_campaigns(text.encode("utf-8", "surrogatepass"), "any")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(campaign.runs for campaign in campaigns)


def cut(form: str, length: int) -> str:
    return real(form).read_text(encoding="utf-8")[:length]


# Trilithon's own campaigns

MODEL = {
    "name": "gemma3-270m",
    "file": "g.gguf",
    "quantization": "Q4_K_M",
    "size_bytes": 253113024,
    "parameters": 268098176,
}
CPU = PlacementRecord(
    name="llama.cpp/cpu",
    engine="llama.cpp",
    build="native",
    build_version="b6789 (0c1e570)",
    unit="cpu",
    model=MODEL,
    settings={"threads": 2, "cpus": [0, 1], "batch": 2048, "micro_batch": 256, "flash_attention": "on"},
    must_match={"board": "Radxa ROCK 5B"},
    quality=QualityRecord(verdict="reference", reference="llama.cpp/cpu"),
)
GPU = replace(CPU, name="llama.cpp/gpu", unit="gpu", quality=None, settings={"threads": None, "kv_type_k": "q8_0"})
PP, TG = Test(kind="pp", prompt_tokens=512), Test(kind="tg", generated_tokens=128, depth=64)
PG = Test(kind="pg", prompt_tokens=512, generated_tokens=128)


def prefill(ns: int) -> Sample:
    return Sample(test=PP, started_ns=5, finished_ns=5 + ns + 999, prompt_evaluated=512, prompt_ns=ns)


def decode(ns: int, steps: int = 128) -> Sample:
    return Sample(test=TG, started_ns=5, finished_ns=5 + ns + 999, decode_steps=steps, decode_ns=ns)


def run(placement: PlacementRecord, number: int, *samples: Sample, failure: Failure | None = None) -> Run:
    outcome = "failed" if failure else "finished"
    return Run(
        placement=placement.name,
        round=number,
        outcome=outcome,  # type: ignore[arg-type]
        started_ns=0,
        finished_ns=9,
        samples=samples,
        failure=failure,
        log="half a pair: \ud83d",
    )


BOTH = Sample(test=PG, started_ns=0, finished_ns=9, prompt_evaluated=512, prompt_ns=4, decode_steps=128, decode_ns=6)
QUESTION = Sample(test=Test(kind="question", question="?"), started_ns=1, finished_ns=2, answer_at_ns=(2,))
CAMPAIGN = Campaign(
    id=4,
    started="2026-11-22T13:00:00+03:00",
    status="finished",
    source="trilithon",
    version="0.1.0",
    board={"description": "Radxa ROCK 5B · RK3588", "gpu": {"name": "Mali-G610", "driver": "panthor"}},
    plan={"tests": ["pp512"]},
    placements=(CPU, GPU),
    runs=(
        run(CPU, 0, prefill(10**9), decode(2 * 10**9), QUESTION),
        run(CPU, 1, prefill(2 * 10**9), decode(10**9, steps=127), QUESTION),
        run(GPU, 0, BOTH),
        run(GPU, 1, prefill(1), failure=Failure(kind="died", message="died: SIGSEGV")),
        run(GPU, 2, Sample(test=PP, started_ns=0, finished_ns=9)),
    ),
)


def test_a_campaign_in_llama_benchs_words() -> None:
    export = export_campaigns([CAMPAIGN], "json")
    pp, tg, pg = rows = json.loads(export.text)
    assert [list(found) for found in rows] == [[*COLUMNS, "samples_ns", "samples_ts"]] * 3
    assert (pp["samples_ns"], pp["samples_ts"]) == ([10**9, 2 * 10**9], [512, 256])
    assert (pp["avg_ts"], pp["stddev_ts"]) == (384, pytest.approx(statistics.stdev([512, 256]), abs=1e-6))
    # 127 steps counted where 128 were asked for: the rate is what was measured
    assert tg["samples_ts"] == pytest.approx([64, 127], rel=1e-5)
    assert (tg["n_gen"], tg["n_depth"], tg["n_prompt"]) == (128, 64, 0)
    assert (pg["samples_ns"], pg["backends"], pg["n_threads"], pg["type_k"]) == ([10], "GPU", 0, "q8_0")
    assert (pp["build_commit"], pp["build_number"], pp["test_time"]) == (
        "b6789 (0c1e570)",
        6789,
        "2026-11-22T10:00:00Z",
    )
    assert (pp["cpu_mask"], pp["n_ubatch"], pp["flash_attn"], pp["cpu_info"]) == (
        "0x3",
        256,
        1,
        "Radxa ROCK 5B · RK3588",
    )
    assert (pp["gpu_info"], pp["model_filename"]) == ("Mali-G610", "g.gguf")
    assert (pp["model_type"], pp["model_size"]) == ("gemma3-270m Q4_K_M", 253113024)


def test_what_is_left_out_is_said() -> None:
    export = export_campaigns([CAMPAIGN], "csv")
    assert export.rows == 3
    assert export.left_out == (
        "llama.cpp/cpu: a sample of question",
        "llama.cpp/cpu: a sample of question",
        "llama.cpp/cpu: its quality (reference)",
        "llama.cpp/gpu: a run that was failed (died), 1 samples in it",
        "llama.cpp/gpu: a sample of pp512",
    )
    assert "a sample of question (2 times); llama.cpp/cpu: its quality" in export.note
    assert export_campaigns([CAMPAIGN], "trilithon").note == ""


@pytest.mark.parametrize("form", REAL)
def test_llama_benchs_readers_can_read_it(form: Format) -> None:
    """As compare-llama-bench.py reads: json lines, csv by header, the table of the sql."""
    text = export_campaigns([CAMPAIGN], form).text
    match form:
        case "json":
            rows = json.loads(text)
        case "jsonl":
            rows = [json.loads(line) for line in text.splitlines()]
        case "csv":
            rows = list(csv.DictReader(io.StringIO(text)))
        case _:
            database = sqlite3.connect(":memory:")
            database.row_factory = sqlite3.Row
            database.executescript(text)
            rows = [dict(found) for found in database.execute("SELECT * FROM llama_bench")]
            database.close()
    assert [float(found["avg_ts"]) for found in rows] == [384, 95.5, pytest.approx(6.4e10)]
    assert [str(found["n_prompt"]) for found in rows] == ["512", "0", "512"]


def test_the_table_of_placements_that_differ() -> None:
    head, _, *lines = export_campaigns([CAMPAIGN], "md").text.splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns == [
        *("model", "size", "params", "backend", "ngl", "threads", "cpu_mask"),
        *("n_ubatch", "type_k", "fa", "test", "t/s"),
    ]
    assert [line.split("|")[-3].strip() for line in lines[:3]] == ["pp512", "tg128 @ d64", "pp512+tg128"]
    assert lines[-1] == "build: b6789 (0c1e570) (6789)"


@pytest.mark.parametrize("form", FORMATS)
def test_an_empty_export_is_well_formed(form: Format) -> None:
    export = export_campaigns([], form)
    assert export.rows == 0
    if form in ("json", "trilithon"):
        json.loads(export.text)


def test_our_own_format_loses_nothing() -> None:
    broken = QualityRecord(verdict="broken", reference="a", perplexity=float("inf"), divergence=0.1 + 0.2)
    campaign = replace(CAMPAIGN, placements=(replace(CPU, quality=broken), GPU))
    text = export_campaigns([campaign, CAMPAIGN], "trilithon").text
    assert import_campaigns(text.encode(), "own.json") == [campaign, CAMPAIGN]
    assert "Infinity" not in text


def test_our_own_format_is_checked() -> None:
    body = json.loads(export_campaigns([CAMPAIGN], "trilithon").text)
    body["campaigns"][0]["runs"][0]["placement"] = "gone"
    with pytest.raises(UserError, match="a run has no placement 'gone'"):
        import_campaigns(json.dumps(body).encode(), "x")
    body["campaigns"][0]["placements"][1]["name"] = CPU.name
    with pytest.raises(UserError, match="two placements have one name"):
        import_campaigns(json.dumps(body).encode(), "x")


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"llama_bench": 5}, ""),
        ({"llama_bench": [1, {}, {"placement": CPU.name, "test": "pp512", "avg_ts": "x"}]}, "avg_ts"),
    ],
)
def test_a_hostile_import_of_our_own_format_cannot_break_an_export(plan: dict[str, Any], said: str) -> None:
    strange = replace(CPU, settings={"threads": 2, "cpus": [-1, "x", 10**9], "flash_attention": []})
    campaign = replace(CAMPAIGN, plan=plan, placements=(strange, GPU))
    if said:
        with pytest.raises(UserError, match="do not fit llama-bench's columns: avg_ts is not a number; export as"):
            export_campaigns([campaign], "json")
    else:
        assert json.loads(export_campaigns([campaign], "json").text)[0]["cpu_mask"] == "0x0"
    with pytest.raises(UserError, match="n_batch is not a plain value"):
        export_campaigns([replace(CAMPAIGN, placements=(replace(CPU, settings={"batch": {}}), GPU))], "json")
