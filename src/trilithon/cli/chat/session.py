"""A conversation at work: lines from the screen, answers from the server, what is kept in files."""

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trilithon.cli.chat.conversation import Leave, Load, Look, More, Save, Send, Step, Tell, TerminalChat, read
from trilithon.cli.chat.files import load_conversation, save_conversation
from trilithon.cli.chat.images import take_images
from trilithon.cli.chat.screen import ChatScreen, shown_lines, timing_lines, waiting
from trilithon.cli.serve.server_client import Server
from trilithon.errors import Interrupted, TrilithonError, UserError
from trilithon.settings import Configuration

__all__ = ["Session"]

_BASE = "note: {} is a base model (completes text): it has no chat template, so its answers may miss the question"


@dataclass(slots=True)
class _Answer:
    """One as it comes; `end` is the last message of its stream."""

    text: str = ""
    first_token_seconds: float | None = None
    end: Mapping[str, Any] = field(default_factory=dict)


class Session:
    """`keep_alive` is Ollama's, None for the server's own."""

    def __init__(
        self, server: Server, screen: ChatScreen, configuration: Configuration, keep_alive: str | float | None = None
    ):
        self._server = server
        self._screen = screen
        self._configuration = configuration
        self._keep_alive = keep_alive

    def converse(self, talk: TerminalChat) -> None:
        """Until the user leaves. Raises UserError for a model that does not chat, and TrilithonError when it cannot be
        loaded."""
        context = talk.parameters.get("num_ctx")
        keep_alive = self._keep_alive or None  # 0 would unload it
        kind = self._server.show(talk.model).get("kind")
        if kind in ("embedding", "reranker"):
            does = "makes vectors of texts" if kind == "embedding" else "ranks texts"
            raise UserError(
                "{model} {does} and does not chat; choose another model, see trilithon list",
                model=talk.model,
                does=does,
            )
        with waiting(f"loading {talk.model}"):
            self._server.load(talk.model, keep_alive, context if isinstance(context, int) else None)
        self._screen.tell("/? lists the commands, /bye quits")
        if kind == "base":
            self._screen.tell(_BASE.format(talk.model))
        step: Step = More()
        with self._screen.lines():
            while not isinstance(step, Leave):
                talk, step = self._next(talk)
                talk = self._do(talk, step)

    def answer(self, talk: TerminalChat, text: str) -> None:
        """Show the model's answer to one question. Raises TrilithonError."""
        said, images = take_images(text)
        self._stream(talk.asked(said, images), _Answer())

    def _next(self, talk: TerminalChat) -> tuple[TerminalChat, Step]:
        """Ctrl-C gives up a text of several lines, and leaves where there is none."""
        try:
            line = self._screen.ask(talk.prompt)
        except KeyboardInterrupt:
            self._screen.tell("")
            return replace(talk, begun=None, begins=""), Leave() if talk.begun is None else More()
        return (talk, Leave()) if line is None else read(talk, line)

    def _do(self, talk: TerminalChat, step: Step) -> TerminalChat:
        """What goes wrong is told, and the conversation stays as it was."""
        try:
            match step:
                case Send(text):
                    return self._asked(talk, text)
                case Tell(text):
                    self._screen.tell(text)
                case Look(subject):
                    self._screen.tell("\n".join(shown_lines(self._server.show(talk.model), subject, talk.parameters)))
                case Save(name):
                    self._screen.tell(f"kept in {save_conversation(talk, name, self._configuration)}")
                case Load(name):
                    talk = load_conversation(talk, name, self._configuration)
                    self._screen.tell(f"{len(talk.messages)} messages with {talk.model}")
        except Interrupted:
            raise
        except TrilithonError as error:
            self._screen.tell(f"error: {error}")
        return talk

    def _asked(self, talk: TerminalChat, text: str) -> TerminalChat:
        """With question and answer; Ctrl-C ends the answer, and what came of it counts."""
        said, images = take_images(text)
        asked, answer = talk.asked(said, images), _Answer()
        try:
            self._stream(asked, answer)
        except KeyboardInterrupt:
            self._screen.tell("stopped")
            return asked.answered(answer.text) if answer.text else talk
        return asked.answered(answer.text)

    def _stream(self, talk: TerminalChat, answer: _Answer) -> None:
        body = talk.body() | ({} if self._keep_alive is None else {"keep_alive": self._keep_alive})
        began_ns = time.monotonic_ns()
        try:
            with contextlib.closing(self._server.chat(body)) as messages:
                with waiting(f"waiting for {talk.model}"):
                    answer.end = next(messages, {})
                self._show(answer, began_ns)
                for answer.end in messages:
                    self._show(answer, began_ns)
        finally:
            self._screen.end_line()
        if talk.verbose:
            self._screen.tell("\n".join(timing_lines(answer.end, answer.first_token_seconds)))

    def _show(self, answer: _Answer, began_ns: int) -> None:
        message = answer.end.get("message") or {}
        text, thinking = str(message.get("content") or ""), str(message.get("thinking") or "")
        if answer.first_token_seconds is None and (text or thinking):
            answer.first_token_seconds = (time.monotonic_ns() - began_ns) / 1e9
        answer.text += text  # first, so that nothing was shown that is not in it, whenever Ctrl-C comes
        self._screen.piece(thinking, thinking=True)
        self._screen.piece(text)
        for call in message.get("tool_calls") or ():
            self._screen.tell(f"it calls a tool: {json.dumps(call.get('function', call), ensure_ascii=False)}")
