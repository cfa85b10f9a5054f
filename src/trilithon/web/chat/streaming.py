"""Answers on their way to one page: in small steps, ten a second, however many tokens come."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from trilithon.errors import TrilithonError
from trilithon.serve.http.errors import api_error_of
from trilithon.web.chat.answer_view import MessageView
from trilithon.web.chat.answering import Question

__all__ = ["stream"]

_STEP_SECONDS = 0.1


async def stream(asked: Question, view: MessageView, kept: Callable[[], Awaitable[None]]) -> None:
    """Until it is over, or this task is cancelled: what came is kept either way. An error becomes the message's."""
    message = view.message
    shown, thought = len(message.text), len(message.thinking)

    def show() -> None:
        nonlocal shown, thought
        if view.is_gone:
            return
        if len(message.thinking) > thought:
            view.think(message.thinking[thought:])
        if len(message.text) > shown:
            view.write(message.text[shown:])
        shown, thought = len(message.text), len(message.thinking)

    try:
        async with _now_and_then(show), contextlib.aclosing(asked.pieces()) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                message.text += piece.text
                message.thinking += piece.reasoning
    except TrilithonError as error:
        message.error = str(api_error_of(error))
    finally:
        message.figures = asked.figures
        show()
        view.show_end()
        await asyncio.shield(kept())


@contextlib.asynccontextmanager
async def _now_and_then(act: Callable[[], None]) -> AsyncIterator[None]:
    async def again() -> None:
        while True:
            await asyncio.sleep(_STEP_SECONDS)
            act()

    task = asyncio.create_task(again())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
