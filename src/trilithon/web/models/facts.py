"""What a model's header says of it, what would run it here, and how fast that was: read for the rows that are seen."""

from dataclasses import dataclass, replace

from trilithon.errors import ModelError, StoreError
from trilithon.estimate.answer import SpeedEstimate
from trilithon.estimate.here import ThisMachine, estimate_here, this_machine
from trilithon.estimate.subjects.stored import stored_subject
from trilithon.models.files.model_file import ModelFile
from trilithon.results.plan_list import KnownPlan
from trilithon.results.speeds import Speeds, last_speeds
from trilithon.serve.catalog.catalog import Catalog, CatalogEntry, Outlook
from trilithon.web.quantities import number
from trilithon.web.texts import Texts

__all__ = ["Facts", "abilities", "machine_of", "parameters_text", "read_facts"]

_SILENT = {"embedding": "vectors", "reranker": "rank"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`can` are keys of the catalogue. `context` is what it would be loaded with, `context_train` what it was made
    for. `is_planned`: that placement is the model's plan. `known` is the plan, also one
    that cannot run. `estimate` is that of this machine where it has a basis, `fits` whether its memory holds that.
    `refusal` says why nothing here would run it, `problem` why
    nothing can be said of it."""

    parameters: int | None = None
    quantization: str = ""
    architecture: str = ""
    context: int | None = None
    context_train: int | None = None
    can: tuple[str, ...] = ()
    placement: str = ""
    is_planned: bool = False
    known: KnownPlan | None = None
    speeds: Speeds | None = None
    estimate: SpeedEstimate | None = None
    fits: bool | None = None
    refusal: str = ""
    problem: str = ""


def machine_of(shelf: Catalog) -> ThisMachine | None:
    """What estimates rest on, read once for all rows; None where they have no basis. For a thread."""
    try:
        return this_machine(shelf.configuration, shelf.board)
    except StoreError:  # told with the speeds, which are in the same database
        return None


def read_facts(entry: CatalogEntry, shelf: Catalog, machine: ThisMachine | None = None) -> Facts:
    """Reads the header of a file and no more of it. For a thread."""
    try:
        outlook = shelf.outlook(entry)
        facts = _facts(outlook, _speeds(outlook, shelf))
    except (ModelError, StoreError) as error:
        return Facts(problem=str(error))
    if machine is None or outlook.file.kind in _SILENT:
        return facts
    subject = stored_subject(entry.manifest, machine.chip.platform)
    estimate = estimate_here(subject, machine) if subject else None
    return replace(facts, estimate=estimate, fits=machine.fits(estimate) if estimate else None)


def _facts(outlook: Outlook, speeds: Speeds | None) -> Facts:
    file = outlook.file
    return Facts(
        parameters=file.parameters,
        quantization=file.quantization,
        architecture=file.architecture,
        context=outlook.context,
        context_train=file.context_train,
        can=abilities(file),
        placement=outlook.placement,
        is_planned=outlook.plan is not None,
        known=outlook.known,
        speeds=speeds,
        refusal=outlook.refusal,
    )


def _speeds(outlook: Outlook, shelf: Catalog) -> Speeds | None:
    named = outlook.plan.placement if outlook.plan else outlook.placement
    return last_speeds(shelf.configuration.results_database, outlook.file.sha256, named, shelf.board)


def abilities(file: ModelFile) -> tuple[str, ...]:
    """A model that makes vectors of texts, or ranks them, answers nothing."""
    if file.kind in _SILENT:
        return (_SILENT[file.kind],)
    return (file.kind, *(word for word in ("vision", "tools", "thinking") if word in file.capabilities))


def parameters_text(count: int, text: Texts) -> str:
    """ "494M", "7.62B"; "494 млн", "7,62 млрд"."""
    for size, unit in ((10**9, "billions"), (10**6, "millions"), (10**3, "thousands")):
        if count >= size:
            return text(f"units.{unit}", value=number(f"{count / size:.3g}", text))
    return str(count)
