"""Every pull of this server, whoever asked for it: how far it is, how it ended, and a way to stop it."""

import asyncio
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from trilithon.engines.placing import download_target
from trilithon.errors import Interrupted, ModelError, TrilithonError
from trilithon.models.fetch.download_list import PullOptions
from trilithon.models.fetch.public_hosts import PublicHosts
from trilithon.models.fetch.pull import Pulled, PullStep, ReportStep, pull
from trilithon.models.names import ModelName, ModelPath, ModelUrl, Repository, parse_reference
from trilithon.models.store.model_store import ModelStore
from trilithon.serve.catalog.catalog import Catalog
from trilithon.serve.catalog.threads import in_library_thread
from trilithon.serve.http.errors import api_error_of
from trilithon.serve.validation import wrong

__all__ = ["Outcome", "PullState", "Pulls", "local_name", "pullable"]

Outcome = Literal["running", "done", "failed", "stopped"]

_MOST_ENDED = 20
_STOPPED = "stopped; pull it again to resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class PullState:
    """One pull. `name` is what was asked for, `local_name` what the store calls it; `step` is the last that was told.
    `stopping` is one that was told to stop and has not heard it yet. `problem` says why it failed, in one line; `notes`
    are what there is to know of one that is done."""

    number: int
    name: str
    local_name: str
    step: PullStep
    outcome: Outcome = "running"
    stopping: bool = False
    problem: str = ""
    notes: tuple[str, ...] = ()


class Pulls:
    """May be used by several threads; `start` is for the loop that serves. Of pulls that ended the last ones are kept,
    for those who come to look."""

    def __init__(self, shelf: Catalog):
        self._shelf = shelf
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._states: dict[int, PullState] = {}
        self._closing = False

    def states(self) -> tuple[PullState, ...]:
        """The newest first."""
        with self._lock:
            return tuple(reversed(self._states.values()))

    def start(self, name: str, done: Callable[[str], None]) -> int:
        """Fetch it in the background; gives its number. `done` is called in the loop, with the model's name in the
        store, once it is there. What is being fetched already is not fetched twice. Raises Problem."""
        reference = pullable(name)
        local = local_name(reference)
        for state in self.states():
            if state.local_name == local and state.outcome == "running" and not state.stopping:
                return state.number
        number = self._begun(reference)
        try:
            task = in_library_thread(lambda: self._carry_out(number, reference, _nobody, insecure=False))
        except TrilithonError:
            self.forget(number)
            raise
        task.add_done_callback(lambda ended: _settled(ended, lambda: done(local)))
        return number

    def run(self, reference: ModelName | Repository, tell: ReportStep, *, insecure: bool) -> Pulled:
        """In this thread, until it is there; `tell` may raise to end it. Raises as `pull` does, and Interrupted when
        it is stopped from elsewhere."""
        return self._carry_out(self._begun(reference), reference, tell, insecure=insecure)

    def stop(self, number: int) -> None:
        """With the next step that it tells, some times a second. What came is kept."""
        self._change(number, stopping=True)

    def forget(self, number: int) -> None:
        """One that ended."""
        with self._lock:
            self._states.pop(number, None)

    def close(self) -> None:
        """Stop them all, and what may begin later: the server ends."""
        with self._lock:
            self._closing = True
            self._states = {number: replace(state, stopping=True) for number, state in self._states.items()}

    def _begun(self, reference: ModelName | Repository) -> int:
        name = str(reference)
        with self._lock:
            number = next(self._numbers)
            self._states[number] = PullState(
                number=number,
                name=name,
                local_name=local_name(reference),
                step=PullStep("looking", name),
                stopping=self._closing,
            )
            ended = [state.number for state in self._states.values() if state.outcome != "running"]
            for key in ended[:-_MOST_ENDED]:
                del self._states[key]
        return number

    def _carry_out(self, number: int, reference: ModelName | Repository, tell: ReportStep, *, insecure: bool) -> Pulled:
        def told(step: PullStep) -> None:
            state = self._change(number, step=step)
            if state is None or state.stopping:
                raise Interrupted(_STOPPED)
            tell(step)

        configuration = self._shelf.configuration
        try:
            options = PullOptions(
                target=download_target(reference, self._shelf.board, configuration, None),
                insecure=insecure,
                hosts=PublicHosts(frozenset(configuration.pull_hosts)),
            )
            with ModelStore.open(configuration) as store:
                pulled = pull(reference, store, options, told)
        except Interrupted:
            self._change(number, outcome="stopped")
            raise
        except BaseException as error:
            self._change(number, outcome="failed", problem=_line(error))
            raise
        self._change(number, outcome="done", notes=pulled.notes)
        return pulled

    def _change(self, number: int, **changes: Any) -> PullState | None:
        """As it is then; None where it was forgotten."""
        with self._lock:
            state = self._states.get(number)
            if state is not None:
                state = self._states[number] = replace(state, **changes)
            return state


def pullable(name: str) -> ModelName | Repository:
    """Addresses are for the owner's own command line: who may use this server must not make the machine fetch them.
    Raises Problem."""
    if not name:
        raise wrong("model", "model is required")
    try:
        reference = parse_reference(name)
    except ModelError as error:
        raise wrong("model", str(error)) from error
    if isinstance(reference, ModelUrl | ModelPath):
        raise wrong(
            "model", "only named models can be pulled over the API; pull addresses and files with trilithon pull"
        )
    if isinstance(reference, Repository) and reference.choice.casefold() == "latest":
        return replace(reference, choice="")
    return reference


def local_name(reference: ModelName | Repository) -> str:
    """What the store will call it."""
    return str(reference.local_name if isinstance(reference, Repository) else reference)


def _nobody(_: PullStep) -> None:
    """Whoever wants to know looks at the states."""


def _line(error: BaseException) -> str:
    return str(api_error_of(error)) if isinstance(error, TrilithonError) else repr(error)


def _settled(task: asyncio.Future[Pulled], done: Callable[[], None]) -> None:
    """What is wrong with a model is in its state; a mistake of ours is for somebody to read."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, TrilithonError):
        task.get_loop().call_exception_handler({"message": "a pull failed", "exception": error})
    elif error is None and not task.cancelled():
        done()
