"""The plans with what is known of them here: the models that they are of, and whether they are stale."""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trilithon.board.finding import Finding
from trilithon.board.snapshot import Board
from trilithon.errors import ModelError, StoreError
from trilithon.language import Message, listed
from trilithon.models.adopt.places import find_adopted
from trilithon.models.files.hashing import known_sha256
from trilithon.models.store.manifest import Manifest, StoredFile
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import weights_of
from trilithon.results.fingerprints import StaleFact, stale_facts
from trilithon.results.plans import Plan, read_plan, read_plans
from trilithon.settings import Configuration

__all__ = ["KnownPlan", "known_plan", "known_plans", "stale_findings"]

_DIGITS = 12  # of a digest, where the model has no name any more


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPlan:
    """`models` are the names here of its file, `reference` the one by which the user knows it. `stale` is what has
    changed since it was made; `is_of_this_board` is False for a plan of another machine that shares the folder, of
    which nothing is told."""

    plan: Plan
    reference: str = ""
    models: tuple[str, ...] = ()
    stale: tuple[StaleFact, ...] = ()
    is_of_this_board: bool = True

    @property
    def name(self) -> str:
        """What `trilithon plan` takes for it."""
        return self.reference or next(iter(self.models), "") or self.plan.model or self.plan.sha256[:_DIGITS]

    @property
    def renewal(self) -> str:
        """The command that renews it; empty for a plan that is not stale. A campaign leaves what was set by hand."""
        command = "plan rm" if self.plan.by_hand else "bench"
        return f"trilithon {command} {shlex.quote(self.name)}" if self.stale else ""

    @property
    def state(self) -> str:
        """ "current", "of another board: …", or "stale: kernel 6.1.43 → 6.1.75; renew it: trilithon bench qwen3"."""
        if not self.is_of_this_board:
            return f"of another board: {self.plan.board}"
        return f"stale: {self.changes}; renew it: {self.renewal}" if self.stale else "current"

    @property
    def changes(self) -> str:
        return listed(fact.text for fact in self.stale)

    @property
    def text(self) -> str:
        """ "llama.cpp/cpu, campaign 3, 7 rounds", and the state of a stale one."""
        return f"{self.plan.placement}, {self.plan.origin}{f'; {self.state}' * bool(self.stale)}"

    def as_json(self) -> dict[str, Any]:
        about = {name: getattr(self, name) for name in ("name", "models", "is_of_this_board", "renewal")}
        return asdict(self.plan) | about | {"stale": [str(fact) for fact in self.stale]}


def known_plan(sha256: str, name: str, board: Board, configuration: Configuration) -> KnownPlan | None:
    """The plan of the model `name` with this file; None where there is none. Raises StoreError."""
    plan = read_plan(configuration.data, sha256, board.identity())
    if plan is None:
        return None
    return KnownPlan(plan=plan, reference=name, stale=stale_facts(plan, board, configuration))


def known_plans(board: Board, configuration: Configuration) -> list[KnownPlan]:
    """All of them. Raises StoreError."""
    plans = read_plans(configuration.data)
    names = _names_by_digest(configuration) if plans else {}
    known = []
    for plan in plans:
        is_of_this_board = plan.board == board.identity()
        stale = stale_facts(plan, board, configuration) if is_of_this_board else ()
        models = tuple(names.get(plan.sha256, ()))
        known.append(KnownPlan(plan=plan, models=models, stale=stale, is_of_this_board=is_of_this_board))
    return known


def stale_findings(board: Board, configuration: Configuration) -> Iterator[Finding]:
    """For the doctor: the plans that are still used and may no longer be right."""
    try:
        plans = known_plans(board, configuration)
    except StoreError as error:
        yield Finding("plan-stale", "problem", "plans", str(error))
        return
    for known in plans:
        if known.stale:
            message = Message(
                "{model} still runs on {placement}, {origin}: {changes}",
                model=known.name,
                placement=known.plan.placement,
                origin=known.plan.origin,
                changes=listed(fact.text for fact in known.stale),
            )
            yield Finding("plan-stale", "warning", "plan", message, known.renewal)


def _names_by_digest(configuration: Configuration) -> Mapping[str, list[str]]:
    """Only digests that are known; no file is read."""
    names: dict[str, list[str]] = {}
    with ModelStore.open(configuration) as store:
        manifests: Iterable[Manifest] = (*store.list(), *find_adopted(configuration).manifests)
        for manifest in manifests:
            for file in weights_of(manifest):
                if digest := file.digest or _known_digest(file, store, configuration):
                    names.setdefault(digest, []).append(str(manifest.name))
    return names


def _known_digest(file: StoredFile, store: ModelStore, configuration: Configuration) -> str:
    try:
        return known_sha256(store.file_path(file), configuration.cache)
    except ModelError:  # gone meanwhile
        return ""
