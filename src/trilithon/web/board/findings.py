"""What the doctor finds, as a list with the commands to copy. Nothing is run from here."""

import asyncio
import json
import time

from nicegui import events, ui

from trilithon.board.doctor import Finding, findings
from trilithon.board.snapshot import read_board
from trilithon.board.tuning import record as tuning_record
from trilithon.engines.build_findings import build_findings
from trilithon.language import translated
from trilithon.results.plan_list import stale_findings
from trilithon.web.board.readings import Watch
from trilithon.web.context import AppContext
from trilithon.web.elements import box, words
from trilithon.web.texts import Texts

__all__ = ["FindingsList", "look"]

_ICONS = {"good": "check_circle", "note": "info", "warning": "warning", "problem": "error"}
_COLOURS = {"good": "good", "note": "muted", "warning": "warning", "problem": "bad"}
_ORDER = ("problem", "warning", "note", "good")

# Where a page has come over plain HTTP from another machine, browsers have the old way only.
_COPY = """async () => {
  const words = %s;
  try { await navigator.clipboard.writeText(words); emit(true); return; } catch (error) {}
  const field = document.createElement('textarea');
  field.value = words;
  document.body.append(field);
  field.select();
  let done = false;
  try { done = document.execCommand('copy'); } catch (error) {}
  field.remove();
  emit(done);
}"""


async def look(context: AppContext, watch: Watch) -> list[Finding]:
    """As `trilithon doctor` does, the worst first."""

    def read() -> list[Finding]:
        configuration = context.configuration
        board = read_board(watch.machine, (configuration.data, configuration.cache))
        of_machine = [*findings(board, watch.machine), *tuning_record.findings(configuration.data, watch.machine)]
        return [*of_machine, *build_findings(configuration), *stale_findings(board, configuration)]

    return sorted(await asyncio.to_thread(read), key=lambda finding: _ORDER.index(finding.severity))


class FindingsList:
    """The section of the page; `refresh` looks again."""

    def __init__(self, context: AppContext, watch: Watch, text: Texts):
        self._context, self._watch, self._text = context, watch, text
        with ui.row().classes("board-head"):
            words("h2", text("board.findings")).props('id="findings"')
            self._again = ui.button(text("board.refresh"), icon="refresh", color=None, on_click=self.refresh)
            self._again.props("flat dense no-caps").classes("board-again")
        ui.label(text("board.findings_lead")).classes("muted")
        self._list = box("ul", "findings").props('aria-labelledby="findings"')
        self._when = ui.label().classes("muted").props('role="status"')

    async def refresh(self) -> None:
        self._again.disable()
        self._when.text = self._text("board.looking")
        findings = await look(self._context, self._watch)
        self._list.clear()
        with self._list:
            for finding in findings:
                self._item(finding)
        self._list.set_visibility(bool(findings))
        at = self._text("board.findings_at", time=time.strftime("%H:%M:%S"))
        self._when.text = at if findings else f"{self._text('board.findings_none')} {at}"
        self._again.enable()

    def _item(self, finding: Finding) -> None:
        with box("li", f"finding finding-{finding.severity}"):
            with box("span", f"severity {_COLOURS[finding.severity]}"):
                ui.icon(_ICONS[finding.severity]).props('aria-hidden="true"')
                ui.label(self._text(f"board.{finding.severity}"))
            subject, message, fix = (
                translated(text, self._text.language) for text in (finding.subject, finding.message, finding.fix)
            )
            with box(classes="said"):
                ui.label(subject).classes("subject")
                ui.label(message)
            look = self._text("board.command_look" if finding.look else "board.command_fix")
            self._command(fix, look, translated(finding.until, self._text.language))
            self._command(finding.lasting, self._text("board.command_lasting"))

    def _command(self, command: str, title: str, until: str = "") -> None:
        """With what it does, and until when."""
        if command:
            with box(classes="fix"):
                ui.label(f"{title} ({until}):" if until else f"{title}:").classes("muted")
                words("code", command).props('tabindex="0"')
                self._copying(command)

    def _copying(self, command: str) -> None:
        with ui.button(icon="content_copy", color=None).props("flat round dense").classes("board-again") as button:
            button.props["aria-label"] = self._text("board.copy_of", command=command)
            button.props["title"] = self._text("board.copy")
        button.on("click", self._copied, js_handler=_COPY % json.dumps(command))

    def _copied(self, event: events.GenericEventArguments) -> None:
        ui.notify(self._text("board.copied" if event.args else "board.not_copied"))
