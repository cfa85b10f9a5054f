"""`trilithon bench`: the words of a measurement; the work is done in trilithon.bench."""

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from trilithon.cli.bench.on_boards import bench_on_boards, complete_boards
from trilithon.cli.models.absent import YES
from trilithon.cli.models.commands import complete_model_or_file
from trilithon.cli.output import say, shown
from trilithon.cli.words import WordChoice, complete_campaign, complete_placement
from trilithon.errors import TrilithonError, UserError
from trilithon.language import Message
from trilithon.units import parse_duration, parse_integers

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.bench.progress import CampaignStep
    from trilithon.bench.setup import CampaignSetup
    from trilithon.board.tuning.pinning import Outcome
    from trilithon.measure.records import Campaign, PlacementRecord, Test
    from trilithon.results.store.database import Store
    from trilithon.settings import Configuration

__all__ = ["bench"]

_KINDS = ("pp", "tg", "pg", "question", "cold")
_DEPTHS = "0,1024,2048,4096,8192,16384"
_DEPTH_SECONDS = 120.0
"""A deeper test that would take longer is left out: five rounds of two tests are twenty minutes then."""
_FORMATS = ("table", "md", "csv", "json", "jsonl", "sql")


@click.command("bench")
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_model_or_file)
@YES
@click.option("-p", "--n-prompt", default="512", show_default=True, help="Prompt lengths for pp, 0 for none.")
@click.option("-n", "--n-gen", default="128", show_default=True, help="Generated tokens for tg, 0 for none.")
@click.option("-pg", "pg", multiple=True, metavar="P,N", help="A prompt of P tokens, then N generated, as one figure.")
@click.option("-d", "--n-depth", default="0", show_default=True, help="Tokens in the KV cache before pp, tg and pg.")
@click.option("-r", "--repetitions", type=click.IntRange(1, 1000), help="Rounds. [default: 5 or more, as time allows]")
@click.option("-t", "--threads", help="Threads. [default: one per fast core]")
@click.option("-b", "--batch-size", help="Batch size. [default: 2048]")
@click.option("-ub", "--ubatch-size", help="Micro-batch size. [default: 512]")
@click.option("-ctk", "--cache-type-k", help="Type of K in the KV cache. [default: f16]")
@click.option("-ctv", "--cache-type-v", help="Type of V in the KV cache. [default: f16]")
@click.option("-fa", "--flash-attn", help="Flash attention: on, off or auto. [default: auto]")
@click.option(
    "--placement",
    multiple=True,
    metavar="P",
    shell_complete=complete_placement,
    help="ENGINE[@BUILD]/UNIT[:NAME=VALUE,…], or a server: http://HOST:PORT[#MODEL]. [default: all]",
)
@click.option(
    "--also",
    multiple=True,
    metavar="MODEL",
    shell_complete=complete_model_or_file,
    help="The same model in another format, such as an .rkllm file.",
)
@click.option("--test", "tests", multiple=True, type=WordChoice(_KINDS), help="Run only these tests.")
@click.option("--question", help="The question to ask. [default: tell me about openai]")
@click.option(
    "--questions",
    metavar="FILE",
    help="After the rounds ask the questions of this file, or of the set: standard; score the answers.",
)
@click.option(
    "--preset",
    type=WordChoice(["article", "depth"]),
    help="article: pp512, tg128 and the question. depth: pp512 and tg64 behind 0 to 16384 tokens, as far as they fit.",
)
@click.option("--time-budget", metavar="SECONDS", help="Stop after this long: 90, 5m. [default: 100 s]")
@click.option(
    "--reference",
    metavar="MODEL",
    shell_complete=complete_model_or_file,
    help="Compare quality with this model. [default: MODEL]",
)
@click.option("--no-quality", is_flag=True, help="Skip the quality check; the verdict then says so.")
@click.option("--pin-clocks", is_flag=True, help="Pin all clocks to their maximum during the run; needs root.")
@click.option("--keep-awake", is_flag=True, help="With --pin-clocks: also disable deep idle states.")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="last",
    metavar="[N]",
    shell_complete=complete_campaign,
    help="Continue campaign N, or the last interrupted one.",
)
@click.option("-o", "--output", type=WordChoice(_FORMATS), default="table", help="The output format on stdout.")
@click.option(
    "--progress", type=WordChoice(["words", "json"]), default="words", help="Progress on stderr: text, or JSON lines."
)
@click.option(
    "--on",
    "boards",
    metavar="BOARD,…",
    shell_complete=complete_boards,
    help="Measure on these boards, over ssh, all at once; see trilithon fleet.",
)
@click.option("--report", "report_folder", type=click.Path(path_type=Path), help="Folder for report.html and the PNGs.")
def bench(**words: Any) -> None:
    """Measure MODEL (a name as in trilithon list, or a file; the demo model if left out) on every unit here.
    Several are measured in turn, in the same rounds.

    Values may be lists and ranges as in llama-bench: 512,1024 and 128-512+128. Lists for -t, -b, -ub, -ctk, -ctv and
    -fa make one placement per combination. Settings of one placement follow a colon:
    --placement llama.cpp/cpu:t=4,fa=off.

    Every figure is the median over runs with a 95% interval. Each run has its own process, and the runs of all
    placements are interleaved. All samples are stored: see trilithon results."""
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    boards = words.pop("boards")
    if boards is not None:
        bench_on_boards(click.get_current_context(), configuration)
    elif words["resume"] is not None:
        _resume(words, configuration)
    else:
        _start(words, configuration)


def _start(words: Mapping[str, Any], configuration: "Configuration") -> None:
    from trilithon.cli.bench.outcome import require_writable
    from trilithon.results.store.database import Store

    words = {**words, "model": words["models"][0] if words["models"] else None}
    if words["report_folder"] is not None:
        require_writable(words["report_folder"])
    plan = _plan(words, configuration)
    with Store.open(configuration.results_database) as store:
        require_writable(plan.report or configuration.data / "reports")
        _measure(plan, store, configuration, {**words, "model": words["model"] or "demo"}, resume=None)


def _resume(words: Mapping[str, Any], configuration: "Configuration") -> None:
    from trilithon.bench.setup import CampaignSetup
    from trilithon.cli.bench.outcome import require_writable
    from trilithon.results.store.database import Store

    _refuse_beside(
        "--resume keeps the original options", set(words) - {"resume", "output", "progress", "report_folder", "yes"}
    )
    with Store.open(configuration.results_database) as store:
        number = _interrupted(words["resume"], store)
        plan = CampaignSetup.from_json(store.campaign(number).plan)
        if words["report_folder"] is not None:
            plan = replace(plan, report=words["report_folder"])
        require_writable(plan.report or configuration.data / "reports")
        _measure(plan, store, configuration, {**words, "model": None}, resume=number)


def _interrupted(text: str, store: "Store") -> int:
    """The campaign of this number, or the last one that can go on. Raises UserError where none can."""
    if text == "last":
        number = store.last_interrupted()
        if number is None:
            raise UserError("there is no interrupted campaign to resume; start one with trilithon bench")
        return number
    summary = next((one for one in store.campaigns() if str(one.id) == text), None)
    if summary is None:
        raise UserError("--resume {text}: there is no such campaign; see: trilithon results list", text=text)
    if summary.source != "trilithon" or summary.imported:
        raise UserError("campaign {id} was not measured by bench here; it cannot be resumed", id=text)
    if summary.status != "interrupted":
        raise UserError(
            "campaign {id} is {status}; only an interrupted one can be resumed", id=text, status=summary.status
        )
    return summary.id


def _print_step(step: "CampaignStep") -> None:
    """For programs that watch: every step as a JSON line on stderr."""
    say(json.dumps(asdict(step)), err=True, wrap=False)


def _measure(
    plan: "CampaignSetup",
    store: "Store",
    configuration: "Configuration",
    words: Mapping[str, Any],
    *,
    resume: int | None,
) -> None:
    from trilithon.bench.campaign import run_campaign
    from trilithon.bench.prepare import prepare
    from trilithon.cli.bench.outcome import show_outcome
    from trilithon.cli.progress import CampaignProgress, reading
    from trilithon.cli.signals import run_stoppable

    with _pinned(plan, configuration) as pinned:
        prepared = prepare(plan, configuration, reading(f"reading {plan.model.name}"), pinned)
        say(f"{prepared.board.describe()}\n{plan.model.name}", err=True)
        if resume is not None:
            say(Message("resuming campaign {number}", number=resume), err=True)
        as_json = words["progress"] == "json"
        with contextlib.nullcontext(_print_step) if as_json else CampaignProgress() as progress:
            number = run_stoppable(run_campaign(prepared, store, progress, resume))
    if as_json:
        say(json.dumps({"campaign": number}), err=True, wrap=False)
    campaign = store.campaign(number)
    show_outcome(campaign, configuration, output=words["output"], folder=plan.report)
    _keep_plans(campaign, plan, words["model"], configuration)
    _compare_with_estimate(campaign, configuration)
    if not any(run.outcome == "finished" for run in campaign.runs):
        raise TrilithonError(_none_worked(campaign, number))


def _none_worked(campaign: "Campaign", number: int) -> str:
    """With the reason and its fix, where all placements failed for one."""
    failures = [run.failure for run in campaign.runs if run.failure is not None]
    reasons = {"; ".join(filter(None, (failure.cause or failure.message, failure.advice))) for failure in failures}
    why = f": {reasons.pop()}" if len(reasons) == 1 else ""
    return f"no placement worked{why}; for their output, see: trilithon results show {number} -o json"


def _keep_plans(campaign: "Campaign", plan: "CampaignSetup", model: str | None, configuration: "Configuration") -> None:
    """What is recommended is what `trilithon serve` runs a model on; a line about it on stderr. `model` is MODEL as it
    was written, None where it was left out. The board is read anew: clocks that were pinned are back."""
    from trilithon.board.snapshot import read_board
    from trilithon.results.planning import plan_campaign

    name = str(plan.model) if model is None or Path(model).is_file() else model
    also = {path.name: str(path) for path in (*plan.also, *plan.models)}

    def name_of(record: "PlacementRecord") -> str:
        return also.get(str(record.model.get("file", "")), name)

    for line in plan_campaign(campaign, name_of, read_board(), configuration):
        say(line, err=True)


def _compare_with_estimate(campaign: "Campaign", configuration: "Configuration") -> None:
    """A line on stderr for what is far from its estimate."""
    from trilithon.board.snapshot import read_board
    from trilithon.cli.machine import chosen_chips
    from trilithon.estimate.compared import far_from_estimate

    chip = chosen_chips(None)[0].name
    for line in far_from_estimate(campaign, configuration.results_database, read_board(), chip):
        say(shown(line), err=True)


@contextlib.contextmanager
def _pinned(plan: "CampaignSetup", configuration: "Configuration") -> "Iterator[tuple[Outcome, ...]]":
    """Clocks at their top where the plan says so, and put back however the measurement ends."""
    if not plan.pin_clocks:
        yield ()
        return
    from trilithon.board.sysfs import THIS_MACHINE
    from trilithon.board.tuning.pinning import pinned

    def tell(line: str) -> None:
        say(line, err=True)

    with pinned(configuration.data, tell, idle_states=plan.keep_awake, machine=THIS_MACHINE) as outcomes:
        for outcome in outcomes:
            tell(outcome.line())
        if not outcomes:
            say(Message("no clock is pinned: this machine's kernel allows none to be set"), err=True)
        yield outcomes


def _plan(words: Mapping[str, Any], configuration: "Configuration") -> "CampaignSetup":
    from trilithon.bench.question_file import read_questions
    from trilithon.bench.setup import CampaignSetup

    if words["question"] is not None and not words["question"].strip():
        raise UserError("--question is empty; write what to ask")
    if words["no_quality"]:
        _refuse_beside("--no-quality makes no use of a reference", {"reference"})
    if not words["pin_clocks"]:
        _refuse_beside("--keep-awake goes with --pin-clocks", {"keep_awake"})
    if len(words["models"]) > 1:
        _refuse_beside("several models have references of their own", {"reference", "also"})
    questions = None if words["questions"] is None else read_questions(words["questions"])
    budget, yes = words["time_budget"], words["yes"]
    several = words["also"] or len(words["models"]) > 1
    return CampaignSetup(
        # With other forms beside it, no single file has to suit all placements.
        model=_model(words["model"], () if several else words["placement"], configuration, yes=yes),
        tests=tuple(_tests(words)),
        models=tuple(_model(text, (), configuration, yes=yes) for text in words["models"][1:]),
        also=tuple(_model(text, (), configuration, yes=yes) for text in words["also"]),
        placements=tuple(words["placement"]),
        variants=tuple(_variants(words)),
        rounds=words["repetitions"],
        budget_seconds=None if budget is None else parse_duration(budget, name="--time-budget"),
        reference=None if words["reference"] is None else _model(words["reference"], (), configuration, yes=yes),
        quality=not words["no_quality"],
        pin_clocks=words["pin_clocks"],
        keep_awake=words["keep_awake"],
        name="" if words["model"] is None or Path(words["model"]).is_file() else words["model"],
        questions=questions,
        test_seconds=_DEPTH_SECONDS if words["preset"] == "depth" else None,
        report=None if words["report_folder"] is None else words["report_folder"].absolute(),
    )


def _refuse_beside(reason: str, names: AbstractSet[str]) -> None:
    """What the user wrote is never ignored: refuse those of the parameters `names` that were given."""
    context = click.get_current_context()
    for parameter in context.command.params:
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            word = "MODEL" if isinstance(parameter, click.Argument) else parameter.opts[0]
            raise UserError("{reason}; leave {word} out", reason=reason, word=word)


def _model(text: str | None, placements: Sequence[str], configuration: "Configuration", *, yes: bool) -> Path:
    if text is not None:
        from trilithon.cli.models.commands import locate_model

        return locate_model(text, placements, configuration, yes=yes)
    from trilithon.cli.progress import reading
    from trilithon.models.fetch.demo import DEMO_NOTES, demo_model

    for line in (Message("no model named: measuring the demo model"), *DEMO_NOTES):
        say(line, err=True)
    return demo_model(configuration, reading("putting the demo model into the store"))


def _tests(words: Mapping[str, Any]) -> "list[Test]":
    """The tests in the order pp, tg, pg, question, cold, each at every depth."""
    from trilithon.bench.workloads import DEFAULT_QUESTION
    from trilithon.measure.records import Test

    words = _with_preset(words)
    wanted = words["tests"] or ("pp", "tg", "pg", "question")
    _refuse_beside("it belongs to a test that --test leaves out", {"pg", "question"} - set(wanted))
    prompts = [n for n in parse_integers(words["n_prompt"], name="-p") if n]
    generated = [n for n in parse_integers(words["n_gen"], name="-n") if n]
    pairs = [_pair(text) for text in words["pg"]]
    if "pg" in words["tests"] and not pairs:
        pairs = list(itertools.product(prompts, generated))
    tests = []
    for depth in parse_integers(words["n_depth"], name="-d"):
        if "pp" in wanted:
            tests += [Test(kind="pp", prompt_tokens=n, depth=depth) for n in prompts]
        if "tg" in wanted:
            tests += [Test(kind="tg", generated_tokens=n, depth=depth) for n in generated]
        if "pg" in wanted:
            tests += [Test(kind="pg", prompt_tokens=p, generated_tokens=n, depth=depth) for p, n in pairs]
    if "question" in wanted:
        tests.append(Test(kind="question", question=words["question"] or DEFAULT_QUESTION))
    if "cold" in wanted:
        tests.append(Test(kind="cold"))
    if not tests:
        raise UserError("nothing to measure: -p 0 and -n 0 leave no test; give one of them, or --test question")
    return tests


def _with_preset(words: Mapping[str, Any]) -> Mapping[str, Any]:
    preset = words["preset"]
    if preset is None:
        return words
    reason = f"--preset {preset} says what to measure"
    _refuse_beside(reason, {"n_prompt", "n_gen", "n_depth", "pg", "tests"})
    if preset == "article":
        return {**words, "n_prompt": "512", "n_gen": "128", "n_depth": "0", "pg": (), "tests": ()}
    return {**words, "n_prompt": "512", "n_gen": "64", "n_depth": _DEPTHS, "pg": (), "tests": ("pp", "tg")}


def _pair(text: str) -> tuple[int, int]:
    prompt, comma, generated = text.partition(",")
    if not comma or not (prompt.isdecimal() and generated.isdecimal() and int(prompt) and int(generated)):
        raise UserError("-pg {text}: write two numbers from 1, for example -pg 512,128", text=text)
    return int(prompt), int(generated)


def _variants(words: Mapping[str, Any]) -> list[dict[str, str]]:
    """One mapping of settings per combination of the values given."""
    choices: list[list[tuple[str, str]]] = []
    for option, short in (("threads", "t"), ("batch_size", "b"), ("ubatch_size", "ub")):
        if words[option] is not None:
            values: Sequence[object] = parse_integers(words[option], name=f"-{short}", least=1)
            choices.append([(short, str(value)) for value in values])
    for option, short in (("cache_type_k", "ctk"), ("cache_type_v", "ctv"), ("flash_attn", "fa")):
        if words[option] is not None:
            values = [value.strip() for value in words[option].split(",")]
            if short == "fa":
                values = [{"1": "on", "0": "off"}.get(str(value), value) for value in values]
            choices.append([(short, str(value)) for value in dict.fromkeys(values)])
    return [dict(combination) for combination in itertools.product(*choices)]
