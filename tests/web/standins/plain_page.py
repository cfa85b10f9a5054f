"""A page that says who looks at it."""

from nicegui import ui

from trilithon.web.context import AppContext, PageSession
from trilithon.web.texts import Texts


async def build(context: AppContext, session: PageSession, text: Texts) -> None:
    assert text.language == session.language
    ui.html(f"<h1>{text('frame.chat')}</h1>", sanitize=False)
    ui.label(f"visitor {session.key_name or 'without a key'}, models {len(context.service.shelf.models())}")
    answer = ui.label("not asked")
    ui.button("Ask", on_click=lambda: answer.set_text("asked"))
