"""Conversations that the user keeps: a file of JSON each, in the data folder, for its owner alone."""

from pathlib import Path

from trilithon.cli.chat.conversation import TerminalChat
from trilithon.errors import UserError
from trilithon.files import read_text, save_text
from trilithon.language import Message
from trilithon.settings import Configuration
from trilithon.suggestions import alternatives

__all__ = ["history_path", "load_conversation", "save_conversation"]

_LONGEST_BYTES = 256 << 20  # images are in it


def history_path(configuration: Configuration) -> Path:
    """Where the lines lie that were written at the prompt."""
    return configuration.data / "chat-history"


def save_conversation(talk: TerminalChat, name: str, configuration: Configuration) -> Path:
    """In place of one of that name. Raises UserError when it cannot be written."""
    path = _path(name, configuration)
    save_text(path, talk.to_json())
    return path


def load_conversation(talk: TerminalChat, name: str, configuration: Configuration) -> TerminalChat:
    """The one of that name, shown as this one is. Raises UserError where there is none, with those that there are."""
    path = _path(name, configuration)
    try:
        text = read_text(path, most_bytes=_LONGEST_BYTES)
    except FileNotFoundError:
        fix = alternatives(name, sorted(file.stem for file in path.parent.glob("*.json")))
        raise UserError(Message("there is no conversation {name}; {fix}", name=name, fix=fix)) from None
    except (OSError, ValueError) as error:
        raise UserError(
            "{path} cannot be read: {reason}; save it again with /save {name}", path=path, reason=error, name=name
        ) from error
    return talk.loaded(text)


def _path(name: str, configuration: Configuration) -> Path:
    return configuration.data / "conversations" / f"{name}.json"
