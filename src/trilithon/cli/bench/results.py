"""`trilithon results`: what was measured, kept, compared and carried between machines."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trilithon.cli.output import say, shown
from trilithon.cli.words import WordChoice, complete_campaign
from trilithon.errors import UserError
from trilithon.language import Message

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.measure.records import Campaign
    from trilithon.results.compare import Comparison
    from trilithon.results.store.database import Store

__all__ = ["results"]

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_BY = ("board", "model", "quantization", "engine", "build")
_FORMATS = ("trilithon", "json", "jsonl", "csv", "sql", "md")


@click.group("results")
def results() -> None:
    """List, show, compare, export and import measurements.

    A campaign is one run of `trilithon bench`. Its number is shown by `results list`; "last" means the newest."""


@results.command("list")
@_JSON
def list_command(as_json: bool) -> None:
    """List the campaigns."""
    with _store() as store:
        summaries = store.campaigns()
    if as_json:
        from dataclasses import asdict

        say(json.dumps([asdict(summary) for summary in summaries], indent=2))
        return
    from trilithon.cli.bench.outcome import phrases_here
    from trilithon.results.tuned.steps import TUNE_SOURCE

    phrases = phrases_here()
    if not summaries:
        say(shown(Message("no measurements yet; start with: trilithon bench")), err=True)
    for campaign in summaries:
        state = "" if campaign.status == "finished" else f" ({phrases(f'status_{campaign.status}')})"
        pairs = zip(campaign.models, campaign.quantizations, strict=True)
        models = dict.fromkeys(
            name if quantization.casefold() in name.casefold() else f"{name} {quantization}"
            for name, quantization in pairs
        )
        source = campaign.source
        if source in ("trilithon", TUNE_SOURCE):
            measured = Message("measured here") if source == "trilithon" else Message("tuned here")
            source = shown(Message("imported") if campaign.imported else measured)
        columns = (campaign.board, ", ".join(models), ", ".join(campaign.placements), ", ".join(campaign.tests), source)
        say(f"{campaign.id:>4}  {campaign.started}  {'  '.join(filter(None, columns))}{state}", wrap=True)


@results.command("show")
@click.argument("campaigns", nargs=-1, required=True, shell_complete=complete_campaign)
@click.option(
    "-o",
    "--output",
    type=WordChoice(["table", "md", "csv", "jsonl", "json"]),
    default="table",
    show_default=True,
    help="The output format.",
)
@click.option("--answers", is_flag=True, help="Show the answers to a set of questions instead.")
def show(campaigns: tuple[str, ...], output: str, answers: bool) -> None:
    """Show the figures of CAMPAIGNS, in one table. csv and jsonl hold every figure; json holds every raw sample."""
    from trilithon.cli.bench.answers import show_answers
    from trilithon.cli.bench.outcome import phrases_here, rows_of, show_campaigns, tell_of_runs
    from trilithon.results.formats import export_campaigns
    from trilithon.results.phrases import ENGLISH
    from trilithon.results.table import render_csv, render_jsonl
    from trilithon.results.verdict import verdict_sentence

    with _store() as store:
        selected = [_campaign(store, campaign) for campaign in campaigns]
    if answers:
        show_answers(selected, output)
    elif output == "json":
        say(export_campaigns(selected, "trilithon").text, nl=False)
    elif output in ("csv", "jsonl"):
        rows = rows_of(selected, ENGLISH)
        say(render_csv(rows) if output == "csv" else render_jsonl(rows), nl=False)
    else:
        show_campaigns(selected, output)
        for one in selected:
            prefix = f"{one.id}: " if len(selected) > 1 else ""
            tell_of_runs(one, prefix)
            say(f"{prefix}{verdict_sentence(one, phrases_here())}", wrap=True)


@results.command("compare")
@click.argument("a", shell_complete=complete_campaign)
@click.argument("b", shell_complete=complete_campaign)
@click.option("--all", "every_metric", is_flag=True, help="Compare every figure, not only the deciding one.")
@_JSON
def compare(a: str, b: str, every_metric: bool, as_json: bool) -> None:
    """Compare A with B: better, worse, same or not comparable.

    A and B are campaigns, or one placement of a campaign: 3 or 3:llama.cpp/cpu."""
    from trilithon.cli.bench.outcome import phrases_here
    from trilithon.results.compare import compare_placements
    from trilithon.results.phrases import ENGLISH
    from trilithon.results.statements import comparison_text

    with _store() as store:
        pairs = _pairs(store, a, b)
    phrases = ENGLISH if as_json else phrases_here()
    comparisons = [
        (one[1], other[1], comparison)
        for one, other in pairs
        for comparison in compare_placements(one, other, every_metric=every_metric, phrases=phrases)
    ]
    if not comparisons:
        raise UserError("{a} and {b} have no test in common", a=a, b=b)
    if as_json:
        say(json.dumps([_as_json(*pair) for pair in comparisons], indent=2))
        return
    for name, other, comparison in comparisons:
        say(comparison_text(name, other, comparison, phrases), wrap=True)


def _pairs(store: "Store", a: str, b: str) -> "list[tuple[tuple[Campaign, str], tuple[Campaign, str]]]":
    """The placements to hold against each other: those named, else those of the same name, else the only ones."""
    (first, one), (second, other) = _named(store, a), _named(store, b)
    ours, theirs = [p.name for p in first.placements], [p.name for p in second.placements]
    if one is None and other is None:
        same = [name for name in ours if name in theirs]
        if same and first.id != second.id:
            return [((first, name), (second, name)) for name in same]
    if one is None and len(ours) == 1:
        one = ours[0]
    if other is None and len(theirs) == 1:
        other = theirs[0]
    if not ours or not theirs:
        raise UserError("campaign {id} has no measurements; choose another one", id=(second if ours else first).id)
    if one is None or other is None:
        raise UserError(
            "name a placement, for example {id}:{placement}; there are {names}",
            id=first.id,
            placement=ours[0],
            names=", ".join(dict.fromkeys(ours + theirs)),
        )
    return [((first, one), (second, other))]


def _named(store: "Store", text: str) -> "tuple[Campaign, str | None]":
    number, colon, placement = text.partition(":")
    campaign = _campaign(store, number)
    names = [p.name for p in campaign.placements]
    if colon and placement not in names:
        raise UserError(
            "campaign {id} has no placement {placement}; it has {names}",
            id=campaign.id,
            placement=placement,
            names=", ".join(names),
        )
    return campaign, placement or None


def _as_json(name: str, other: str, comparison: "Comparison") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "a": name,
        "b": other,
        "test": comparison.test.name,
        "metric": comparison.metric.name,
        "verdict": comparison.verdict.answer,
        "reason": comparison.verdict.reason,
        "ratio": asdict(comparison.verdict.ratio) if comparison.verdict.ratio else None,
        "differs": list(comparison.differs),
    }


@results.command("export")
@click.argument("campaigns", nargs=-1, required=True, shell_complete=complete_campaign)
@click.option(
    "-o",
    "--output",
    metavar="FILE|FORMAT",
    default="trilithon",
    show_default=True,
    help=f"A file to write, or a format for stdout: {', '.join(_FORMATS)}.",
)
@click.option("--private", is_flag=True, help="Keep names of hosts and users, addresses and folders.")
def export(campaigns: tuple[str, ...], output: str, private: bool) -> None:
    """Write CAMPAIGNS to one FILE, complete, which `trilithon results import` reads on any machine.

    A FILE that ends in json, jsonl, csv, sql or md is in llama-bench's format of that name; a FORMAT is printed on
    stdout. Names of hosts and users, addresses and folders are replaced."""
    from trilithon.results.bundle import portable, write_bundle, write_text
    from trilithon.results.formats import export_campaigns

    with _store() as store:
        selected = [_campaign(store, campaign) for campaign in campaigns]
    for one in selected:
        if one.status != "finished":
            text = Message("campaign {id} is not finished: only what was measured so far is exported", id=one.id)
            say(shown(Message("note: {text}", text=shown(text))), err=True)
    if not private:
        selected = portable(selected)
    path = Path(output)
    if not path.name or (output == path.name and not path.suffix and output not in _FORMATS):
        raise UserError(
            "-o {name}: name a file with a suffix, for example mine.trilithon, or a format: {formats}",
            name=output,
            formats=", ".join(_FORMATS),
        )
    ending = path.suffix.removeprefix(".").lower()
    form = output if output in _FORMATS else ending if ending in _FORMATS[1:] else None
    if form is None:
        write_bundle(selected, path)
        return
    exported = export_campaigns(selected, form)  # type: ignore[arg-type] # these are its formats
    if form == output:
        say(exported.text, nl=False)
    else:
        write_text(exported.text, path)
    if exported.note:
        say(exported.note, err=True)


@results.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def import_command(files: tuple[Path, ...]) -> None:
    """Add the results in FILES: llama-bench's json, jsonl, csv, sql or md, or an export of Trilithon. What is here
    already is not added again.

    Files may be packed with gzip, cut short, or have log lines in them: whole rows are read. The averages of a
    Markdown table are rounded, and are marked as such."""
    from trilithon.results.formats import import_file

    read = [(path, import_file(path)) for path in files]
    with _store() as store:
        for path, campaigns in read:
            for campaign in campaigns:
                number, is_new = store.add_once(campaign)
                if is_new:
                    say(Message("{file}: saved as campaign {number}", file=path.name, number=number), wrap=True)
                else:
                    say(Message("{file}: already here as {number}", file=path.name, number=number), wrap=True)
            imports = [campaign for campaign in campaigns if campaign.source != "trilithon"]
            notes = [note for campaign in imports for note in campaign.plan.get("notes", ())]
            for note in dict.fromkeys(notes):
                say(note, err=True)


@results.command("report")
@click.argument("campaigns", nargs=-1, required=True, shell_complete=complete_campaign)
@click.option("--report", "folder", type=click.Path(path_type=Path), help="The folder to write to.")
@click.option("--by", type=click.Choice(_BY), help="What groups of bars are made by. [default: what differs]")
@click.option("--baseline", metavar="SPEC", help="What ratios are to: a placement or a group. [default: the first CPU]")
@click.option("--lang", type=click.Choice(["en", "ru"]), help="The language of the article. [default: en]")
@click.option("--title", help="The title. [default: models and boards]")
@click.option("--label", "labels", multiple=True, metavar="SPEC=TEXT", help="Call SPEC TEXT, in charts and table.")
@click.option("--svg", is_flag=True, help="Write each chart as SVG too.")
@click.option("--width", type=click.IntRange(320, 8000), help="Pixels of a PNG's width. [default: 1600]")
def report(campaigns: tuple[str, ...], folder: Path | None, **wishes: Any) -> None:
    """Write the charts and a page of CAMPAIGNS, and print their paths.

    One campaign alone makes report.html. Several, or one with the options below --report, make an article for readers:
    article.html with grouped bars, ratios, conclusions and one table, which is there as .md and .csv too."""
    from trilithon.cli.bench.outcome import require_writable, write_pictures
    from trilithon.settings import load_configuration

    with _store() as store:
        loaded = [_campaign(store, campaign) for campaign in dict.fromkeys(campaigns)]
    selected = list({campaign.id: campaign for campaign in loaded}.values())  # "last" has a number, too
    place = folder or load_configuration().data / "reports" / "-".join(str(campaign.id) for campaign in selected)
    require_writable(place)
    if len(selected) > 1 or any(wishes.values()):
        paths = _write_article(selected, place, **wishes)
    else:
        paths = write_pictures(selected[0], place)
    for path in paths:
        say(path)


def _write_article(
    campaigns: "list[Campaign]", folder: Path, *, svg: bool, width: int | None, lang: str | None, **wishes: Any
) -> list[Path]:
    from trilithon.errors import StoreError
    from trilithon.results.article.page import ArticleWishes, make_article, write_article

    article = make_article(campaigns, ArticleWishes(language=lang or "en", **wishes))
    try:
        return write_article(article, folder, width=width or 1600, svg=svg)
    except OSError as error:
        raise StoreError(
            "{folder}: {reason}; name another folder with --report", folder=folder, reason=error.strerror
        ) from error


@results.command("rm")
@click.argument("campaigns", nargs=-1, required=True, shell_complete=complete_campaign)
def remove(campaigns: tuple[str, ...]) -> None:
    """Remove CAMPAIGNS from the database."""
    with _store() as store:
        for campaign in campaigns:
            number = _campaign(store, campaign).id
            store.remove(number)
            say(Message("removed campaign {number}", number=number), err=True)


def _store() -> "Store":
    from trilithon.results.store.database import Store
    from trilithon.settings import load_configuration

    return Store.open(load_configuration().results_database)


def _campaign(store: "Store", text: str) -> "Campaign":
    if text == "last":
        summaries = store.campaigns()
        if not summaries:
            raise UserError("no measurements yet; start with: trilithon bench")
        return store.campaign(summaries[-1].id)
    if not text.isdecimal():
        raise UserError("{text} is not the number of a campaign; see: trilithon results list", text=text)
    return store.campaign(int(text))
