import json
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from trilithon.measure.metrics import METRICS
from trilithon.measure.records import Campaign, Failure, Outcome, PlacementRecord, QualityRecord, Run, Sample, Test
from trilithon.results.compare import (
    ComparisonRow,
    Estimate,
    compare_placements,
    counted_runs,
    differences,
    measured_tests,
    runs_note,
    summarise,
)
from trilithon.results.phrases import Phrases
from trilithon.results.report.plots import figures
from trilithon.results.statements import comparison_lines
from trilithon.results.table import render_jsonl, render_markdown, render_terminal
from trilithon.results.verdict import recommended, unplanned, verdict_sentence

PP, TG = Test(kind="pp", prompt_tokens=512), Test(kind="tg", generated_tokens=128)
CPU, NPU, GPU = "llama.cpp/cpu", "rk-llama.cpp/npu", "llama.cpp/gpu"
CRASH = Failure(kind="died", message="died after 3 tokens", cause="segmentation fault (SIGSEGV)")
GEMMA = {"name": "gemma-3-270m", "quantization": "Q4_K_M", "parameters": 268_000_000, "bytes_per_token": 200_000_000}
JITTER = (0.0, 0.4, -0.3, 0.2, -0.5, 0.1, -0.1, 0.3, -0.4, 0.5)


def decoded(rate: float) -> Sample:
    return Sample(test=TG, started_ns=0, finished_ns=1, decode_steps=1000, decode_ns=round(1000 / rate * 1e9))


def prefilled(rate: float) -> Sample:
    return Sample(test=PP, started_ns=0, finished_ns=1, prompt_evaluated=1000, prompt_ns=round(1000 / rate * 1e9))


def run(
    placement: str, number: int, *samples: Sample, outcome: Outcome = "finished", failure: Failure | None = None
) -> Run:
    return Run(
        placement=placement,
        round=number,
        outcome=outcome,
        started_ns=0,
        finished_ns=1,
        samples=samples,
        failure=failure,
    )


def runs(placement: str, decode: float, prefill: float = 0.0, count: int = 5, shift: int = 0) -> list[Run]:
    """Rates that scatter by half a per cent; `shift` gives each placement its own scatter."""
    found = []
    for number in range(count):
        factor = 1 + JITTER[(number + shift) % len(JITTER)] / 100
        samples = [prefilled(prefill * factor)] if prefill else []
        found.append(run(placement, number, *samples, decoded(decode * factor)))
    return found


def placement(name: str, quality: str | None = "same", **fields: object) -> PlacementRecord:
    record = PlacementRecord(
        name=name,
        engine=name.split("/")[0],
        build="b6100",
        build_version="6100",
        unit=name.split("/")[1],
        model=GEMMA,
        settings={},
        must_match={"board": "Orange Pi 5", "kernel": "6.1", "build": "b6100"},
        quality=None if quality is None else QualityRecord(verdict=quality, reference=CPU),  # type: ignore[arg-type]
    )
    return replace(record, **fields)  # type: ignore[arg-type]


def campaign(placements: list[PlacementRecord], found: list[Run], **fields: object) -> Campaign:
    whole = Campaign(
        id=1,
        started="2026-11-22T13:00:00Z",
        status="finished",
        source="trilithon",
        version="0.1.0",
        board={},
        plan={},
        placements=tuple(placements),
        runs=tuple(found),
    )
    return replace(whole, **fields)  # type: ignore[arg-type]


def estimate(row: ComparisonRow) -> Estimate:
    assert row.estimate is not None
    return row.estimate


def test_one_value_per_run_is_the_median_of_its_samples() -> None:
    rows = summarise(
        campaign([placement(CPU)], [run(CPU, n, decoded(9.0 + n), decoded(10.0 + n), decoded(99.0)) for n in range(3)])
    )
    assert len(rows) == 1
    found = estimate(rows[0])
    assert (found.median, found.low, found.high, found.runs) == pytest.approx((11, 10, 12, 3))
    assert (rows[0].model, rows[0].note) == ("gemma-3-270m Q4_K_M", "")


def test_rows_come_by_placement_then_test_then_metric() -> None:
    question = Sample(test=Test(kind="question", question="?"), started_ns=0, finished_ns=5)
    whole = campaign([placement(NPU), placement(CPU)], [run(CPU, 0, decoded(1), question), *runs(NPU, 2, 3)])
    rows = summarise(whole)
    assert [test.kind for test in measured_tests(whole)] == ["tg", "question", "pp"]
    names = [metric.name for kind in ("tg", "question", "pp") for metric in METRICS[kind]]
    assert [(row.placement, row.metric.name) for row in rows] == [(who, name) for who in (NPU, CPU) for name in names]
    assert [row.note for row in rows if row.placement == CPU and row.test.kind == "pp"] == ["was not measured"]


def test_two_runs_have_no_interval() -> None:
    found = estimate(summarise(campaign([placement(CPU)], runs(CPU, 10, count=2)))[0])
    assert (found.low, found.high, found.runs) == (None, None, 2)


def test_failed_and_skipped_runs_are_told_and_not_counted() -> None:
    broken = [run(CPU, n, decoded(1000), outcome="failed", failure=CRASH) for n in (3, 4)]
    row = summarise(campaign([placement(CPU)], [*runs(CPU, 10, count=3), *broken]))[0]
    assert estimate(row).median == pytest.approx(10)
    assert row.note == "failed 2 of 5: segmentation fault (SIGSEGV)"
    skipped = Failure(kind="skipped", message="does not fit in memory")
    row = summarise(campaign([placement(CPU)], [*broken, run(CPU, 5, outcome="skipped", failure=skipped)]))[0]
    assert row.estimate is None
    assert row.note == "failed 2 of 3: segmentation fault (SIGSEGV), skipped 1 of 3: does not fit in memory"


def test_a_run_without_the_figure_is_told() -> None:
    mute = Sample(test=TG, started_ns=0, finished_ns=1)
    row = summarise(campaign([placement(CPU)], [*runs(CPU, 10, count=4), run(CPU, 4, mute)]))[0]
    assert (estimate(row).runs, row.note) == (4, "no value in 1 of 5")


def test_a_side_without_the_figure_is_not_comparable() -> None:
    mute = [run(NPU, n, Sample(test=TG, started_ns=0, finished_ns=1)) for n in range(2)]
    whole = campaign([placement(CPU), placement(NPU)], [*runs(CPU, 10), *mute])
    for sides in (((whole, CPU), (whole, NPU)), ((whole, NPU), (whole, CPU))):
        verdict = compare_placements(*sides)[0].verdict
        assert (verdict.answer, verdict.reason) == ("not comparable", "rk-llama.cpp/npu no value in 2 of 2")


def test_a_run_that_was_cut_off_counts_unless_its_round_was_run_again() -> None:
    killed = Failure(kind="interrupted", message="interrupted")
    cut_off = [run(CPU, n, outcome="failed", failure=killed) for n in (0, 1)]
    crashed = run(CPU, 2, outcome="failed", failure=CRASH)
    others = [run(CPU, 0, decoded(10)), crashed, run(CPU, 2, decoded(10)), run(NPU, 1, decoded(10))]
    whole = campaign([placement(CPU), placement(NPU)], [*cut_off, *others])
    assert counted_runs(whole) == [cut_off[1], *others]


def test_runs_of_other_tests_do_not_count() -> None:
    """llama-bench's imports have one test per run."""
    found = [run(CPU, n, prefilled(100)) for n in range(5)] + [run(CPU, n, decoded(10)) for n in range(5)]
    rows = summarise(campaign([placement(CPU)], found, source="llama-bench"))
    assert [(row.test, estimate(row).runs, row.note) for row in rows] == [(PP, 5, ""), (TG, 5, "")]


def test_fraction_of_bandwidth_stands_only_with_decode() -> None:
    whole = campaign([placement(CPU, bandwidth_bytes_per_second=20e9)], runs(CPU, 43, 500))
    assert [row.fraction_of_bandwidth for row in summarise(whole)] == [None, pytest.approx(0.43)]
    assert [row.fraction_of_bandwidth for row in summarise(campaign([placement(CPU)], runs(CPU, 43, 500)))] == [
        None
    ] * 2


@pytest.mark.parametrize(
    ("bandwidth", "model", "fraction"),
    [(1.0, GEMMA, 43 * 2e8), (2e9, GEMMA | {"bytes_per_token": 1}, 43 / 2e9), (-1.0, GEMMA, None), (0.0, GEMMA, None)]
    + [(20e9, GEMMA | {"bytes_per_token": wrong}, None) for wrong in (None, 0, -1)],
)
def test_a_fraction_needs_figures_above_zero(
    bandwidth: float, model: dict[str, object], fraction: float | None
) -> None:
    whole = campaign([placement(CPU, model=model, bandwidth_bytes_per_second=bandwidth)], runs(CPU, 43))
    (row,) = summarise(whole)
    known = row.implausible_bandwidth or row.fraction_of_bandwidth  # the first above 1
    assert known == (fraction if fraction is None else pytest.approx(fraction))


@pytest.mark.parametrize(("tokens", "percent"), [(100.4, "100.4%"), (119.6, "119.6%")])
def test_more_than_the_bandwidth_is_implausible(tokens: float, percent: str) -> None:
    record = placement(CPU, None, bandwidth_bytes_per_second=20e9)
    whole = campaign([record], runs(CPU, tokens, 500))
    _, row = rows = summarise(whole)
    assert row.fraction_of_bandwidth is None
    assert f"{percent}: implausible" in render_terminal(rows, width=120, colour=False)
    assert f"{percent}: implausible" in render_markdown(rows)
    assert json.loads(render_jsonl(rows).splitlines()[1])["fraction_of_bandwidth"] is None
    assert f", an implausible {percent} of the memory bandwidth" in verdict_sentence(whole)
    assert "bandwidth-tg128" not in figures(rows)
    russian = verdict_sentence(whole, Phrases("ru"))
    assert f", {percent[:-1].replace('.', ',')} % пропускной способности памяти, что неправдоподобно" in russian


def test_only_the_cpu_and_plain_decode_have_a_fraction_of_the_bandwidth() -> None:
    for name, settings in ((NPU, {}), ("llama.cpp/gpu", {}), (CPU, {"speculation": "ngram-mod"})):
        record = placement(name, bandwidth_bytes_per_second=20e9, settings=settings)
        _, row = summarise(campaign([record], runs(name, 119, 500)))
        assert (row.fraction_of_bandwidth, row.implausible_bandwidth) == (None, None)


def test_at_a_depth_the_weights_alone_are_no_measure_of_bandwidth() -> None:
    deep = [run(CPU, n, replace(decoded(43), test=replace(TG, depth=4096))) for n in range(5)]
    (row,) = summarise(campaign([placement(CPU, bandwidth_bytes_per_second=20e9)], deep))
    assert row.estimate is not None
    assert row.fraction_of_bandwidth is None


def test_two_placements_of_one_campaign() -> None:
    whole = campaign(
        [placement(CPU), placement(NPU, must_match={"board": "Orange Pi 5"})],
        runs(CPU, 50, 100) + runs(NPU, 40, 300, shift=3),
    )
    found = compare_placements((whole, CPU), (whole, NPU))
    assert [(one.test, one.verdict.answer) for one in found] == [(PP, "worse"), (TG, "better")]
    assert found[1].verdict.ratio is not None
    assert found[1].verdict.ratio.ratio == pytest.approx(1.25, rel=0.01)
    assert found[0].differs == ("kernel 6.1 → unknown", "build b6100 → unknown")


def test_every_metric_on_request() -> None:
    asked = Test(kind="question", question="?")
    answers = [
        run(
            CPU,
            n,
            Sample(test=asked, started_ns=0, finished_ns=10**9 + n, answer_at_ns=(5, 10**8 + n), answer_text="a b"),
        )
        for n in range(5)
    ]
    whole = campaign([placement(CPU)], answers)
    assert [one.metric.name for one in compare_placements((whole, CPU), (whole, CPU))] == ["words_per_second"]
    found = compare_placements((whole, CPU), (whole, CPU), every_metric=True)
    answers_by_name = {one.metric.name: one.verdict.answer for one in found}
    assert list(answers_by_name) == [metric.name for metric in METRICS["question"]]
    assert answers_by_name["tokens_per_second"] == "not comparable"
    assert answers_by_name["total_seconds"] == answers_by_name["words"] == "same"


def answered(placement: str, words: int, *others: Sample) -> list[Run]:
    """`words` in about a second, five times."""
    asked = Test(kind="question", question="?")
    return [
        run(
            placement,
            number,
            Sample(
                test=asked,
                started_ns=0,
                finished_ns=10**9 + number * 10**6,
                answer_at_ns=(5, 10**9 + number * 10**6),
                answer_text="a " * words,
            ),
            *others,
        )
        for number in range(5)
    ]


def test_the_question_decides_where_it_alone_was_put_to_all() -> None:
    """As to what guesses ahead: after a random prompt that says nothing."""
    guessing = f"{CPU}:spec=ngram-mod"
    whole = campaign(
        [placement(CPU, "reference"), placement(guessing)], answered(CPU, 10, decoded(50)) + answered(guessing, 30)
    )
    said = verdict_sentence(whole)
    assert said.startswith(f"{guessing} is the recommended placement: words per second"), said
    assert "3.00 times as fast as llama.cpp/cpu" in said
    assert "was not measured" not in said
    # Where decode was measured of all, it decides.
    both = answered(CPU, 10, decoded(50)) + answered(guessing, 30, decoded(40))
    assert verdict_sentence(replace(whole, runs=tuple(both))).startswith(f"{CPU} is the recommended placement: decode")
    # One that failed in the question does not make it the less complete test.
    failed = answered(CPU, 10, decoded(50)) + runs(guessing, 40)
    assert verdict_sentence(replace(whole, runs=tuple(failed))).startswith(
        f"{CPU} is the recommended placement: decode"
    )


def test_rounds_of_one_campaign_are_paired_and_those_of_two_are_not() -> None:
    drift = [1 + n / 20 for n in range(10)]
    ours = [run(CPU, n, decoded(50 * drift[n] * (1 + JITTER[n] / 100))) for n in range(10)]
    theirs = [run(NPU, n, decoded(47 * drift[n])) for n in range(10)]
    whole = campaign([placement(CPU), placement(NPU)], [*ours, *reversed(theirs)])
    assert compare_placements((whole, CPU), (whole, NPU))[0].verdict.answer == "better"
    other = replace(whole, id=2)
    assert compare_placements((whole, CPU), (other, NPU))[0].verdict.answer == "same"
    imported = replace(whole, source="llama-bench")
    assert compare_placements((imported, CPU), (imported, NPU))[0].verdict.answer == "same"
    fewer = replace(whole, runs=whole.runs[:-1])
    assert compare_placements((fewer, CPU), (fewer, NPU))[0].verdict.answer == "same"


def test_rounds_are_paired_by_their_number_in_whatever_order_they_were_stored() -> None:
    drift = [1 + n / 20 for n in range(10)]
    ours = [run(CPU, n, decoded(50 * drift[n] * (1 + JITTER[n] / 100))) for n in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)]
    theirs = [run(NPU, n, decoded(47 * drift[n])) for n in range(10)]
    whole = campaign([placement(CPU), placement(NPU)], [*ours, *theirs])
    verdict = compare_placements((whole, CPU), (whole, NPU))[0].verdict
    assert verdict.ratio is not None
    assert (verdict.answer, verdict.ratio.method) == ("better", "Wilcoxon")


@pytest.mark.parametrize(
    ("ours", "theirs"), [([*range(10), 9], range(10)), ([*range(9), 8], range(10)), ([*range(10), 9], [*range(10), 9])]
)
def test_rounds_are_not_paired_where_a_side_has_one_twice(ours: Sequence[int], theirs: Sequence[int]) -> None:
    drifting = [run(CPU, n, decoded(50 * (1 + n / 20) * (1 + JITTER[n] / 100))) for n in ours]
    drifting += [run(NPU, n, decoded(47 * (1 + n / 20))) for n in theirs]
    whole = campaign([placement(CPU), placement(NPU)], drifting)
    verdict = compare_placements((whole, CPU), (whole, NPU))[0].verdict
    assert verdict.ratio is not None
    assert (verdict.answer, verdict.ratio.method) == ("same", "Mann-Whitney")


def test_what_failed_is_not_comparable_and_says_why() -> None:
    whole = campaign([placement(CPU), placement(NPU)], [*runs(CPU, 50), run(NPU, 0, outcome="failed", failure=CRASH)])
    found = compare_placements((whole, CPU), (whole, NPU))[0].verdict
    assert found.answer == "not comparable"
    assert found.reason == "rk-llama.cpp/npu failed 1 of 1: segmentation fault (SIGSEGV)"


@pytest.mark.parametrize(
    ("other", "comparable"),
    [
        (GEMMA | {"quantization": "Q8_0"}, True),
        (GEMMA | {"name": "Gemma 3 270M", "parameters": 270_000_000}, True),
        (GEMMA | {"parameters": None}, True),
        ({"name": "GEMMA-3-270M"}, True),
        (GEMMA | {"name": "tied", "parameters": 273_360_000}, True),  # 2% more: its embedding counted twice
        (GEMMA | {"parameters": 273_360_001}, False),
        (GEMMA | {"parameters": 310_000_000}, False),
        (GEMMA | {"name": "qwen3-0.6b", "parameters": None}, False),
        (GEMMA | {"architecture": "qwen3"}, False),
        ({"name": "gemma-3-270m", "architecture": "unknown"}, True),  # a converted file does not say
        ({"name": "renamed", "sha256": "ab"}, True),
    ],
)
def test_only_files_of_one_model_are_comparable(other: dict[str, object], comparable: bool) -> None:
    ours = placement(CPU, model=GEMMA | {"architecture": "gemma3", "sha256": "ab"})
    whole = campaign([ours, placement(NPU, model=other)], runs(CPU, 50) + runs(NPU, 40))
    found = compare_placements((whole, CPU), (whole, NPU))[0].verdict
    assert (found.answer == "better") == comparable
    assert comparable or found.reason.startswith("different models: gemma-3-270m and ")
    swapped = compare_placements((whole, NPU), (whole, CPU))[0].verdict
    assert swapped.answer == ("worse" if comparable else "not comparable")


def test_other_boards_are_compared_and_the_difference_is_told() -> None:
    ours = campaign([placement(CPU)], runs(CPU, 50))
    elsewhere = placement(CPU, must_match={"board": "Rock 5B", "kernel": "6" * 40, "build": "b" * 64})
    found = compare_placements((ours, CPU), (campaign([elsewhere], runs(CPU, 40), id=2), CPU))[0]
    assert found.verdict.answer == "better"
    assert found.differs == ("board Orange Pi 5 → Rock 5B", f"kernel 6.1 → {'6' * 40}", f"build b6100 → {'b' * 39}…")


def test_results_of_two_programs_differ_in_what_both_know() -> None:
    ours = campaign([placement(CPU)], runs(CPU, 50))
    theirs = placement(CPU, must_match={"kernel": "6.12", "n_threads": "4"})
    imported = campaign([theirs], runs(CPU, 50), id=2, source="llama-bench")
    found = compare_placements((ours, CPU), (imported, CPU))[0]
    assert found.differs == ("measured by trilithon → llama-bench", "kernel 6.1 → 6.12")


def test_settings_that_two_programs_both_know_are_held_against_each_other() -> None:
    settings = {"threads": 4, "micro_batch": 512, "context": 4096, "batch": 8, "llama_bench": {}, "cpus": [0]}
    ours = campaign([placement(CPU, settings=settings)], runs(CPU, 50))
    known = {"threads": 2, "micro_batch": 256, "batch": None, "llama_bench": {"poll": 50}, "cpus": [1]}
    imported = campaign([placement(CPU, settings=known)], runs(CPU, 50), id=2, source="llama-bench")
    found = compare_placements((ours, CPU), (imported, CPU))[0]
    assert found.differs == ("measured by trilithon → llama-bench", "threads 4 → 2", "micro batch 512 → 256")


def test_only_tests_that_both_have_are_compared() -> None:
    deep = replace(TG, depth=4096)
    ours = campaign([placement(CPU)], runs(CPU, 50))
    theirs = campaign([placement(CPU)], [run(CPU, n, replace(decoded(50), test=deep)) for n in range(5)], id=2)
    assert compare_placements((ours, CPU), (theirs, CPU)) == []


def test_unknown_placement() -> None:
    whole = campaign([placement(CPU)], runs(CPU, 50))
    with pytest.raises(KeyError, match="rkllm/npu"):
        compare_placements((whole, CPU), (whole, "rkllm/npu"))


def test_nothing_differs_from_itself() -> None:
    assert differences(placement(CPU), placement(CPU)) == ()


def test_note_on_a_placement_as_a_whole() -> None:
    whole = campaign([placement(CPU), placement(NPU)], runs(CPU, 50))
    assert (runs_note(whole, CPU), runs_note(whole, NPU)) == ("", "was not measured")


# The sentence


def test_the_fastest_right_placement_is_the_one_to_use() -> None:
    whole = campaign(
        [placement(NPU), placement(CPU, "reference")], runs(CPU, 52.1, 100) + runs(NPU, 39.7, 300, shift=3)
    )
    assert verdict_sentence(whole) == (
        "llama.cpp/cpu is the recommended placement: decode 52.1 tokens/s, 1.31 times as fast as rk-llama.cpp/npu"
        " (1.30–1.32) and its answers are the reference; prefill is fastest on rk-llama.cpp/npu (3.00 times)."
    )


def test_the_only_placement() -> None:
    alone = placement(CPU, None, bandwidth_bytes_per_second=20e9)
    assert verdict_sentence(campaign([alone], runs(CPU, 43, 100))) == (
        "llama.cpp/cpu is the only placement measured: decode 43.0 tokens/s, 43% of the memory bandwidth"
        " and its answers could not be checked."
    )


def test_broken_is_never_recommended_however_fast() -> None:
    whole = campaign([placement(CPU), placement(NPU, "broken")], runs(CPU, 10) + runs(NPU, 90))
    found = verdict_sentence(whole)
    assert found.startswith(
        "llama.cpp/cpu is the recommended placement: decode 10.0 tokens/s and its answers match the reference"
    )
    assert found.endswith("; rk-llama.cpp/npu is faster, but its answers are broken.")
    assert verdict_sentence(campaign([placement(NPU, "broken")], runs(NPU, 90))) == (
        "No placement can be recommended: rk-llama.cpp/npu is excluded: its answers are broken."
    )


def test_degraded_yields_to_right_and_is_named_where_it_is_all_there_is() -> None:
    both = campaign([placement(CPU), placement(NPU, "degraded")], runs(CPU, 10) + runs(NPU, 90))
    assert verdict_sentence(both).endswith("; rk-llama.cpp/npu is faster, but its answers are degraded.")
    alone = verdict_sentence(campaign([placement(NPU, "degraded")], runs(NPU, 90)))
    assert (
        alone == "rk-llama.cpp/npu is the only placement measured: decode 90.0 tokens/s and its answers are degraded."
    )


def test_a_tie_is_said_to_be_one() -> None:
    whole = campaign([placement(CPU), placement(GPU)], runs(CPU, 20) + runs(GPU, 20.01, shift=3))
    found = verdict_sentence(whole)
    assert found.startswith(
        "llama.cpp/gpu is the recommended placement: decode 20.0 tokens/s, a tie with llama.cpp/cpu (20.0"
    )


def test_prefill_breaks_a_tie() -> None:
    whole = campaign([placement(CPU), placement(NPU)], runs(CPU, 20.01, 100) + runs(NPU, 20, 300, shift=3))
    found = verdict_sentence(whole)
    assert found.startswith("rk-llama.cpp/npu is the recommended placement")
    assert "a tie with llama.cpp/cpu" in found
    assert "its prefill is the fastest too, 300 tokens/s" in found


def test_too_few_runs_do_not_make_a_winner() -> None:
    whole = campaign([placement(CPU), placement(NPU)], runs(CPU, 50, count=2) + runs(NPU, 40, count=2))
    assert verdict_sentence(whole) == (
        "llama.cpp/cpu is probably the best placement: decode 50.1 tokens/s, against 40.1 tokens/s on"
        " rk-llama.cpp/npu (not comparable: 2 runs on each side; at least 5 on each side are needed)"
        " and its answers match the reference."
    )


def test_failures_are_told() -> None:
    crashed = [run(NPU, n, outcome="failed", failure=CRASH) for n in range(2)]
    whole = campaign([placement(CPU), placement(NPU)], [*runs(CPU, 50), *crashed])
    found = verdict_sentence(whole)
    assert found.startswith("llama.cpp/cpu is the only placement that worked: decode 50.0 tokens/s")
    assert found.endswith("; rk-llama.cpp/npu failed 2 of 2: segmentation fault (SIGSEGV).")
    nothing = campaign([placement(NPU)], crashed)
    assert (
        verdict_sentence(nothing)
        == "No placement worked: rk-llama.cpp/npu failed 2 of 2: segmentation fault (SIGSEGV)."
    )


def test_a_leader_that_failed_now_and_then_does_not_hide_it() -> None:
    whole = campaign([placement(CPU)], [*runs(CPU, 50), run(CPU, 5, outcome="failed", failure=CRASH)])
    assert "though it failed 1 of 6: segmentation fault" in verdict_sentence(whole)


def test_nothing_measured() -> None:
    assert verdict_sentence(campaign([placement(CPU)], [])) == "Nothing was measured."


def test_one_sentence_per_model() -> None:
    other = placement(NPU, model={"name": "qwen3-0.6b"})
    found = verdict_sentence(campaign([placement(CPU), other], runs(CPU, 50) + runs(NPU, 20)))
    assert found.startswith("gemma-3-270m: llama.cpp/cpu is the only")
    assert " qwen3-0.6b: rk-llama.cpp/npu is the only" in found


def test_lower_is_better_is_told_as_speed() -> None:
    cold = Test(kind="cold")
    found = [
        run(
            name, n, Sample(test=cold, started_ns=0, finished_ns=1, marks={"load_warm_ns": seconds * 10**9 + n * 10**6})
        )
        for name, seconds in ((CPU, 1), (NPU, 2))
        for n in range(5)
    ]
    text = verdict_sentence(campaign([placement(CPU), placement(NPU)], found))
    assert text.startswith(
        "llama.cpp/cpu is the recommended placement: load, file in the page cache 1.00 s, 2.00 times as fast"
    )


def test_the_recommended_placement_is_the_sentences() -> None:
    """What is alone is no plan."""
    both = campaign([placement(CPU), placement(NPU)], runs(CPU, 50) + runs(NPU, 20))
    (found,) = recommended(both)
    assert (found.name, found.decided_by, found.rounds, found.compared) == (CPU, "tg", 5, True)
    assert recommended(campaign([placement(CPU)], runs(CPU, 43))) == []
    broken = campaign([placement(CPU), placement(NPU, "broken")], runs(CPU, 20) + runs(NPU, 90))
    assert [each.name for each in recommended(broken)] == [CPU]
    few = campaign([placement(CPU), placement(NPU)], runs(CPU, 50, count=2) + runs(NPU, 20, count=2))
    assert [(each.name, each.rounds, each.compared) for each in recommended(few)] == [(CPU, 2, False)]
    assert recommended(campaign([placement(CPU)], [])) == []


@pytest.mark.parametrize(
    ("verdict", "answers"),
    [("unknown", "could not be checked"), (None, "could not be checked"), ("degraded", "are degraded")],
)
def test_only_what_answers_as_the_reference_does_is_recommended(verdict: str | None, answers: str) -> None:
    """The fastest is named all the same, with the reason."""
    nothing = campaign([placement(CPU, verdict), placement(NPU, verdict)], runs(CPU, 50) + runs(NPU, 20, shift=3))
    assert recommended(nothing) == []
    assert verdict_sentence(nothing) == (
        "llama.cpp/cpu is the fastest placement, but is not recommended: decode 50.0 tokens/s, 2.50 times as fast as"
        f" rk-llama.cpp/npu (2.48–2.52) and its answers {answers}."
    )
    ((record, reason),) = unplanned(nothing)
    assert (record.name, reason) == (CPU, f"its answers {answers}")
    sound = campaign([placement(CPU, verdict), placement(NPU)], runs(CPU, 50) + runs(NPU, 20))
    assert [each.name for each in recommended(sound)] == [NPU]
    assert unplanned(sound) == []
    said = verdict_sentence(sound)
    assert said.startswith("rk-llama.cpp/npu is the recommended placement")
    assert said.endswith(f"; llama.cpp/cpu is faster, but its answers {answers}.")


@pytest.mark.parametrize("fast", ["scripted/npu", "scripted/npu+llama.cpp/cpu"])
def test_an_engine_that_has_to_be_named_is_never_recommended(fast: str) -> None:
    halves = fast.split("+")
    record = placement(fast, engine=halves[-1].split("/")[0])
    if len(halves) > 1:
        record = replace(record, must_match={**record.must_match, "prefill build": "scripted 0.1.0"})
    sound = campaign([placement(CPU, "reference"), record], runs(CPU, 20) + runs(fast, 90))
    assert [each.name for each in recommended(sound)] == [CPU]
    assert verdict_sentence(sound).endswith(f"; {fast} is faster, but its engine is used only where it is named.")
    alone = campaign([placement(CPU, "unknown"), record], runs(CPU, 20) + runs(fast, 90))
    assert recommended(alone) == []
    assert [(told.name, reason) for told, reason in unplanned(alone)] == [
        (fast, "its engine is used only where it is named")
    ]
    assert "its engine is used only where it is named" in verdict_sentence(alone)
    assert f"{fast} is the fastest placement, but is not recommended" in verdict_sentence(alone)


# -- in another language


DIED = [run(NPU, number, outcome="failed", failure=CRASH) for number in range(2)]


@pytest.mark.parametrize(
    ("whole", "said"),
    [
        (
            campaign(
                [placement(NPU), placement(CPU, "reference")], runs(CPU, 52.1, 100) + runs(NPU, 39.7, 300, shift=3)
            ),
            (
                "Рекомендуемое размещение — llama.cpp/cpu: генерация — 52,1 токен/с, в 1,31 раза быстрее,"
                " чем rk-llama.cpp/npu (1,30–1,32), его ответы служат эталоном; префилл"
                " быстрее всех у rk-llama.cpp/npu (в 3,00 раза)."
            ),
        ),
        (
            campaign([placement(CPU, None, bandwidth_bytes_per_second=20e9)], runs(CPU, 43, 100)),
            (
                "Измерено только llama.cpp/cpu: генерация — 43,0 токен/с, 43 % пропускной способности памяти,"
                " ответы проверить не удалось."
            ),
        ),
        (
            campaign([placement(CPU, "reference")], runs(CPU, 43)),
            "Измерено только llama.cpp/cpu: генерация — 43,0 токен/с, сравнить ответы было не с чем.",
        ),
        (
            campaign([placement(CPU), placement(NPU, "broken")], runs(CPU, 10) + runs(NPU, 90)),
            (
                "Рекомендуемое размещение — llama.cpp/cpu: генерация — 10,0 токен/с, ответы совпадают с эталоном;"
                " rk-llama.cpp/npu быстрее, но ответы испорчены."
            ),
        ),
        (
            campaign([placement(NPU, "broken")], runs(NPU, 90)),
            "Рекомендовать нечего: rk-llama.cpp/npu исключено: ответы испорчены.",
        ),
        (
            campaign([placement(CPU), placement(NPU)], runs(CPU, 20.01, 100) + runs(NPU, 20, 300, shift=3)),
            (
                "Рекомендуемое размещение — rk-llama.cpp/npu: генерация — 20,0 токен/с, наравне с llama.cpp/cpu (20,0"
                " токен/с), ответы совпадают с эталоном; префилл тоже самый быстрый, 300 токен/с."
            ),
        ),
        (
            campaign([placement(CPU), placement(NPU)], [*runs(CPU, 50), *DIED]),
            (
                "Заработало только llama.cpp/cpu: генерация — 50,0 токен/с, ответы совпадают с эталоном;"
                " rk-llama.cpp/npu — неудачных прогонов 2 из 2: segmentation fault (SIGSEGV)."
            ),
        ),
        (
            campaign([placement(NPU)], DIED),
            (
                "Ни одно размещение не заработало: rk-llama.cpp/npu — неудачных прогонов 2 из 2: segmentation fault"
                " (SIGSEGV)."
            ),
        ),
        (
            campaign([placement(CPU)], [*runs(CPU, 50), run(CPU, 5, outcome="failed", failure=CRASH)]),
            (
                "Измерено только llama.cpp/cpu: генерация — 50,0 токен/с, ответы совпадают с эталоном, но неудачных"
                " прогонов 1 из 6: segmentation fault (SIGSEGV)."
            ),
        ),
        (
            campaign([placement(CPU, "unknown"), placement(NPU, None)], runs(CPU, 50) + runs(NPU, 20)),
            (
                "llama.cpp/cpu быстрее остальных, но не рекомендуется: генерация — 50,0 токен/с, в 2,50 раза быстрее,"
                " чем rk-llama.cpp/npu (2,48–2,52), ответы проверить не удалось."
            ),
        ),
        (
            campaign(
                [placement(CPU), placement(NPU, "unknown"), placement("scripted/gpu")],
                runs(CPU, 20) + runs(NPU, 50) + runs("scripted/gpu", 60),
            ),
            (
                "Рекомендуемое размещение — llama.cpp/cpu: генерация — 20,0 токен/с, ответы совпадают с эталоном;"
                " scripted/gpu быстрее, но его движок запускается, только если его назвать; rk-llama.cpp/npu быстрее,"
                " но ответы проверить не удалось."
            ),
        ),
        (campaign([placement(CPU)], []), "Ничего не измерено."),
    ],
)
def test_the_same_is_said_in_russian(whole: Campaign, said: str) -> None:
    assert verdict_sentence(whole, Phrases("ru")) == said


def test_a_comparison_in_russian() -> None:
    whole = campaign([placement(CPU), placement(NPU)], runs(CPU, 50) + runs(NPU, 40, shift=3))
    assert comparison_lines(whole, Phrases("ru")) == [
        (
            "tg128, Генерация: rk-llama.cpp/npu в сравнении с llama.cpp/cpu: хуже, отношение 0,801 (0,794–0,806)"
            " — на 19,9 % меньше (p = 0,0079)"
        )
    ]
    few = campaign([placement(CPU), placement(NPU)], runs(CPU, 50, count=2) + runs(NPU, 40, count=2))
    (line,) = comparison_lines(few, Phrases("ru"))
    assert ": несравнимо — прогонов с каждой стороны 2, нужно не меньше 5" in line


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", r"; a difference of 3% takes about \d\d runs on each side"),
        ("ru", r"; для разницы в 3 % нужно около \d\d прогонов с каждой стороны"),
    ],
)
def test_a_report_says_how_many_runs_find_a_small_difference(language: str, words: str) -> None:
    """The campaign's lines are those of the report and of its page."""
    rates = [99.0, 101.0, 100.0, 98.0, 102.0, 97.5, 102.5]
    recorded = [run(name, n, decoded(rate)) for name in (CPU, NPU) for n, rate in enumerate(rates)]
    (line,) = comparison_lines(campaign([placement(CPU), placement(NPU)], recorded), Phrases(language))
    assert re.search(words, line)
    quiet = [run(name, n, decoded(100 + n / 10)) for name in (CPU, NPU) for n in range(7)]
    (line,) = comparison_lines(campaign([placement(CPU), placement(NPU)], quiet), Phrases(language))
    assert "; " not in line
