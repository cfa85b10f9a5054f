"""Where a question is written: text, pictures by drop, paste or choice, and the button that sends or stops."""

import base64
import functools
from collections.abc import Awaitable, Callable, Sequence

from nicegui import events, ui

from trilithon.errors import TrilithonError
from trilithon.serve.images.kinds import picture_kind
from trilithon.web.chat.tree import ChatMessage
from trilithon.web.elements import box, icon_button
from trilithon.web.texts import Texts

__all__ = ["Composer"]

_MOST_PICTURES = 8
_MOST_PICTURE_BYTES = 20 << 20
# Enter sends, but not the one that ends a word of an input method.
_ENTER = "(e) => { if (!e.shiftKey && !e.isComposing) { e.preventDefault(); emit(); } }"
_TAKE_PICTURES = """
(event) => {
  const from = event.clipboardData || event.dataTransfer;
  const files = [...(from ? from.files : [])].filter(file => file.type.startsWith('image/'));
  if (!files.length) return;
  event.preventDefault();
  getElement(%d).$refs.qRef.addFiles(files);
}
"""

Send = Callable[[str, Sequence[str], ChatMessage | None], Awaitable[None]]


class Composer:
    def __init__(self, text: Texts, *, send: Send, stop: Callable[[], None], sees: Callable[[], bool]):
        self._text, self._send, self._stop, self._sees = text, send, stop, sees
        self._images: list[str] = []
        self._edited: ChatMessage | None = None
        with box(classes="composer") as self._root:
            self._editing = box()
            self._pictures = box(classes="pictures")
            with box(classes="row"):
                self._upload = ui.upload(
                    on_upload=self._uploaded,
                    on_rejected=lambda: self._refuse("chat.no_picture"),
                    auto_upload=True,
                    multiple=True,
                    max_file_size=_MOST_PICTURE_BYTES,
                ).classes("upload")
                self._upload.props["accept"] = "image/*"
                pick = icon_button("image", text("chat.add_picture"), lambda: None)
                pick.on("click", js_handler=f"() => getElement({self._upload.id}).$refs.qRef.pickFiles()")
                self._question = ui.textarea().props("autogrow borderless dense rows=1").classes("question")
                self._question.props["aria-label"] = self._question.props["placeholder"] = text("chat.question")
                self._question.props["input-style"] = "max-height: 30vh; overflow-y: auto"
                self._button = icon_button("send", text("chat.send"), self._pressed)
        self._question.on("keydown.enter", self._pressed_enter, js_handler=_ENTER)
        take = _TAKE_PICTURES % self._upload.id
        self._root.on("paste", js_handler=take)
        self._root.on("drop", js_handler=take)
        self._root.on("dragover", js_handler="(event) => event.preventDefault()")
        ui.keyboard(on_key=self._key, ignore=[])
        self.working = False

    def at_work(self, working: bool) -> None:
        self.working = working
        title = self._text("chat.stop" if working else "chat.send")
        self._button.props["icon"] = "stop" if working else "send"
        self._button.props["aria-label"] = self._button.props["title"] = title

    def edit(self, message: ChatMessage) -> None:
        """Its words again, to be sent as a branch beside it."""
        self._edited, self._images = message, list(message.images)
        self._question.set_value(message.text)
        self._show_pictures()
        self._editing.clear()
        with self._editing:
            ui.label(self._text("chat.editing")).classes("muted")
        self._question.run_method("focus")

    def _key(self, event: events.KeyEventArguments) -> None:
        if event.key == "Escape" and event.action.keydown:
            if self.working:
                self._stop()
            else:
                self._forget_edit()

    def _forget_edit(self) -> None:
        self._edited = None
        self._editing.clear()

    async def _pressed(self) -> None:
        if self.working:
            self._stop()
        else:
            await self._pressed_enter()

    async def _pressed_enter(self) -> None:
        words = str(self._question.value or "").strip()
        if self.working or not (words or self._images):
            return
        if self._images and not self._sees():
            self._refuse("chat.blind")
            return
        edited, images = self._edited, list(self._images)
        self._question.set_value("")
        self._images.clear()
        self._show_pictures()
        self._forget_edit()
        await self._send(words, images, edited)

    async def _uploaded(self, event: events.UploadEventArguments) -> None:
        self._upload.reset()
        if not self._sees():
            self._refuse("chat.blind")
            return
        content = await event.file.read()
        try:
            kind = picture_kind(content)
        except TrilithonError:
            self._refuse("chat.no_picture")
            return
        if len(self._images) < _MOST_PICTURES:
            self._images.append(f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}")
            self._show_pictures()

    def _refuse(self, key: str) -> None:
        with self._root:
            ui.notify(self._text(key), type="warning", timeout=8000)

    def _show_pictures(self) -> None:
        self._pictures.clear()
        with self._pictures:
            for at, url in enumerate(self._images):
                with box("figure"):
                    picture = box("img")
                    picture.props["src"], picture.props["alt"] = url, self._text("chat.picture")
                    icon_button("close", self._text("chat.drop_picture"), functools.partial(self._drop, at))

    def _drop(self, at: int) -> None:
        del self._images[at]
        self._show_pictures()
