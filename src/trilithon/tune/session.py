"""A tune: the race of the placements, then that of the winner's settings, then fresh rounds against the defaults."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import median

from trilithon import __version__
from trilithon.bench.workloads import tokens_needed
from trilithon.board.snapshot import Board, read_board
from trilithon.engines.base import Placement
from trilithon.engines.placement_spec import SHORT_NAMES, PlacementSpec, parse_placement
from trilithon.engines.placing import Need, nothing_runs, place, refuse_server, usable_here
from trilithon.engines.table import engine
from trilithon.engines.variables import Choice, StartedByHand, TunedEngine, Variable
from trilithon.errors import PlacementError, TrilithonError, UserError
from trilithon.files import file_lock
from trilithon.measure.records import Test
from trilithon.models.files.model_file import read_model_file
from trilithon.results.store.database import Store
from trilithon.results.tuned.steps import TUNE_SOURCE, TuneEnd
from trilithon.runtime.process import workspace
from trilithon.settings import Configuration
from trilithon.tune.conclusion import FINAL_ROUNDS, Conclusion, conclude
from trilithon.tune.handovers import Knob, halves, handovers, settings_of, with_options
from trilithon.tune.priors import Gains, known_gains, with_priors
from trilithon.tune.race import Check, Race, Setting
from trilithon.tune.runs import TuneRuns
from trilithon.tune.setup import TuneSetup

__all__ = ["TuneOutcome", "last_stopped", "run_tune"]

_LEAST_FINAL_ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOutcome:
    """`best` is the placement to use: that of the defaults where nothing is surely faster. `conclusion` is None where
    nothing else was left to compare. `end` is what the store keeps of it."""

    campaign: int
    defaults: Placement
    best: Placement
    conclusion: Conclusion | None
    seconds: float
    end: TuneEnd

    @property
    def gained(self) -> bool:
        return self.conclusion is not None and self.conclusion.faster


def last_stopped(store: Store) -> int | None:
    """The newest tune of this machine that did not end."""
    tunes = [c for c in reversed(store.campaigns()) if c.source == TUNE_SOURCE and not c.imported]
    return next((c.id for c in tunes if c.status == "interrupted"), None)


async def run_tune(
    setup: TuneSetup, store: Store, configuration: Configuration, tell: Callable[[str], None], resume: int | None = None
) -> TuneOutcome:
    """Raises UserError where another tune runs, PlacementError, and TrilithonError where the defaults do not run."""
    for text in setup.placements:
        refuse_server(parse_placement(text))
    try:
        with file_lock(configuration.data / "tune.lock", wait=False), workspace() as folder:
            board = read_board()
            number = _begin(setup, store, board) if resume is None else resume
            store.set_status(number, "running")
            known = store.campaign(number)
            runs = TuneRuns(store, number, known, board, configuration, folder, tell, setup.quality_bound)
            try:
                gains = known_gains(store, number, board.describe())
                outcome = await _Tune(setup, board, configuration, runs, tell, gains).outcome(number)
            except BaseException as error:
                if isinstance(error, TrilithonError) and not (known.runs or runs.new_runs):
                    store.remove(number)  # what was asked for cannot be: there is nothing to go on with
                else:
                    store.set_status(number, "interrupted")
                raise
            store.set_plan(number, setup.to_json() | {"end": outcome.end.to_json()})
            store.set_status(number, "finished")
            return outcome
    except BlockingIOError as error:
        raise UserError("another tune runs on this machine; wait for its end, or stop it") from error


def _begin(setup: TuneSetup, store: Store, board: Board) -> int:
    return store.start_campaign(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        source=TUNE_SOURCE,
        version=__version__,
        board=board.facts(),
        plan=setup.to_json(),
    )


class _Tune:
    def __init__(
        self,
        setup: TuneSetup,
        board: Board,
        configuration: Configuration,
        runs: TuneRuns,
        tell: Callable[[str], None],
        gains: Gains | None = None,
    ):
        self._setup, self._board, self._configuration = setup, board, configuration
        self._runs, self._tell, self._gains = runs, tell, gains or {}
        self._test = Test(kind="pg", prompt_tokens=setup.prompt_tokens, generated_tokens=setup.generated_tokens)
        self._file = read_model_file(setup.model, configuration.cache)
        self._round = 0
        self._run_seconds: list[float] = []

    async def outcome(self, campaign: int) -> TuneOutcome:
        specs = [parse_placement(text) for text in self._setup.placements] or usable_here(
            [self._file], self._configuration
        )
        if not specs:
            raise nothing_runs(self._file, self._configuration)
        defaults = self._placed(specs[0])
        specs += [spec for spec in handovers(specs, self._configuration) if self._can_be(spec)]
        chosen = specs[0]
        if len(specs) > 1:
            chosen = await self._best_placement(specs, defaults)
        best = await self._best_settings(chosen, defaults)
        conclusion, fresh_from = None, self._round + 1
        if best.name != defaults.name:
            conclusion = await self._conclusion(defaults, best)
        if conclusion is None or not conclusion.faster:
            best = defaults
        end = TuneEnd(defaults=defaults.name, best=best.name, by_hand=self._by_hand(best))
        if conclusion is not None:
            figures = {name: getattr(conclusion, name) for name in ("ratio", "low", "high", "rounds")}
            end = replace(end, fresh_from=fresh_from, **figures)
        seconds = self._runs.spent_seconds
        return TuneOutcome(
            campaign=campaign, defaults=defaults, best=best, conclusion=conclusion, seconds=seconds, end=end
        )

    def _by_hand(self, placement: Placement) -> tuple[str, ...]:
        """A command line for each half whose engine has one."""
        makers = [(engine(half.build.engine, self._configuration), half) for half in halves(placement)]
        return tuple(maker.by_hand(half) for maker, half in makers if isinstance(maker, StartedByHand))

    async def _best_placement(self, specs: Sequence[PlacementSpec], defaults: Placement) -> PlacementSpec:
        """Other units, builds and settings compute in other numbers, so each is compared with the first before."""
        first, *others = specs
        choices = [Choice(options={"": first.name}), *(Choice(options={"": spec.name}, lossy=True) for spec in others)]
        race = Race([Variable(name="placement", choices=tuple(choices), expected_gain=0.7)])

        def placed(setting: Setting) -> Placement:
            return self._placed(specs[setting[0]])

        return specs[(await self._raced(race, placed, defaults))[0]]

    async def _best_settings(self, spec: PlacementSpec, reference: Placement) -> Placement:
        """Of a handover, those of both halves. What the user has set stays as it is."""
        knobs = self._knobs(spec)

        def placed(setting: Setting) -> Placement:
            options: tuple[dict[str, str], dict[str, str]] = {}, {}
            for knob, choice in zip(knobs, setting, strict=True):
                options[knob.of_prefill].update(knob.variable.choices[choice].options)
            return self._placed(spec, *options)

        return placed(await self._raced(Race(with_priors(knobs, spec.name, self._gains)), placed, reference))

    def _knobs(self, spec: PlacementSpec) -> list[Knob]:
        """Without choices that are refused, that the user's settings exclude, and that come to the defaults."""
        defaults = self._placed(spec)
        knobs: list[Knob] = []
        for half in halves(defaults):
            of_prefill = half is defaults.prefill
            maker = engine(half.build.engine, self._configuration)
            if not isinstance(maker, TunedEngine):
                continue
            for variable in maker.variables(half, self._board, self._setup.prompt_tokens):
                usable = [c for c in variable.choices[1:] if self._changes(spec, c.options, defaults, of_prefill)]
                if usable:
                    choices = (variable.choices[0], *usable)
                    knobs.append(Knob(replace(variable, choices=choices), of_prefill))
        return knobs

    def _can_be(self, spec: PlacementSpec) -> bool:
        try:
            self._placed(spec)
        except PlacementError:
            return False
        return True

    def _changes(self, spec: PlacementSpec, options: Mapping[str, str], defaults: Placement, of_prefill: bool) -> bool:
        half = spec.prefill if of_prefill and spec.prefill is not None else spec
        if {SHORT_NAMES.get(name, name) for name in half.options} & {SHORT_NAMES.get(name, name) for name in options}:
            return False
        try:
            changed = self._placed(spec, *(({}, options) if of_prefill else (options, {})))
        except PlacementError:
            return False
        return settings_of(changed) != settings_of(defaults)

    async def _raced(self, race: Race, placed: Callable[[Setting], Placement], reference: Placement) -> Setting:
        """The settings that are kept when the race ends, or when only the time for the fresh rounds is left. Lossy
        choices are compared with the reference."""
        failures = 0  # of the best settings, in a row
        while (step := race.ask()) is not None and (failures or not self._is_late()):
            if isinstance(step, Check):
                setting = tuple(step.challenger[1] if n == step.challenger[0] else 0 for n in range(len(step.setting)))
                race.tell(step, await self._runs.is_right(placed(setting), reference))
                continue
            times = await self._times([placed(setting) for setting in step.settings])
            if times is None:
                continue  # the same round again
            if times[0] is not None:
                failures = 0
                race.tell(step, times)
                continue
            failures += 1  # Once more. A tune that goes on after it ended by this has a further try.
            if failures > 1 and self._runs.new_runs:
                name = placed(step.settings[0]).name
                raise TrilithonError("{placement} failed twice; see: trilithon results list", placement=name)
        return race.best()

    async def _times(self, placements: Sequence[Placement]) -> list[float | None] | None:
        """One round; every other one runs backwards. None where it is void, as the machine throttled."""
        self._round += 1
        throttled = self._runs.throttled_runs
        order = list(enumerate(placements))
        times: dict[int, float | None] = {}
        for number, placement in order if self._round % 2 else reversed(order):
            before = self._runs.spent_seconds
            times[number] = await self._runs.seconds(placement, self._test, self._round)
            self._run_seconds.append(self._runs.spent_seconds - before)
        if self._runs.throttled_runs > throttled:
            return None
        return [times[number] for number in range(len(placements))]

    def _is_late(self) -> bool:
        """By the time of the runs alone, so that a tune that goes on decides as it did before."""
        if not self._run_seconds:
            return False
        reserve = 2 * FINAL_ROUNDS * median(self._run_seconds)
        return self._runs.spent_seconds + reserve > self._setup.budget_seconds

    async def _conclusion(self, defaults: Placement, best: Placement) -> Conclusion:
        self._tell(f"fresh rounds: {defaults.name} and {best.name}")
        pairs, void = list[list[float | None]](), 0
        while len(pairs) < FINAL_ROUNDS:
            if (pair := await self._times([defaults, best])) is not None:
                pairs.append(pair)
            elif self._runs.new_runs and (void := void + 1) == FINAL_ROUNDS:
                raise TrilithonError("the machine throttled in {count} fresh rounds; cool it, and go on", count=void)
        whole = [(first, second) for first, second in pairs if first is not None and second is not None]
        if len(whole) < _LEAST_FINAL_ROUNDS:
            raise TrilithonError("{placement} failed in the fresh rounds; tune again without it", placement=best.name)
        return conclude([first for first, _ in whole], [second for _, second in whole])

    def _placed(
        self, spec: PlacementSpec, options: Mapping[str, str] | None = None, of_prefill: Mapping[str, str] | None = None
    ) -> Placement:
        """With further options, those of the prefilling half of a handover apart."""
        needed = tokens_needed(self._test)
        need = Need(
            context=max(4096, needed), least_context=needed, asker="the workload", fix="make --workload smaller"
        )
        return place(with_options(spec, options, of_prefill), {}, need, [self._file], self._board, self._configuration)
