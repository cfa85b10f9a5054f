"""The models that can be served, and the placement that each one runs on: its plan's, or the first that can."""

import contextlib
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from trilithon.board.snapshot import Board, read_board
from trilithon.engines.base import Placement
from trilithon.engines.placement_spec import SHORT_NAMES, PlacementSpec, first_with_options, parse_placement
from trilithon.engines.placing import Need, builds_of, nothing_runs, place, suits_placements, usable_here
from trilithon.errors import ModelError, PlacementError
from trilithon.models.adopt.places import find_adopted
from trilithon.models.files.hashing import known_sha256
from trilithon.models.files.model_file import ModelFile, read_model_file
from trilithon.models.names import ModelName
from trilithon.models.store.manifest import Manifest, StoredFile
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import Suits, choose, find_model, model_name, read_weights, weights_of
from trilithon.results.plan_list import KnownPlan, known_plan
from trilithon.results.plans import Plan, read_plan, remove_plan
from trilithon.serve.catalog.aliases import Aliases
from trilithon.settings import Alias, Configuration

__all__ = ["Catalog", "CatalogEntry", "Outlook"]

# Clients list models again and again (one asks before every request), and looking through other programs' folders is
# dear: what was found holds for so long. So does the machine that plans are compared with.
_ADOPTED_SECONDS = _BOARD_SECONDS = 10.0
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")
_SHORTEST_CONTEXT = 256
_log = logging.getLogger("trilithon.model")
_MOST_GLANCES = 512  # headers of models that somebody only looked at


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model as it can be served. `digest` tells models apart, not names: two names of one model share it."""

    name: str
    manifest: Manifest
    digest: str

    @property
    def size_bytes(self) -> int:
        return self.manifest.size_bytes

    @property
    def modified(self) -> str:
        """RFC 3339."""
        return self.manifest.created


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What would run a model, told without reading more of its file than the header. `refusal` says why nothing would;
    `known` is its plan, and `plan` that plan where it is obeyed; `context` is what it would be loaded with. The file's
    `sha256` is empty where nobody computed it yet."""

    file: ModelFile
    placement: str = ""
    context: int | None = None
    plan: Plan | None = None
    known: KnownPlan | None = None
    refusal: str = ""


class Catalog:
    """May be used by several threads. `paths` are files that the owner of the machine put there, under the names of
    the files; clients name models and never paths. `placement` is spelled, for every model that can run on it;
    `slots` is how many requests one model may answer at once."""

    def __init__(
        self,
        configuration: Configuration,
        board: Board,
        *,
        paths: Sequence[Path] = (),
        placement: str = "",
        context: int = 4096,
        slots: int = 1,
    ):
        self._configuration = configuration
        self._board = board
        self._spelling = parse_placement(placement) if placement else None
        self._context = context
        self._slots = slots
        self._lock = threading.Lock()
        self._own = tuple(map(_on_path, paths))
        self._own_entries = tuple(map(_entry, self._own))
        self._adopted: tuple[float, tuple[Manifest, ...]] = (-_ADOPTED_SECONDS, ())
        self._board_now: tuple[float, Board] = (-_BOARD_SECONDS, board)
        self._files: dict[tuple[str, str], ModelFile] = {}
        self._glances: dict[tuple[str, str, int, int, int], ModelFile] = {}
        self._aliases = Aliases(configuration.aliases)
        self._stored: dict[str, CatalogEntry] = {}
        self._reading: dict[tuple[str, str], threading.Lock] = {}

    def use_aliases(self, aliases: Sequence[Alias]) -> None:
        """In place of those of the configuration. Raises UserError for a name that is given twice."""
        self._aliases = Aliases(aliases)

    @property
    def configuration(self) -> Configuration:
        return self._configuration

    @property
    def board(self) -> Board:
        return self._board

    @property
    def slots(self) -> int:
        return self._slots

    def check_placement(self) -> None:
        """Raises PlacementError where the placement for every model has no build here, or runs none of the owner's
        files. Those of the store may be for other engines."""
        if self._spelling is None:
            return
        builds_of(self._spelling, self._configuration)
        refusals = [self.outlook(entry).refusal for entry in self._own_entries]
        if refusals and all(refusals):
            raise PlacementError(refusals[0])

    def models(self) -> tuple[CatalogEntry, ...]:
        """Everything that has weights, models with random weights last; a store's model hides another program's of the
        same name."""
        with ModelStore.open(self._configuration) as store:
            stored = [*self._own, *(model for model in store.list() if not store.missing(model))]
        known = {str(model.name).casefold() for model in stored}
        stored += [other for other in self._others() if str(other.name).casefold() not in known]
        return tuple(_entry(model) for model in sorted(stored, key=lambda model: model.synthetic) if weights_of(model))

    def listed(self) -> tuple[CatalogEntry, ...]:
        """`models`, and the aliases that are not hidden, under their own names."""
        entries = self.models()
        names = {entry.name.casefold() for entry in entries}
        aliased = []
        for alias in self._aliases.listed:
            with contextlib.suppress(ModelError):  # of a model that is not here yet
                if alias.name.casefold() not in names:
                    aliased.append(replace(self.find(alias.name), name=alias.name))
        return (*entries, *aliased)

    def meant(self, name: str) -> str:
        """The model's name, where `name` is an alias without wildcard."""
        return self._aliases.exact(name) or name

    def find(self, name: str) -> CatalogEntry:
        """By its name or an alias. Raises ModelError for what is not here, and for what is no name."""
        try:
            return self.find_named(self.meant(name))
        except ModelError:
            model = self._aliases.matching(name)
            if model is None:
                raise
            return self.find_named(model)

    def shown(self, name: str) -> CatalogEntry:
        """As `find`, under the alias that was asked for: clients compare the two. Raises ModelError."""
        entry = self.find(name)
        try:
            return entry if model_name(name).same_as(entry.manifest.name) else replace(entry, name=name)
        except ModelError:  # no name of a model, but an alias may be any text
            return replace(entry, name=name)

    def find_named(self, name: str) -> CatalogEntry:
        """By its own name. Raises ModelError."""
        wanted = model_name(name)
        if (named := self._named_by_owner(wanted)) is not None:
            return named
        with ModelStore.open(self._configuration) as store:
            return _entry(find_model(wanted, store, self._others))

    def find_stored(self, name: str) -> CatalogEntry | None:
        """As `find`, but other programs' folders are not searched: None for their models, and for what is not here."""
        wanted = model_name(name)
        if (named := self._named_by_owner(wanted)) is not None:
            return named
        with ModelStore.open(self._configuration) as store, contextlib.suppress(ModelError):
            manifest = store.get(wanted)
            entry = self._stored.get(str(manifest.name))
            if entry is None or entry.manifest != manifest:  # a digest takes as long as the manifest
                entry = self._stored[str(manifest.name)] = _entry(manifest)
            return entry
        return None

    def file(self, entry: CatalogEntry) -> ModelFile:
        """The weights that would run here, with what their header says. Raises ModelError."""
        return self._read(entry.manifest, choose(entry.manifest, self._suits()))

    def placement(self, entry: CatalogEntry, context: int | None = None, spelled: str = "") -> Placement:
        """`context` tokens are asked for; fewer where the model was trained for fewer. `spelled` is a client's choice:
        one of those that are offered, with other settings at most. Raises ModelError and PlacementError."""
        file = self.file(entry)
        plan = None if spelled else self._plan(file)
        chosen = self._allowed(spelled, file) if spelled else self._chosen(entry, file, plan)
        placed = self._placed(chosen, file, self._need(entry, context))
        facts = {"model": entry.name, "placement": placed.name, "why": self._reason(file, plan, spelled)}
        settings = {"context": placed.settings.context, "slots": placed.settings.slots}
        _log.info("placement chosen", extra={"facts": facts | settings})
        return placed

    def _reason(self, file: ModelFile, plan: Plan | None, spelled: str) -> str:
        if spelled:
            return "the request names it"
        if self._spelling is not None:
            return "--placement names it"
        if plan is not None:
            return f"its plan ({plan.origin})"
        unusable = read_plan(self._configuration.data, file.sha256, self._board.identity())
        first = "the first that can run it"
        return f"{first}: the plan {unusable.placement} cannot run here now" if unusable else f"{first}; it has no plan"

    def offered(self, entry: CatalogEntry) -> tuple[str, ...]:
        """Every placement that can be asked for, what would run it first. Raises ModelError."""
        return self._offered(self._glanced(entry))

    def outlook(self, entry: CatalogEntry) -> Outlook:
        """Raises ModelError for a file that cannot be read."""
        file = self._glanced(entry)
        try:
            plan = self._plan(file)
            placed = self._placed(self._chosen(entry, file, plan), file, self._need(entry, None))
        except PlacementError as error:
            return Outlook(file=file, known=self.known_plan(entry, file), refusal=str(error))
        known = self.known_plan(entry, file)
        return Outlook(file=file, placement=placed.name, context=placed.settings.context, plan=plan, known=known)

    def known_plan(self, entry: CatalogEntry, file: ModelFile) -> KnownPlan | None:
        """The plan of the model's `file`, and whether it is stale; None where the placement is said. Raises
        StoreError."""
        if self._spelling is not None:
            return None
        # A file that the owner named has no name in the store, and its folder is nobody's business.
        name = entry.manifest.files[0].name if entry.manifest in self._own else entry.name
        return known_plan(file.sha256, name, self._current_board(), self._configuration)

    def remove_plan(self, entry: CatalogEntry) -> Plan | None:
        """The plan that there was. Raises ModelError and StoreError."""
        return remove_plan(self._configuration.data, self._glanced(entry).sha256, self._board.identity())

    def _current_board(self) -> Board:
        """Governors, drivers and runtimes change while a server runs."""
        with self._lock:
            read, board = self._board_now
            if time.monotonic() - read >= _BOARD_SECONDS:
                now = read_board()
                board = now if now.identity() == self._board.identity() else self._board
                self._board_now = (time.monotonic(), board)
            return board

    def _named_by_owner(self, name: ModelName) -> CatalogEntry | None:
        return next((entry for entry in self._own_entries if entry.manifest.name.same_as(name)), None)

    def _glanced(self, entry: CatalogEntry) -> ModelFile:
        stored = choose(entry.manifest, self._suits())
        with ModelStore.open(self._configuration) as store:
            status = store.file_path(stored).stat()
            key = (entry.digest, stored.name, status.st_ino, status.st_size, status.st_mtime_ns)
            file = self._glances.get(key) or read_weights(entry.manifest, stored, store, None)
        with self._lock:
            if len(self._glances) >= _MOST_GLANCES:
                self._glances.clear()
            self._glances[key] = file
        if len(file.parts) > 1:
            return file
        return replace(file, sha256=stored.digest or known_sha256(file.path, self._configuration.cache))

    def _plan(self, file: ModelFile) -> Plan | None:
        """The one that is obeyed: none where the placement is said, nor one of a build that is gone."""
        if self._spelling is not None:
            return None
        plan = read_plan(self._configuration.data, file.sha256, self._board.identity())
        return plan if plan is not None and self._runs(parse_placement(plan.placement), file) else None

    def _chosen(self, entry: CatalogEntry, file: ModelFile, plan: Plan | None) -> PlacementSpec:
        if self._spelling:
            return self._spelling
        if plan is not None:
            return parse_placement(plan.placement)
        usable = usable_here([file], self._configuration)
        if not usable:
            raise nothing_runs(file, self._configuration)
        return first_with_options(usable, entry.manifest.placement_options, lambda spec: self._runs(spec, file))

    def _offered(self, file: ModelFile) -> tuple[str, ...]:
        plan = self._plan(file)
        placements = [self._spelling.name] if self._spelling else []
        placements += [plan.placement] if plan is not None else []
        placements += [spelling.name for spelling in usable_here([file], self._configuration)]
        return tuple(dict.fromkeys(placements))

    def _allowed(self, spelled: str, file: ModelFile) -> PlacementSpec:
        """An engine's own options are its command line's: a client could name files of this machine by them."""
        wanted, offered = parse_placement(spelled), self._offered(file)
        if _bare(wanted) not in {_bare(parse_placement(placement)) for placement in offered}:
            raise PlacementError(
                f"{spelled[:100]} is not available here; choose one of: {', '.join(offered) or 'none'}"
            )
        return wanted

    def _suits(self) -> Suits:
        return suits_placements([self._spelling.name] if self._spelling else [], self._configuration)

    def _runs(self, spelling: PlacementSpec, file: ModelFile) -> bool:
        try:
            place(spelling, {}, Need(), [file], self._board, self._configuration)
        except PlacementError:
            return False
        return True

    def _placed(self, spelling: PlacementSpec, file: ModelFile, need: Need) -> Placement:
        if self._slots > 1 and "np" not in spelling.options:
            try:
                placement = place(spelling, {"np": str(self._slots)}, need, [file], self._board, self._configuration)
                return replace(placement, name=spelling.name)
            except PlacementError:
                pass  # one conversation at a time is all that this engine can
        return place(spelling, {}, need, [file], self._board, self._configuration)

    def _need(self, entry: CatalogEntry, context: int | None) -> Need:
        said = entry.manifest.parameters.get("num_ctx")
        own = said if isinstance(said, int) and said > 0 else self._context
        return Need(context=max(context or own, _SHORTEST_CONTEXT), shortest_prefix=0)

    def _read(self, manifest: Manifest, stored: StoredFile) -> ModelFile:
        key = (stored.digest or str(stored.path), str(manifest.name))
        with self._lock:
            if key in self._files:
                return self._files[key]
            reading = self._reading.setdefault(key, threading.Lock())
        with reading:  # to read and hash a file of some gigabytes once is enough, however many ask for it first
            with self._lock:
                if key in self._files:
                    return self._files[key]
            file = self._read_anew(manifest, stored)
            with self._lock:
                self._files[key] = file
            return file

    def _read_anew(self, manifest: Manifest, stored: StoredFile) -> ModelFile:
        with ModelStore.open(self._configuration) as store:
            # What the store took in was hashed then; another program's file is hashed once, and that is remembered.
            known = stored.digest if len(weights_of(manifest)) == 1 else ""
            file = read_weights(manifest, stored, store, None if known else self._configuration.cache)
        return replace(file, sha256=known or file.sha256)

    def _others(self) -> tuple[Manifest, ...]:
        with self._lock:
            at, others = self._adopted
            if time.monotonic() - at < _ADOPTED_SECONDS:
                return others
        others = tuple(find_adopted(self._configuration).manifests)
        with self._lock:
            self._adopted = (time.monotonic(), others)
        return others


def _bare(spelling: PlacementSpec | None) -> tuple[object, ...]:
    """Without what any placement can be asked for: threads, batches, context and the like."""
    if spelling is None:
        return ()
    own = frozenset((name, value) for name, value in spelling.options.items() if name not in SHORT_NAMES)
    return (spelling.engine, spelling.build, spelling.unit, own, *_bare(spelling.prefill))


def _entry(manifest: Manifest) -> CatalogEntry:
    return CatalogEntry(str(manifest.name), manifest, _digest(manifest))


def _digest(manifest: Manifest) -> str:
    """SHA-256 over everything but the name and its time."""
    said = asdict(replace(manifest, created="1970-01-01T00:00:00Z", source="")) | {"name": ""}
    if not manifest.placement_options:  # as before there were any
        del said["placement_options"]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def _on_path(path: Path) -> Manifest:
    """A file that the owner named, as a model. Raises ModelError for what is no file."""
    if not path.is_file():
        raise ModelError(f"{path} is not a file; write the path of a .gguf or .rkllm file")
    status = path.stat()
    stem = _NOT_IN_NAMES.sub("-", path.stem).strip("-.").lower() or "model"
    host, namespace, tag = ModelName.DEFAULTS
    return Manifest(
        name=ModelName(host, namespace, stem[:80], tag),
        files=(
            StoredFile(
                role="weights",
                digest="",
                size_bytes=status.st_size,
                name=path.name,
                format=read_model_file(path, None).format,
                path=path.absolute(),
            ),
        ),
        source=str(path),
        created=datetime.fromtimestamp(status.st_mtime, UTC).isoformat(),
    )
