"""`trilithon tune`: the words of a tune; the work is done in trilithon.tune."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from trilithon.cli.models.absent import YES
from trilithon.cli.models.commands import complete_model_or_file
from trilithon.cli.output import say, shown
from trilithon.errors import UserError
from trilithon.language import Message
from trilithon.units import parse_duration

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.results.store.database import Store
    from trilithon.settings import Configuration
    from trilithon.tune.session import TuneOutcome
    from trilithon.tune.setup import TuneSetup

__all__ = ["tune"]


@click.command("tune")
@click.argument("model", required=False, shell_complete=complete_model_or_file)
@YES
@click.option("--workload", default="chat", show_default=True, help="chat, rag, code, or tokens of prompt,answer.")
@click.option("--budget", default="10m", show_default=True, metavar="TIME", help="Stop after this long: 90, 5m.")
@click.option("--placement", multiple=True, metavar="P", help="Choose among these, the defaults first. [default: all]")
@click.option(
    "--quality-bound", type=click.FloatRange(0, 10), default=0.01, show_default=True, help="Largest KL divergence."
)
@click.option("--report", "folder", type=click.Path(path_type=Path), help="Write report.html and its chart here.")
@click.option("--resume", is_flag=True, help="Continue the last stopped tune.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def tune(**words: Any) -> None:
    """Find the fastest settings for MODEL (the demo model if left out), and keep them as its plan.

    Settings that can change answers are compared with the defaults first, and not used where they do. At the end the
    best settings run against the defaults in fresh rounds: only their ratio is told. All samples are stored."""
    from trilithon.cli.bench.outcome import require_writable, write_pictures
    from trilithon.results.store.database import Store
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    if words["folder"] is not None:
        require_writable(words["folder"])
    with Store.open(configuration.results_database) as store:
        if words["resume"]:
            setup, number = _stopped(store)
        else:
            setup, number = _setup(words, configuration), None
        outcome = _run(setup, store, configuration, number)
        campaign = store.campaign(outcome.campaign)
    _show(outcome, words["model"] or str(setup.model), setup, configuration, as_json=words["as_json"])
    if words["folder"] is not None:
        for path in write_pictures(campaign, words["folder"]):
            say(path, err=words["as_json"])


def _stopped(store: "Store") -> "tuple[TuneSetup, int]":
    from trilithon.tune.session import last_stopped
    from trilithon.tune.setup import TuneSetup

    context = click.get_current_context()
    for parameter in context.command.params:
        name = str(parameter.name)
        if name not in ("resume", "as_json", "yes", "folder") and (
            context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        ):
            word = "MODEL" if isinstance(parameter, click.Argument) else parameter.opts[0]
            raise UserError("--resume keeps the original options; leave {word} out", word=word)
    number = last_stopped(store)
    if number is None:
        raise UserError("there is no stopped tune to resume; start one with trilithon tune")
    return TuneSetup.from_json(store.campaign(number).plan), number


def _setup(words: Mapping[str, Any], configuration: "Configuration") -> "TuneSetup":
    from trilithon.cli.models.commands import locate_model
    from trilithon.cli.progress import reading
    from trilithon.models.fetch.demo import demo_model
    from trilithon.tune.setup import TuneSetup, parse_workload

    prompt_tokens, generated_tokens = parse_workload(words["workload"])
    budget_seconds = parse_duration(words["budget"], name="--budget")
    if words["model"] is None:
        model = demo_model(configuration, reading("putting the demo model into the store"))
    else:
        model = locate_model(words["model"], words["placement"], configuration, yes=words["yes"])
    return TuneSetup(
        model=model,
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        placements=tuple(words["placement"]),
        budget_seconds=budget_seconds,
        quality_bound=words["quality_bound"],
    )


def _run(setup: "TuneSetup", store: "Store", configuration: "Configuration", number: int | None) -> "TuneOutcome":
    from trilithon.cli.signals import run_stoppable
    from trilithon.tune.session import run_tune

    def tell(line: str) -> None:
        say(line, err=True)

    return run_stoppable(run_tune(setup, store, configuration, tell, number), "trilithon tune --resume")


def _show(
    outcome: "TuneOutcome", model: str, setup: "TuneSetup", configuration: "Configuration", *, as_json: bool
) -> None:
    from trilithon.cli.bench.outcome import phrases_here
    from trilithon.results.tuned.steps import end_sentence
    from trilithon.tune.planning import plan_outcome

    name = str(Path(model).absolute()) if Path(model).is_file() else model
    workload = f"pp{setup.prompt_tokens}+tg{setup.generated_tokens}"
    line = plan_outcome(outcome, name, workload, configuration)
    if not as_json:
        say(f"{end_sentence(outcome.end, phrases_here())}\n{line}", wrap=True)
        for typed in outcome.end.by_hand:
            say(shown(Message("with the engine alone: {line}", line=typed)))
        say(shown(Message("what was tried: trilithon results report {id}", id=outcome.campaign)), err=True)
        return
    say(line, err=True)
    conclusion = None if outcome.conclusion is None else asdict(outcome.conclusion)
    answer = {
        "campaign": outcome.campaign,
        "defaults": outcome.defaults.name,
        "best": outcome.best.name,
        "gained": outcome.gained,
        "conclusion": conclusion,
        "seconds": outcome.seconds,
        "by_hand": list(outcome.end.by_hand),
    }
    say(json.dumps(answer))
