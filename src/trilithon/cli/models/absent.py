"""A model that a command needs and that is not here: the user is asked, it is pulled, and the command goes on."""

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from trilithon.cli.output import agreed, shown
from trilithon.errors import ModelError, NoSuchModel
from trilithon.language import Message

if TYPE_CHECKING:
    from trilithon.settings import Configuration

__all__ = ["YES", "or_pulled", "pulled_here"]

YES = click.option("-y", "--yes", is_flag=True, help="Pull a model that is not here without asking.")

T = TypeVar("T")


def or_pulled(model: str, attempt: Callable[[], T], pull: Callable[[], None], *, yes: bool) -> T:
    """The result of `attempt`, after a pull where there is no such model and the user agrees. Raises NoSuchModel where
    nobody can be asked."""
    try:
        return attempt()
    except NoSuchModel as error:
        if not (yes or _is_demo(model) or _agreed(model, error)):
            raise
    pull()
    return attempt()


def pulled_here(model: str, configuration: "Configuration") -> Callable[[], None]:
    """What pulls it into this user's store."""

    def pull() -> None:
        from trilithon.cli.models.pull import pull_model

        pull_model(model, configuration, aside=True)

    return pull


def _is_demo(model: str) -> bool:
    """It is on this disk already, in its package."""
    from trilithon.models.fetch.demo import DEMO, has_demo_package
    from trilithon.models.store.resolve import model_name

    try:
        return model_name(model).same_as(DEMO) and has_demo_package()
    except ModelError:
        return False


def _agreed(model: str, error: NoSuchModel) -> bool:
    if sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    # Without its end, which names the commands to run instead: it has a mark before it in every language.
    reason = re.split(r";?\s*[^;?]*trilithon (?:list|pull)", shown(error.args[0]), maxsplit=1)[0]
    end = "" if reason.endswith("?") else "."
    return agreed(Message("{reason}{end} Pull {model}?", reason=reason, end=end, model=model))
