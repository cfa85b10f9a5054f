"""The memory that loaded models take of what there is for them: a bar, and what each part of it is."""

from trilithon.web.elements import box, words
from trilithon.web.models.live import Live, ShownModel
from trilithon.web.quantities import size
from trilithon.web.texts import Texts

__all__ = ["MemoryView"]

_COLOURS = 6  # of static/models.css


class MemoryView:
    def __init__(self, text: Texts):
        self._text = text
        with box("section", "panel memory"):
            with box(classes="line"):
                words("h2", text("models.memory.title"))
                self._amount = words("span", classes="muted")
            self._bar = box(classes="bar").props('role="img"')
            self._legend = box("ul", "legend")

    def show(self, live: Live) -> None:
        budget, taken = live.budget_bytes, live.taken_bytes
        amount = self._amount_text(budget, taken)
        self._amount.set_text(amount)
        self._bar.props["aria-label"] = f"{self._text('models.memory.label')}: {amount}"
        self._bar.clear()
        with self._bar:
            for number, model in enumerate(live.loaded):
                share = 100 * model.size_bytes / max(budget or 0, taken, 1)
                part = box(classes=f"part colour-{number % _COLOURS} {model.state}")
                part.style(f"width: {share:.2f}%")
        self._legend.clear()
        with self._legend:
            for number, model in enumerate(live.loaded):
                self._line(number, model)
            if not live.loaded:
                words("li", self._text("models.memory.nothing"), "muted")

    def _amount_text(self, budget: int | None, taken: int) -> str:
        if budget is None:
            return self._text("models.memory.taken_only", taken=size(taken, self._text))
        return self._text("models.memory.taken", taken=size(taken, self._text), budget=size(budget, self._text))

    def _line(self, number: int, model: ShownModel) -> None:
        with box("li"):
            box("span", f"dot colour-{number % _COLOURS}").props('aria-hidden="true"')
            words("span", model.key, "name")
            words("span", size(model.size_bytes, self._text), "muted")
