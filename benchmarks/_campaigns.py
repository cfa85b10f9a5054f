"""The real half of verdicts.py: campaigns of two placements, run as `trilithon bench` runs them and then compared."""

import asyncio
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from _figures import CannotMeasure
from _placements import configuration_with, demo_path

from trilithon.bench.campaign import run_campaign
from trilithon.bench.prepare import prepare
from trilithon.bench.setup import CampaignSetup
from trilithon.measure.records import Campaign, Test
from trilithon.measure.statistics import Answer
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.results.compare import compare_placements
from trilithon.results.store.database import Store

__all__ = ["answers_for_itself", "answers_for_slower"]

# A real machine is noisier than the scripted engine's 1%.
_REAL_ROUNDS, _SCRIPTED_ROUNDS = 7, 5
_REAL_TESTS = (Test(kind="pp", prompt_tokens=128), Test(kind="tg", generated_tokens=48))


def answers_for_itself(comparisons: int) -> Counter[Answer]:
    """The demo model on the CPU, twice in each campaign under two names; two tests make two comparisons."""
    setup = CampaignSetup(
        model=demo_path(configuration_with()),
        tests=_REAL_TESTS,
        placements=("llama.cpp@embedded/cpu", "llama.cpp@embedded/cpu:fa=auto"),
        rounds=_REAL_ROUNDS,
        quality=False,
    )
    return _answers(setup, comparisons, "A and A")


def answers_for_slower(comparisons: int, slowdown: float) -> Counter[Answer]:
    """A scripted placement and one that decodes slower, with 1% noise a run: the answer is about the first."""
    with tempfile.TemporaryDirectory() as folder:
        setup = CampaignSetup(
            model=write_tiny_model(Path(folder) / "tiny.gguf"),
            tests=(Test(kind="tg", generated_tokens=64),),
            placements=("scripted/cpu:decode=200,noise=0.01", f"scripted/cpu:decode={200 / slowdown},noise=0.01"),
            rounds=_SCRIPTED_ROUNDS,
            quality=False,
        )
        return _answers(setup, comparisons, "slowdown")


def _answers(setup: CampaignSetup, comparisons: int, title: str) -> Counter[Answer]:
    answers: Counter[Answer] = Counter()
    while answers.total() < comparisons:
        answers.update(_answers_of(_measured(setup)))
        print(f"{title}: {dict(answers)}", file=sys.stderr)
    return answers


def _answers_of(campaign: Campaign) -> list[Answer]:
    first, second = (placement.name for placement in campaign.placements)
    answers = [pair.verdict.answer for pair in compare_placements((campaign, first), (campaign, second))]
    if not answers:  # it would be so in every further campaign
        failures = dict.fromkeys(run.failure.message for run in campaign.runs if run.failure)
        raise CannotMeasure(f"a campaign gave nothing to compare: {'; '.join(failures)}")
    return answers


def _measured(setup: CampaignSetup) -> Campaign:
    with tempfile.TemporaryDirectory() as folder:
        configuration = replace(configuration_with(), data=Path(folder))
        with Store.open(configuration.results_database) as store:
            prepared = prepare(setup, configuration)
            return store.campaign(asyncio.run(run_campaign(prepared, store, lambda step: None)))
