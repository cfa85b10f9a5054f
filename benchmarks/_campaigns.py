"""The real half of verdicts.py: whole campaigns of two placements, run by the bench itself and then compared."""

import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from _placements import configuration_with, demo_path

from trilithon.bench.campaign import run_campaign
from trilithon.bench.prepare import prepare
from trilithon.bench.setup import CampaignSetup
from trilithon.measure.records import Campaign, Test
from trilithon.measure.statistics import Answer
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.results.compare import compare_placements
from trilithon.results.store.database import Store

__all__ = ["found_slowdowns", "same_as_itself"]

# A real machine is noisier than the scripted engine's 1%.
_REAL_ROUNDS, _SCRIPTED_ROUNDS = 7, 5
_REAL_TESTS = (Test(kind="pp", prompt_tokens=128), Test(kind="tg", generated_tokens=48))


def same_as_itself(comparisons: int) -> Counter[Answer]:
    """A against A: the demo model on the CPU, twice in each campaign under two names; two tests, two comparisons."""
    configuration = configuration_with()
    answers: Counter[Answer] = Counter()
    while answers.total() < comparisons:
        plan = CampaignSetup(
            model=demo_path(configuration),
            tests=_REAL_TESTS,
            placements=("llama.cpp@embedded/cpu", "llama.cpp@embedded/cpu:fa=auto"),
            rounds=_REAL_ROUNDS,
            quality=False,
        )
        answers.update(_answers(plan))
        print(f"A against A: {dict(answers)}", file=sys.stderr)
    return answers


def found_slowdowns(comparisons: int, slowdown: float) -> Counter[Answer]:
    """A scripted placement beside one that decodes slower, with 1% noise a run: the answer is about the first."""
    answers: Counter[Answer] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_model(Path(folder) / "tiny.gguf")
        while answers.total() < comparisons:
            plan = CampaignSetup(
                model=model,
                tests=(Test(kind="tg", generated_tokens=64),),
                placements=("scripted/cpu:decode=200,noise=0.01", f"scripted/cpu:decode={200 / slowdown},noise=0.01"),
                rounds=_SCRIPTED_ROUNDS,
                quality=False,
            )
            answers.update(_answers(plan))
            print(f"slowdown: {dict(answers)}", file=sys.stderr)
    return answers


def _answers(plan: CampaignSetup) -> Iterator[Answer]:
    campaign = _measured(plan)
    first, second = (placement.name for placement in campaign.placements)
    for comparison in compare_placements((campaign, first), (campaign, second)):
        yield comparison.verdict.answer


def _measured(plan: CampaignSetup) -> Campaign:
    with tempfile.TemporaryDirectory() as folder:
        configuration = replace(configuration_with(), data=Path(folder))
        with Store.open(configuration.results_database) as store:
            prepared = prepare(plan, configuration)
            return store.campaign(asyncio.run(run_campaign(prepared, store, lambda step: None)))
