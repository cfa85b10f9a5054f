"""Answers on their way to one page: in small steps, ten a second, however many tokens come."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from trilithon.errors import TrilithonError
from trilithon.serve.problems import problem_of
from trilithon.web.chat.answer_view import MessageView
from trilithon.web.chat.answering import Asked

__all__ = ["stream"]

_STEP_SECONDS = 0.1


async def stream(asked: Asked, view: MessageView, kept: Callable[[], Awaitable[None]]) -> None:
    """Until it is over, or this task is cancelled: what came is kept either way. An error becomes the message's."""
    message = view.message
    shown, thought, last = len(message.text), len(message.thinking), 0.0

    def show() -> None:
        nonlocal shown, thought
        if len(message.thinking) > thought:
            view.think(message.thinking[thought:])
        if len(message.text) > shown:
            view.write(message.text[shown:])
        shown, thought = len(message.text), len(message.thinking)

    try:
        async with contextlib.aclosing(asked.pieces()) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                message.text += piece.text
                message.thinking += piece.reasoning
                if time.monotonic() - last >= _STEP_SECONDS:
                    show()
                    last = time.monotonic()
                    await asyncio.sleep(0)
    except TrilithonError as error:
        message.error = str(problem_of(error))
    finally:
        message.figures = asked.figures
        show()
        view.show_end()
        await asyncio.shield(kept())
