"""The chat's page: which conversation is shown, and what its reader does with it."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from nicegui import background_tasks, ui

from trilithon.errors import TrilithonError
from trilithon.serve.http.errors import api_error_of
from trilithon.web.chat.answer_view import MessageView
from trilithon.web.chat.answering import Question, generation_of
from trilithon.web.chat.composer import Composer
from trilithon.web.chat.controls import Controls
from trilithon.web.chat.conversations import Conversations
from trilithon.web.chat.sidebar import Sidebar
from trilithon.web.chat.streaming import stream
from trilithon.web.chat.tree import ROOT, ChatMessage, Conversation, as_markdown
from trilithon.web.context import AppContext, PageSession
from trilithon.web.elements import at, box, icon_button, words
from trilithon.web.frame import PATHS
from trilithon.web.texts import Texts

__all__ = ["build"]

_PARAMETER = "conversation"
_SHOWN = 30
"""Messages drawn at first, and with each look further back."""
# Browsers lend the clipboard itself to https and to localhost alone; a board is mostly asked by http.
_COPY = """
(async text => {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const box = document.createElement('textarea');
  box.value = text;
  box.style.position = 'fixed';
  box.style.opacity = '0';
  document.body.append(box);
  box.select();
  document.execCommand('copy');
  box.remove();
})(%s)
"""


async def build(context: AppContext, session: PageSession, text: Texts) -> None:
    ui.add_head_html(f'<link rel="stylesheet" href="{at("/_pages/chat.css")}">')
    page = _ChatPage(context, session, text)
    await page.open()


class _ChatPage:
    def __init__(self, context: AppContext, session: PageSession, text: Texts):
        self._context, self._session, self._text = context, session, text
        self._kept = Conversations(context.configuration.data, session.key_name)
        self._conversation = self._kept.begin()
        # Kept, since the click on a line of the list comes from an element that is gone once the list was drawn.
        self._client, self._address = ui.context.client, at(PATHS["chat"])
        self._query = ""  # of the page's address
        self._first = 0  # of the branch: what is drawn first
        self._keeping = asyncio.Lock()
        self._work: set[asyncio.Task[Any]] = set()
        words("h1", text("frame.chat"), "visually-hidden")
        with box(classes="chat"):
            self._side = Sidebar(text, new=self._begin, show=self._show, rename=self._rename, remove=self._remove)
            with box("section", "talk") as talk:
                talk.props["aria-label"] = text("chat.conversation")
                self._controls = Controls(context, text, export=self._export)
                with box(classes="log"):
                    self._turns = box(classes="turns").props('role="log" tabindex="0"')
                    self._turns.props["aria-label"] = text("chat.messages")
                self._composer = Composer(text, send=self._send, stop=self._stop, sees=self._controls.sees)
                self._told = ui.label().classes("visually-hidden").props('role="status"')
        # The page closed: nobody reads on, and what came is kept.
        ui.context.client.on_delete(self._stop)

    async def open(self) -> None:
        """With the conversation that the address names, if there is one."""
        await self._controls.load()
        id_ = ui.context.client.request.query_params.get(_PARAMETER, "")
        if id_:
            await self._show(id_)
        if self._conversation.id != id_:
            await self._list()
            self._draw()

    # -- conversations

    async def _list(self) -> None:
        """The list, and the address, by which a reload finds the conversation again."""
        self._side.draw(await asyncio.to_thread(self._kept.headings), self._conversation.id)
        query = f"?{_PARAMETER}={self._conversation.id}" if self._conversation.messages else ""
        if query != self._query:
            self._query = query
            self._client.run_javascript(f"history.replaceState(history.state, '', {json.dumps(self._address + query)})")

    async def _begin(self) -> None:
        await self._halt()
        self._conversation = self._kept.begin()
        await self._list()
        self._draw()

    async def _show(self, id_: str) -> None:
        await self._halt()
        try:
            self._conversation = await asyncio.to_thread(self._kept.read, id_)
        except TrilithonError as error:
            self._complain(error)
            return
        self._controls.show(self._conversation)
        await self._list()
        self._draw()

    async def _rename(self, id_: str, title: str) -> None:
        own = id_ == self._conversation.id
        conversation = self._conversation if own else await asyncio.to_thread(self._kept.read, id_)
        conversation.title = title.strip()[:200] or conversation.title
        await self._keep(conversation)
        await self._list()

    async def _remove(self, id_: str) -> None:
        if id_ == self._conversation.id:
            await self._halt()
        await asyncio.to_thread(self._kept.remove, id_)
        if id_ == self._conversation.id:
            await self._begin()
        else:
            await self._list()

    async def _keep(self, conversation: Conversation) -> None:
        try:
            async with self._keeping:  # or the older of two states could be written last
                await asyncio.to_thread(self._kept.keep, conversation)
        except TrilithonError as error:
            self._complain(error)

    def _export(self, form: str) -> None:
        conversation = self._conversation
        if form == "md":
            ui.download.content(as_markdown(conversation, self._text), f"{conversation.id}.md", "text/markdown")
        else:
            content = json.dumps(conversation.as_json(), ensure_ascii=False, indent=1)
            ui.download.content(content, f"{conversation.id}.json", "application/json")

    # -- what is shown

    def _draw(self) -> None:
        """All of the branch that is chosen, but for what is far back."""
        self._turns.clear()
        path = self._conversation.path()
        self._first = max(0, len(path) - _SHOWN)
        with self._turns:
            if not path:
                with box(classes="welcome"):
                    words("h2", self._text("chat.welcome"))
                    ui.label(self._text("chat.hint")).classes("muted")
            self._earlier = ui.button(self._text("chat.earlier"), on_click=self._look_back).props("flat no-caps")
            self._earlier.set_visibility(self._first > 0)
            for message in path[self._first :]:
                self._view(message)

    def _look_back(self) -> None:
        last, self._first = self._first, max(0, self._first - _SHOWN)
        self._earlier.set_visibility(self._first > 0)
        with self._turns:
            for place, message in enumerate(self._conversation.path()[self._first : last], start=1):
                self._view(message).root.move(self._turns, place)

    def _view(self, message: ChatMessage) -> MessageView:
        view = MessageView(message, self._text)
        with view.acts:
            self._branches(message)
            icon_button("content_copy", self._text("chat.copy"), lambda: self._copy(message))
            if message.role == "user":
                icon_button("edit", self._text("chat.edit"), lambda: self._composer.edit(message))
            else:
                icon_button("refresh", self._text("chat.retry"), lambda: self._retry(message))
        return view

    def _copy(self, message: ChatMessage) -> None:
        ui.run_javascript(_COPY % json.dumps(message.text))
        ui.notify(self._text("chat.copied"), timeout=2000)

    def _branches(self, message: ChatMessage) -> None:
        numbers = self._conversation.branches(message.number)
        if len(numbers) < 2:
            return
        at = numbers.index(message.number)

        def choose(step: int) -> Callable[[], Awaitable[None]]:
            async def chosen() -> None:
                await self._halt()
                self._conversation.choose(numbers[(at + step) % len(numbers)])
                await self._keep(self._conversation)
                self._draw()

            return chosen

        icon_button("chevron_left", self._text("chat.branch_before"), choose(-1))
        ui.label(f"{at + 1}/{len(numbers)}").classes("branch")
        icon_button("chevron_right", self._text("chat.branch_after"), choose(1))

    # -- asking

    async def _send(self, question: str, images: Sequence[str], edited: ChatMessage | None) -> None:
        path = self._conversation.path()
        parent = edited.parent if edited is not None else path[-1].number if path else ROOT
        asked = self._conversation.add(parent, "user", question, images=list(images))
        if path and edited is None:
            with self._turns:
                self._view(asked)
        else:
            self._draw()
        await self._answer(asked)

    async def _retry(self, message: ChatMessage) -> None:
        if self._composer.working:
            return
        conversation = self._conversation
        conversation.chosen.pop(message.parent)
        self._draw()
        await self._answer(conversation.messages[message.parent], message.placement)
        if message.parent not in conversation.chosen:  # it was refused
            conversation.choose(message.number)
            self._draw()

    async def _answer(self, asked: ChatMessage, placement: str = "") -> None:
        conversation = self._conversation
        conversation.model, conversation.wishes = self._controls.model, self._controls.wishes()
        history = [*conversation.before(asked.number), asked]
        places = [placement] if placement else self._controls.placements()
        try:
            generations = [generation_of(conversation.model, conversation.wishes, history, place) for place in places]
        except TrilithonError as error:
            self._complain(error)
            return
        messages = [conversation.add(asked.number, "assistant", placement=place) for place in places]
        conversation.choose(messages[0].number)
        views = self._views_of(messages)
        self._composer.at_work(True)
        self._told.set_text(self._text("chat.answering"))
        await self._keep(conversation)
        await self._list()
        caller = self._session.caller
        in_turn = len(places) == 1 or self._controls.in_turn()
        asks = [Question(self._context.service, caller, generation, metered=in_turn) for generation in generations]
        work = background_tasks.create(self._run(conversation, asks, views, in_turn=in_turn), name="answer")
        self._work.add(work)
        work.add_done_callback(self._over)

    def _views_of(self, messages: Sequence[ChatMessage]) -> list[MessageView]:
        with self._turns:
            if len(messages) == 1:
                return [self._view(messages[0])]
            with box(classes="side-by-side"):
                return [self._view(message) for message in messages]

    async def _run(
        self, conversation: Conversation, asks: Sequence[Question], views: Sequence[MessageView], *, in_turn: bool
    ) -> None:
        async def kept() -> None:
            await self._keep(conversation)

        pairs = list(zip(asks, views, strict=True))
        if in_turn:
            for asked, view in pairs:
                await stream(asked, view, kept)
        else:
            await asyncio.gather(*(stream(asked, view, kept) for asked, view in pairs))

    def _over(self, work: "asyncio.Task[Any]") -> None:
        self._work.discard(work)
        if not self._turns.is_deleted and not self._turns.client.is_deleted:
            self._composer.at_work(False)
            self._told.set_text(self._text("chat.answered"))

    async def _halt(self) -> None:
        """Stopped, and what came kept."""
        self._stop()
        if self._work:
            await asyncio.wait(self._work)

    def _stop(self) -> None:
        for work in self._work:
            work.cancel()

    def _complain(self, error: TrilithonError) -> None:
        if not self._turns.is_deleted:
            with self._turns:
                ui.notify(
                    str(api_error_of(error)), type="negative", close_button=self._text("chat.close"), timeout=10_000
                )
