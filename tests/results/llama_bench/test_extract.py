"""Rows among other lines: the rows are those of llama-bench's own output, and every other line is counted.

The log lines and the kinds of damage are from public reports of board owners."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trilithon.errors import UserError
from trilithon.measure.records import Campaign
from trilithon.results.compare import compare_placements, summarise
from trilithon.results.formats import export_campaigns, import_campaigns, import_file
from trilithon.results.table import estimate_text, render_jsonl, render_terminal

DATA = Path(__file__).parents[1] / "data"
FORMS = ("json", "jsonl", "csv", "sql", "md")
LOG = (
    "WARNING: panvk is not a conformant Vulkan implementation, testing use only.\n"
    "ggml_vulkan: 0 = Mali-G610 (panvk) | uma: 1 | fp16: 1 | warp size: 16 | int dot: 1 | matrix cores: none\n"
    '[17:03:11] str = {% for message in messages %}{{"<|im_start|>"}} "half a quote\n'
)


def text_of(form: str) -> str:
    return (DATA / f"llama-bench.{form}").read_text(encoding="utf-8")


def imported(text: str | bytes, name: str = "board.log") -> Campaign:
    (campaign,) = import_campaigns(text if isinstance(text, bytes) else text.encode(), name)
    return campaign


def left_out(campaign: Campaign) -> int:
    """0 where no note tells of any."""
    found = [note for note in campaign.plan["notes"] if "left out" in note]
    return int(found[0].rpartition(": ")[2]) if found else 0


def same_results(campaign: Campaign, other: Campaign) -> bool:
    kept = [campaign.plan["llama_bench"], other.plan["llama_bench"]]
    return (campaign.placements, campaign.runs, kept[0]) == (other.placements, other.runs, kept[1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", ["", LOG])
@pytest.mark.parametrize("after", ["", LOG])
def test_lines_before_and_after_the_rows(form: str, before: str, after: str) -> None:
    campaign = imported(before + text_of(form) + after)
    assert same_results(campaign, imported(text_of(form)))
    assert left_out(campaign) == 3 * (bool(before) + bool(after))


@pytest.mark.parametrize(
    ("form", "row_begins"),
    [("json", "  {"), ("jsonl", '{"build_commit'), ("csv", '"0c1e570'), ("sql", "INSERT"), ("md", "| gemma3")],
)
def test_lines_among_the_rows(form: str, row_begins: str) -> None:
    lines = [LOG * line.startswith(row_begins) + line for line in text_of(form).splitlines(keepends=True)]
    campaign = imported("".join(lines))
    assert same_results(campaign, imported(text_of(form)))
    assert left_out(campaign) == 3 * 6


def test_a_log_line_on_the_last_line_of_a_row() -> None:
    """llama-bench writes a row without a new line; the comma comes before the next one."""
    campaign = imported(text_of("json").replace("  },", f"  }}{LOG},"))
    assert same_results(campaign, imported(text_of("json")))
    assert left_out(campaign) == 3 * 5


def test_a_log_line_inside_a_row() -> None:
    inside = (
        text_of("json")
        .replace('    "n_batch"', LOG + '    "n_batch"')
        .replace('"samples_ns": [', f'"samples_ns": [\n{LOG}')
    )
    campaign = imported(inside)
    assert same_results(campaign, imported(text_of("json")))
    assert left_out(campaign) == 3 * 6 * 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_run_that_was_broken_off(form: str, packed: bool) -> None:
    """Wherever the file ends, no row is invented, and no whole one is lost."""
    whole = import_campaigns(text_of(form).encode(), "whole")[0]
    rows = len({(run.placement, run.samples[0].test) for run in whole.runs})
    counts = []
    for end in range(0, len(text_of(form)), 97):
        cut = text_of(form)[:end].encode()
        try:
            campaign = imported(gzip.compress(cut) if packed else cut)
        except UserError:
            continue
        assert campaign.runs == whole.runs[: len(campaign.runs)]
        counts.append(len({(run.placement, run.samples[0].test) for run in campaign.runs}))
    assert counts == sorted(counts)
    assert set(counts) >= set(range(1, rows))


def test_the_lines_of_the_row_that_was_cut_are_counted() -> None:
    lines = text_of("json").splitlines()
    second = [number for number, line in enumerate(lines) if line == "  {"][1]
    campaign = imported("\n".join(lines[: second + 20]))
    assert (len(campaign.runs), left_out(campaign)) == (3, 20)


def test_a_run_appended_to_one_that_was_cut() -> None:
    """Two halves are never put together to a row."""
    for cut in range(200, 1900, 100):
        campaign = imported(text_of("json")[:cut] + "\n" + text_of("json"))
        whole = imported(text_of("json"))
        expected = [run.samples for run in whole.runs]
        assert all(run.samples in expected for run in campaign.runs)
        assert len(campaign.runs) - len(whole.runs) == (3 if cut >= 1200 else 0)


@pytest.mark.parametrize("mark", [";", "\t"])
@pytest.mark.parametrize("comma", [False, True])
def test_a_spreadsheets_csv(mark: str, comma: bool) -> None:
    rows = list(csv.reader(io.StringIO(text_of("csv"))))
    if comma:
        rows[1:] = [[*row[:-2], *(cell.replace(".", ",") for cell in row[-2:])] for row in rows[1:]]
    written = io.StringIO()
    csv.writer(written, delimiter=mark, lineterminator="\r\n").writerows(rows)
    assert same_results(imported(written.getvalue()), imported(text_of("csv")))
    with_log = imported(LOG + written.getvalue())
    assert same_results(with_log, imported(text_of("csv")))
    assert left_out(with_log) == 3
    assert left_out(imported(f"sep={mark}\n{written.getvalue()}")) == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("members", [1, 2])
def test_a_packed_file(form: str, members: int, tmp_path: Path) -> None:
    half = len(text_of(form)) // members
    parts = [text_of(form)[:half], text_of(form)[half:]]
    path = tmp_path / f"run.{form}.gz"
    path.write_bytes(b"".join(gzip.compress(part.encode()) for part in parts))
    (campaign,) = import_file(path)
    assert same_results(campaign, imported(text_of(form)))
    assert left_out(campaign) == 0


def test_a_packed_file_that_is_cut() -> None:
    packed = gzip.compress(text_of("jsonl").encode(), compresslevel=0)
    campaign = imported(packed[: len(packed) * 2 // 3])
    assert (len(campaign.runs), left_out(campaign)) == (12, 1)


def test_a_packed_file_that_is_damaged() -> None:
    with pytest.raises(UserError, match=r"x\.gz is damaged: "):
        imported(b"\x1f\x8b" + b"\xff" * 100, "x.gz")


@pytest.mark.slow
def test_a_packed_file_that_is_too_large() -> None:
    bomb = gzip.compress(bytes(1 << 20)) * 300
    with pytest.raises(UserError, match=r"x\.gz holds more than 256 MiB; split it"):
        imported(bomb, "x.gz")


def test_bytes_that_are_no_text_and_colours_of_a_terminal() -> None:
    campaign = imported(b"G\xe4rtner\n\x1b[0;35mwarning\x1b[0m\n" + text_of("csv").encode())
    assert same_results(campaign, imported(text_of("csv")))
    assert left_out(campaign) == 2


def test_rows_are_preferred_to_the_table_of_the_same_run() -> None:
    """As `llama-bench -o json -oe md 2>&1` writes them."""
    campaign = imported(text_of("md") + text_of("json"))
    assert same_results(campaign, imported(text_of("json")))
    assert left_out(campaign) == len([line for line in text_of("md").splitlines() if line])


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "sql"])
def test_a_whole_row_with_a_wrong_value_is_refused_with_log_lines_too(form: str) -> None:
    wrong = (
        text_of(form)
        .replace("gemma3 270M", "x")
        .replace('"n_gen": 0', '"n_gen": -1')
        .replace('"32","0","0"', '"-3","0","0"')
    )
    wrong = wrong.replace("'32', '0', '0'", "'-3', '0', '0'")
    with pytest.raises(UserError, match="a negative number of tokens"):
        imported(LOG + wrong)


@pytest.mark.parametrize(
    "text",
    [
        LOG,
        '{"n_prompt": 1, "n_gen": 0',
        '{"a": ' * 5000,
        '{"a": [\n' * 5000,
        '{"a": 1}\n' * 5000,
        "{\n" * 5000,
        "n_prompt;n_gen;avg_ns\n",
        "| model | test | t/s |\n| --- | --- | --- |\n| qwen2 | pp512 | 191",
    ],
)
def test_text_without_a_whole_row(text: str) -> None:
    with pytest.raises(UserError, match=r"^board\.log"):
        imported(LOG + text)


def test_hostile_sql_among_log_lines_does_nothing(tmp_path: Path) -> None:
    for statement in (
        f"ATTACH '{tmp_path / 'x'}' AS other;",
        "DROP TABLE llama_bench;",
        f"VACUUM INTO\n'{tmp_path / 'x'}';",
    ):
        with pytest.raises(UserError, match="is not llama-bench's sql"):
            imported(LOG + text_of("sql") + statement)
    assert not list(tmp_path.iterdir())


# Markdown tables


@pytest.mark.parametrize("name", ["llama-bench", "llama-bench-threads"])
def test_a_table_comes_back_as_it_was(name: str) -> None:
    text = (DATA / f"{name}.md").read_text(encoding="utf-8")
    assert export_campaigns([imported(text)], "md").text == text


TABLE = """
| model                |       size |     params | backend    | ngl | fa | test          |                  t/s |
| -------------------- | ---------: | ---------: | ---------- | --: | -: | ------------: | -------------------: |
| qwen2 1B Q4_0        | 403.20 MiB |   630.17 M | Vulkan     |  99 |  1 | pp512 @ d4096 |        191.53 ± 0.36 |
| llama 8B F16         |  14.96 GiB |     8.03 B | Vulkan     |   0 |  1 |   pp512+tg128 |          45.18 ± 0.06 |

build: b4c0549a4 (9352)
"""


def test_what_a_table_says() -> None:
    campaign = imported(TABLE)
    first, second = campaign.placements
    assert (first.unit, second.unit) == ("gpu", "cpu")
    assert first.build_version == "b4c0549a4 (9352)"
    assert first.model["name"] == "qwen2 1B Q4_0"
    assert (first.model["quantization"], first.model["parameters"]) == ("Q4_0", 630_170_000)
    assert second.model["size_bytes"] == round(14.96 * 1024**3)
    assert [run.samples[0].test.name for run in campaign.runs] == ["pp512 @ d4096", "pp512+tg128"]
    assert campaign.plan["notes"] == [
        "llama-bench: a Markdown table's rounded averages ± deviations; each is counted as one run"
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(" ± ", " +- "),
        lambda text: text.replace(" ± ", " Â± "),
        lambda text: text.replace("191.53 ± 0.36", "**191.53 ± 0.36**"),
        lambda text: "\n".join(line.strip("| ") for line in text.splitlines()),
        lambda text: "\n".join(f"> {line}" for line in text.splitlines()),
        lambda text: text.replace("pp512", "pp 512").replace("tg128", "tg 128"),
    ],
)
def test_a_table_as_pages_leave_it(change: Callable[[str], str]) -> None:
    campaign = imported(change(TABLE))
    assert campaign.runs == imported(TABLE).runs
    assert campaign.plan["llama_bench"] == imported(TABLE).plan["llama_bench"]
    assert left_out(campaign) == 0


def test_two_tables_have_each_its_build() -> None:
    campaign = imported("```\n" + TABLE + "```\nand later:\n" + TABLE.replace("b4c0549a4 (9352)", "0c1e570 (1)"))
    assert campaign.version == "b4c0549a4 (9352), 0c1e570 (1)"
    assert left_out(campaign) == 3


def test_a_table_with_another_head_is_no_result() -> None:
    with pytest.raises(UserError, match="holds no results that can be read"):
        imported("| PP | TG | N_KV | S_PP t/s |\n| --- | --- | --- | --- |\n| 512 | 128 | 0 | 191.5 |\n")


def test_a_tables_averages_are_marked_in_results_and_comparisons() -> None:
    table, measured = imported(TABLE), imported(text_of("json"))
    row = next(row for row in summarise(table) if row.estimate)
    assert estimate_text(row) == "192 (± 0.36) tokens/s"
    assert row.note == "a table's rounded average ± deviation"
    assert row.note in render_terminal([row], width=120, colour=False)
    assert row.note in json.loads(render_jsonl([row]))["note"]
    assert not any(row.note or row.estimate.deviation for row in summarise(measured) if row.estimate)
    again = imported(text_of("md"))
    for pair in ((again, measured), (measured, again)):
        (first, *_) = compare_placements(*((campaign, "llama.cpp/cpu") for campaign in pair))
        assert first.verdict.answer == "not comparable"
        assert first.verdict.reason == "llama.cpp/cpu is a table's rounded average, without its runs"
    assert export_campaigns([table], "csv").left_out[0].endswith(": that pp512 @ d4096 is a table's rounded average")
    (kept,) = import_campaigns(export_campaigns([table], "trilithon").text.encode(), "own")
    assert summarise(kept) == summarise(table)
