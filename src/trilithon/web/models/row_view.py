"""One model of the list: what it is, what would run it here and how fast, its state, and what can be done with it."""

from collections.abc import Awaitable, Callable

from nicegui import ui

from trilithon.units import format_number
from trilithon.web.elements import box, icon_button, words
from trilithon.web.models.acts import Act, possible
from trilithon.web.models.elements import button
from trilithon.web.models.facts import Facts, parameters_text
from trilithon.web.models.library import ModelListRow
from trilithon.web.models.live import Live, ShownModel
from trilithon.web.models.plan_view import changes_text
from trilithon.web.quantities import duration, memory_range, number, size
from trilithon.web.texts import Texts

__all__ = ["Doing", "RowView", "estimate_words", "facts_words", "marks", "speed_words", "state_words"]

Doing = Callable[[Act, str], Awaitable[None]]
"""Does it with the model of that name, and says what came of it."""

_ICONS: dict[Act, str] = {"load": "play_arrow", "unload": "eject", "pin": "push_pin", "unpin": "push_pin"}


class RowView:
    def __init__(
        self,
        row: ModelListRow,
        text: Texts,
        do: Doing,
        open_details: Callable[[ModelListRow], Awaitable[None]],
        ask: Callable[[ModelListRow], None],
    ):
        self.row, self._text = row, text
        self._expected = ""
        self._acts: dict[Act, ui.button] = {}
        with box("li", "model") as self.root:
            with box(classes="what"):
                words("h3", row.name, "name")
                self._facts = words("p", facts_words(row, None, text), "muted")
                with box(classes="marks"):
                    for mark in marks(row, text):
                        words("span", mark, "mark")
                    self._can = box("span", "marks")
            with box(classes="how"):
                self._placement = words("p")
                self._speed = words("p", text("models.row.reading"), "muted")
                self._estimate = words("p", classes="muted")
            with box(classes="now"):
                self._state = words("p").props('role="status"')
                self._more = words("p", classes="muted")
            with box(classes="acts"):
                for act in ("load", "unload", "pin", "unpin"):
                    self._acts[act] = self._button(act, do)
                icon_button("info_outline", text("models.do.show_of", name=row.name), lambda: open_details(row))
                remove = icon_button("delete_outline", text("models.do.remove_of", name=row.name), lambda: ask(row))
                remove.set_visibility(row.is_removable)
            self._trouble = words("p", classes="bad trouble").props('role="alert"')
        self.complain("")

    def _button(self, act: Act, do: Doing) -> ui.button:
        async def acted() -> None:
            await do(act, self.row.name)

        label = self._text(f"models.do.{act}_of", name=self.row.name)
        return button(self._text(f"models.do.{act}"), label, acted, icon=_ICONS[act])

    def complain(self, problem: str) -> None:
        self._trouble.set_text(problem)
        self._trouble.set_visibility(bool(problem))

    def set_busy(self, *, busy: bool) -> None:
        """While something is being done with it nothing else is begun, but for unloading it."""
        for act, act_button in self._acts.items():
            act_button.set_enabled(act == "unload" or not busy)

    def show_facts(self, facts: Facts) -> None:
        self._expected = facts.placement
        self._facts.set_text(facts_words(self.row, facts, self._text))
        self._can.clear()
        with self._can:
            for word in facts.can:
                words("span", self._text(f"models.can.{word}"), "mark")
        if facts.problem:
            self._placement.set_text("")
            self._speed.set_text(facts.problem)
        elif facts.refusal:
            self._placement.set_text("")
            self._speed.set_text(self._text("models.row.nowhere", reason=facts.refusal))
        else:
            self._placement.set_text(self._text("models.row.would_run", placement=facts.placement))
            self._speed.set_text(speed_words(facts, self._text))
        self._estimate.set_text(estimate_words(facts, self._text))

    def show_live(self, live: Live) -> None:
        name = self.row.name
        wanted = possible(name, live)
        for act, act_button in self._acts.items():
            act_button.set_visibility(act in wanted and not (self.row.missing and act in ("load", "pin")))
        first, more = state_words(name, live, self._expected, self._text)
        self._state.set_text(first)
        self._state.classes(add="good" if live.of(name) else "", remove="" if live.of(name) else "good")
        self._more.set_text(more)


def facts_words(row: ModelListRow, facts: Facts | None, text: Texts) -> str:
    """ "494M parameters · Q4_K_M · 379.4 MiB · context 4096 of 32768"."""
    kinds = ", ".join(row.quantizations) or (facts.quantization if facts else "") or ", ".join(row.formats)
    parts = [kinds, size(row.entry.size_bytes, text)]
    if facts and facts.parameters:
        parts.insert(0, text("models.row.parameters", count=parameters_text(facts.parameters, text)))
    if facts and facts.context and facts.context_train:
        parts.append(text("models.row.context", here=facts.context, most=facts.context_train))
    elif facts and (facts.context or facts.context_train):
        parts.append(text("models.row.context_here", here=facts.context or facts.context_train))
    return " · ".join(part for part in parts if part)


def speed_words(facts: Facts, text: Texts) -> str:
    speeds, parts = facts.speeds, []
    if speeds and speeds.prefill:
        parts.append(text("models.row.prefill", rate=number(format_number(speeds.prefill), text)))
    if speeds and speeds.decode:
        parts.append(text("models.row.decode", rate=number(format_number(speeds.decode), text)))
    by_hand = facts.known is not None and facts.known.plan.by_hand
    if facts.is_planned:
        parts.append(text("models.row.set_by_hand") if by_hand else text("models.row.planned"))
    if facts.known and facts.known.stale:
        parts.append(text("models.row.stale", changes=changes_text(facts.known.stale, text)))
    return " · ".join(parts) if speeds else " · ".join([text("models.row.unknown_speed"), *parts])


def estimate_words(facts: Facts, text: Texts) -> str:
    """What is expected of it here, and whether it fits; empty where that has no basis."""
    if facts.estimate is None:
        return ""
    decode = facts.estimate.decode
    rates = [number(format_number(rate), text) for rate in (decode.value, *decode.within_80)]
    memory = memory_range(facts.estimate.memory.needed, facts.estimate.memory.total, text)
    key = "models.row.estimated_too_large" if facts.fits is False else "models.row.estimated"
    return text(key, rate=rates[0], low=rates[1], high=rates[2], memory=memory)


def marks(row: ModelListRow, text: Texts) -> list[str]:
    """What sets it apart from others."""
    labels = [text(f"models.row.{row.place}")] if row.place != "store" else []
    if row.entry.manifest.synthetic:
        labels.append(text("models.row.synthetic"))
    if row.missing:
        labels.append(text("models.row.missing", files=", ".join(row.missing[:3])))
    return labels


def state_words(name: str, live: Live, expected: str, text: Texts) -> tuple[str, str]:
    """ "loaded, pinned", and "1.2 GiB · requests: 2"; or why it is not there. Where it runs is said where it is not
    what was `expected`."""
    loaded = live.of(name)
    pinned = [text("models.state.pinned")] * (name in live.pinned)
    if not loaded:
        trouble = live.trouble(name)
        why = text("models.state.trouble", reason=trouble) if trouble else ""
        return ", ".join([text("models.state.unloaded"), *pinned]), why
    return ", ".join([text(f"models.state.{loaded[0].state}"), *pinned]), "; ".join(
        _more(model, expected, text) for model in loaded
    )


def _more(model: ShownModel, expected: str, text: Texts) -> str:
    parts = [size(model.size_bytes, text)]
    if model.placement != expected:
        parts.insert(0, text("models.state.on", placement=model.placement))
    if model.requests:
        parts.append(text("models.state.requests", count=model.requests))
    if model.waiting:
        parts.append(text("models.state.waiting", count=model.waiting))
    if model.expires_in_seconds is not None and model.state == "ready" and not model.requests:
        parts.append(text("models.state.expires", time=duration(model.expires_in_seconds, text)))
    return " · ".join(parts)
