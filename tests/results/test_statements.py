from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from trilithon.measure.records import Campaign, Outcome, Run, Sample, Test
from trilithon.results.statements import remark_lines, warning_lines

BUSY = "other programs used 30% of one CPU"
SAFER = "runs with flash attention off"
NAME = "rkllm/npu"


def with_runs(
    campaign: Campaign, *told: tuple[Sequence[str], Sequence[str]], outcome: Outcome = "finished"
) -> Campaign:
    runs = [
        Run(
            placement=NAME,
            round=number,
            outcome=outcome,
            started_ns=0,
            finished_ns=1,
            warnings=tuple(warnings),
            remarks=tuple(remarks),
        )
        for number, (warnings, remarks) in enumerate(told)
    ]
    return replace(campaign, runs=tuple(runs))


@pytest.fixture
def campaign(example: Any) -> Campaign:
    found: Campaign = example.campaign
    return found


def test_what_disturbed_is_counted_and_the_worst_run_tells_how(campaign: Campaign) -> None:
    found = with_runs(campaign, ([BUSY], []), ([BUSY, "swapped 3 MiB in"], []), ([], []))
    assert warning_lines(found) == [f"{NAME}: 2 of 3 runs were disturbed, one by this: {BUSY}; swapped 3 MiB in"]


def test_a_remark_disturbs_nothing_and_is_told_once(campaign: Campaign) -> None:
    found = with_runs(campaign, ([], [SAFER]), ([], [SAFER, SAFER]), ([], [SAFER, "cold load not measured"]))
    assert warning_lines(found) == []
    assert remark_lines(found) == [f"{NAME}: {SAFER}", f"{NAME}: cold load not measured (1 of 3 runs)"]


def test_how_much_was_guessed_right_is_told_of_all_runs(campaign: Campaign) -> None:
    guessing = tuple(
        replace(placement, settings={"speculation": "ngram-mod"}) if placement.name == NAME else placement
        for placement in campaign.placements
    )
    found = with_runs(replace(campaign, placements=guessing), ([], []), ([], []))
    assert remark_lines(found) == [f"{NAME}: no tokens were drafted"]
    asked = Sample(test=Test(kind="question", question="?"), started_ns=0, finished_ns=1)
    samples = [
        replace(asked, marks={"guessed_tokens": 1000, "guessed_right_tokens": right} if right else {})
        for right in (900, 0, 300)
    ]
    found = replace(found, runs=tuple(replace(run, samples=tuple(samples)) for run in found.runs))
    assert remark_lines(found) == [f"{NAME}: 4,000 tokens were drafted, 60% of them accepted"]


def test_runs_that_were_skipped_do_not_count(campaign: Campaign) -> None:
    found = with_runs(campaign, ([], ["failed 2 times in a row"]), outcome="skipped")
    assert warning_lines(found) == remark_lines(found) == []
