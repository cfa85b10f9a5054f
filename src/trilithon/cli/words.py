"""Words that options and arguments take: which one a wrong word was meant to be, and completion in the shell."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from trilithon.cli.output import shown
from trilithon.errors import TrilithonError
from trilithon.language import Message
from trilithon.suggestions import similar_names

# A completion imports what it needs when the shell asks: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from trilithon.models.files.model_file import ModelFile
    from trilithon.settings import Configuration

__all__ = ["WordChoice", "complete_campaign", "complete_chip", "complete_engine", "complete_placement"]

_Completion = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


class WordChoice(click.Choice[str]):
    """click's, which also names the word that was meant."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        message = super().get_invalid_choice_message(value, ctx)
        near = similar_names(str(value), map(str, self.choices), 1)
        if not near:
            return message
        # With the plural of click's own text: the catalogue has one entry for both.
        meant = Message(
            "Did you mean {possibility}?",
            plural="(Did you mean one of: {possibilities}?)",
            count=1,
            possibility=repr(near[0]),
        )
        return f"{message} {shown(meant)}"


def _completing(words: "Callable[[click.Context, Configuration], Iterable[tuple[str, str]]]") -> _Completion:
    """With those that begin as the user's does, whatever the capitals; each with its help, which zsh and fish show."""

    @wraps(words)
    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        from click.shell_completion import CompletionItem

        from trilithon.settings import load_configuration

        with suppress(TrilithonError):  # the command tells of it
            pairs = words(context, load_configuration())
            start = incomplete.lower()
            return [CompletionItem(word, help=note or None) for word, note in pairs if word.lower().startswith(start)]
        return []

    return complete


@_completing
def complete_campaign(_: click.Context, configuration: "Configuration") -> Iterable[tuple[str, str]]:
    """With the numbers of campaigns, the newest first."""
    from trilithon.results.store.database import Store

    if not configuration.results_database.exists():
        return []
    with Store.open(configuration.results_database) as store:
        summaries = store.campaigns()
    newest = [(str(campaign.id), ", ".join(campaign.models)) for campaign in reversed(summaries)]
    return [*newest, ("last", newest[0][1])] if newest else []


@_completing
def complete_chip(_: click.Context, __: "Configuration") -> Iterable[tuple[str, str]]:
    from trilithon.board.chips import target_names

    return [(name, "") for name in target_names()]


@_completing
def complete_engine(_: click.Context, __: "Configuration") -> Iterable[tuple[str, str]]:
    """With the engines that estimates are made for."""
    from trilithon.estimate.answer import known_engines

    return [(name, "") for name in known_engines()]


@_completing
def complete_placement(context: click.Context, configuration: "Configuration") -> Iterable[tuple[str, str]]:
    """With those that run the model, where the line names one; else with all of this machine."""
    from trilithon.engines.placing import usable_here

    # click leaves the arguments before an option without its value unread.
    named = context.params.get("model") or context.params.get("files") or context.args[:1]
    models = [named] if isinstance(named, str) else list(map(str, named or ()))
    files = [_model_file(model, configuration) for model in models]
    return [(spec.name, "") for spec in usable_here(files or None, configuration)]


def _model_file(model: str, configuration: "Configuration") -> "ModelFile":
    from trilithon.engines.placing import suits_placements
    from trilithon.models.files.model_file import read_model_file
    from trilithon.models.store.model_store import ModelStore
    from trilithon.models.store.resolve import locate

    with ModelStore.open(configuration) as store:
        return read_model_file(locate(model, store, suits_placements((), configuration)), None)
