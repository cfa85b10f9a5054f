"""The end of a measurement: the table, the sentence, and where the report lies."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trilithon.cli.output import say, shown
from trilithon.errors import StoreError, UserError
from trilithon.language import Message, language_of_environment

if TYPE_CHECKING:
    from trilithon.measure.records import Campaign
    from trilithon.results.compare import ComparisonRow
    from trilithon.results.phrases import Phrases
    from trilithon.settings import Configuration

__all__ = [
    "phrases_here",
    "require_writable",
    "rows_of",
    "show_campaigns",
    "show_outcome",
    "tell_of_runs",
    "write_pictures",
]

_WIDEST = 120


def show_outcome(campaign: "Campaign", configuration: "Configuration", *, output: str, folder: Path | None) -> None:
    """Print what was asked for on stdout, then write the report. With a data format stdout holds nothing else."""
    from trilithon.results.compare import summarise
    from trilithon.results.verdict import verdict_sentence

    show_campaigns([campaign], output)
    tell_of_runs(campaign)
    as_table = output == "table"
    if as_table:
        say(f"{verdict_sentence(campaign, phrases_here())}\n", wrap=True)
    if not summarise(campaign):
        return  # the table and the sentence have said why there is nothing to draw
    for path in write_pictures(campaign, folder or configuration.data / "reports" / str(campaign.id)):
        say(path, err=not as_table)
    say(shown(Message("saved as campaign {id}: trilithon results show {id}", id=campaign.id)), err=True)


def phrases_here() -> "Phrases":
    """In the user's language."""
    from trilithon.results.phrases import Phrases

    return Phrases(language_of_environment())


def tell_of_runs(campaign: "Campaign", prefix: str = "") -> None:
    """On stderr, what disturbed its runs and what else there is to know of them."""
    from trilithon.results.statements import remark_lines, warning_lines

    for line in warning_lines(campaign, phrases_here()):
        say(shown(Message("warning: {text}", text=f"{prefix}{line}")), err=True)
    for line in remark_lines(campaign, phrases_here()):
        say(shown(Message("note: {text}", text=f"{prefix}{line}")), err=True)


def show_campaigns(campaigns: "Sequence[Campaign]", output: str, names: "Sequence[str]" = ()) -> None:
    """Their figures in one table for people ("table", "md"), or in one of llama-bench's formats. `names` are what
    tables call the campaigns, by default their numbers."""
    from trilithon.results.formats import export_campaigns
    from trilithon.results.table import render_markdown, render_terminal

    phrases = phrases_here()
    if output == "table":
        terminal = sys.stdout.isatty()
        width = min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST) if terminal else _WIDEST
        say(
            render_terminal(rows_of(campaigns, phrases, names), width=width, colour=terminal, phrases=phrases), raw=True
        )
    elif output == "md":
        say(render_markdown(rows_of(campaigns, phrases, names), phrases))
    else:
        export = export_campaigns(campaigns, output)  # type: ignore[arg-type] # click offers only its formats
        say(export.text, nl=False)
        if export.note:
            say(export.note, err=True)


def require_writable(folder: Path) -> None:
    """Before hours of measuring: raises StoreError where the report could not be written there. Leaves nothing."""
    made = []
    try:
        for parent in (folder, *folder.parents):
            if parent.exists():
                break
            made.append(parent)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        for parent in made:
            with contextlib.suppress(OSError):  # it was not made, or is used by now
                parent.rmdir()


def _unwritable(folder: Path, error: OSError) -> StoreError:
    return StoreError("{folder}: {reason}; name another folder with --report", folder=folder, reason=error.strerror)


def rows_of(campaigns: "Sequence[Campaign]", phrases: "Phrases", names: "Sequence[str]" = ()) -> "list[ComparisonRow]":
    """The rows of all; of several, each placement is named as `results compare` takes it: 3:llama.cpp/cpu, or with a
    name in place of the number."""
    from trilithon.results.compare import summarise

    if len(campaigns) == 1 and not names:
        return summarise(campaigns[0], phrases)
    return [
        replace(row, placement=f"{name}:{row.placement}")
        for name, campaign in zip(names or [str(campaign.id) for campaign in campaigns], campaigns, strict=True)
        for row in summarise(campaign, phrases)
    ]


def write_pictures(campaign: "Campaign", folder: Path) -> list[Path]:
    """Write report.html and the PNGs; returns their paths. Raises StoreError when the folder cannot be written."""
    from trilithon.results.compare import summarise
    from trilithon.results.report.page import report_title, write_report
    from trilithon.results.report.plots import write_pngs
    from trilithon.results.report.tuned import charts_of
    from trilithon.results.statements import comparison_lines
    from trilithon.results.tuned.steps import is_tune
    from trilithon.results.verdict import verdict_sentence

    phrases = phrases_here()
    rows = summarise(campaign, phrases)
    if not rows and not is_tune(campaign):  # a tune without anything to change has a result
        raise UserError("campaign {id} has no measurements yet; there is nothing to draw", id=campaign.id)
    charts = charts_of(campaign, rows, source=report_title(campaign, rows, phrases), phrases=phrases)
    try:
        sentence, comparisons = verdict_sentence(campaign, phrases), comparison_lines(campaign, phrases)
        page = write_report(folder, campaign, rows, sentence, comparisons, charts=charts, phrases=phrases)
        return [page, *write_pngs(charts, folder)]
    except OSError as error:
        raise _unwritable(folder, error) from error
