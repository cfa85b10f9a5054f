"""A model told in full: what `trilithon show` says, in a dialog."""

import asyncio
from collections.abc import Awaitable, Callable

from nicegui import ui

from trilithon.models.files.model_file import ModelFile
from trilithon.models.store.manifest import Manifest
from trilithon.serve.catalog.catalog import Catalog
from trilithon.web.elements import box, folded, icon_button, words
from trilithon.web.models.details import Details, Weights, read_details
from trilithon.web.models.facts import abilities, parameters_text
from trilithon.web.models.library import ModelListRow
from trilithon.web.models.plan_view import PlanView
from trilithon.web.quantities import size
from trilithon.web.texts import Texts

__all__ = ["DetailsView"]


class DetailsView:
    """One dialog for the whole page; what it held goes when it is shut. `changed` is awaited after a change."""

    def __init__(self, shelf: Catalog, text: Texts, changed: Callable[[], Awaitable[None]]):
        self._shelf, self._text, self._changed = shelf, text, changed
        with ui.dialog() as self._dialog, ui.card().classes("details") as self._card:
            pass
        self._dialog.on("hide", self._card.clear)

    async def open(self, row: ModelListRow) -> None:
        self._card.clear()
        with self._card:
            with box(classes="line"):
                words("h2", row.name, "name")
                icon_button("close", self._text("models.do.close"), self._dialog.close)
            body = box(classes="body")
        self._card.props["role"] = "document"
        self._dialog.props["aria-label"] = row.name
        self._dialog.open()
        details = await asyncio.to_thread(read_details, row.entry, self._shelf)
        if not body.is_deleted:
            with body:
                _Written(details, self._text).before_plan()
                if details.known is not None:
                    PlanView(details.known, row, self._shelf, self._text, self._changed)
                _Written(details, self._text).after_plan()


class _Written:
    def __init__(self, details: Details, text: Texts):
        self._details, self._text = details, text

    def before_plan(self) -> None:
        if self._details.problem:
            words("p", self._details.problem, "bad")
        self._facts(self._details.manifest)

    def after_plan(self) -> None:
        self._files()
        for weight in self._details.weights:
            self._weights(weight, named=len(self._details.weights) > 1)
        self._folded_texts(self._details.manifest)

    def _facts(self, manifest: Manifest) -> None:
        first = next((weight.file for weight in self._details.weights if weight.file), None)
        pairs = _about_file(first, self._text) if first else []
        pairs += [
            ("size", size(manifest.size_bytes, self._text)),
            ("source", manifest.source),
            ("since", manifest.created[:16].replace("T", " ")),
        ]
        words("h3", self._text("models.show.facts"))
        with box("dl"):
            for key, value in pairs:
                if value:
                    words("dt", self._text(f"models.show.{key}"))
                    words("dd", value)

    def _files(self) -> None:
        words("h3", self._text("models.show.files"))
        with box("ul", "files"):
            for file in self._details.files:
                with box("li"):
                    words("span", self._text(f"models.show.role_{file.role}"), "muted")
                    words("span", file.name, "name")
                    words("span", " · ".join(filter(None, (size(file.size_bytes, self._text), file.kind, file.place))))
                    if file.is_missing:
                        words("span", self._text("models.show.file_missing"), "bad")

    def _weights(self, weights: Weights, *, named: bool) -> None:
        if named:
            words("h3", weights.name)
        if weights.problem:
            words("p", weights.problem, "bad")
            return
        words("h4" if named else "h3", self._text("models.show.memory"))
        self._memory(weights)
        words("h4" if named else "h3", self._text("models.show.runs"))
        with box("ul", "runs"):
            for verdict in weights.verdicts:
                with box("li"):
                    words("code", verdict.placement)
                    refusal = verdict.refusal
                    if refusal:
                        words("span", refusal, "muted").props('lang="en"')
                    else:
                        words("span", self._text("models.show.runs_yes"), "good")

    def _memory(self, weights: Weights) -> None:
        if not weights.memory:
            taken = size(weights.file.size_bytes if weights.file else 0, self._text)
            words("p", self._text("models.show.memory_unknown", size=taken), "muted")
            return
        with box(classes="sideways").props('tabindex="0" role="group"') as around:
            around.props["aria-label"] = self._text("models.show.memory")
            with box("table"):
                with box("thead"), box("tr"):
                    for key in ("context", "weights", "cache", "work", "total"):
                        words("th", self._text(f"models.show.memory_{key}")).props('scope="col"')
                with box("tbody"):
                    for context, need in weights.memory.items():
                        with box("tr"):
                            words("th", str(context)).props('scope="row"')
                            for count in (need.weights_bytes, need.kv_bytes, need.compute_bytes, need.total_bytes):
                                words("td", size(count, self._text))

    def _folded_texts(self, manifest: Manifest) -> None:
        details = self._details
        texts = {
            "settings": details.settings,
            "system": details.system,
            "template": details.template,
            "license": details.license,
            "modelfile": details.modelfile,
            "header": "\n".join(f"{key} = {value}" for key, value in details.header),
        }
        if manifest.messages:
            words("p", self._text("models.show.messages", count=len(manifest.messages)), "muted")
        for key, content in texts.items():
            if content:
                with folded(self._text(f"models.show.{key}")):
                    words("pre", content).props('tabindex="0"')


def _about_file(file: ModelFile, text: Texts) -> list[tuple[str, str]]:
    """What the header says, by the catalogue's keys."""

    def tokens(count: int | None) -> str:
        return text("models.show.tokens", count=count) if count else ""

    return [
        ("architecture", file.architecture),
        ("parameters", parameters_text(file.parameters, text) if file.parameters else ""),
        ("quantization", file.quantization),
        ("context", tokens(file.context_train)),
        ("vocabulary", tokens(file.vocabulary)),
        ("can", ", ".join(text(f"models.can.{word}") for word in abilities(file))),
        ("made_for", file.target_platform or ""),
        ("cores", str(file.target_cores or "")),
        ("converted", f"rkllm-toolkit {file.toolkit}" if file.toolkit else ""),
    ]
