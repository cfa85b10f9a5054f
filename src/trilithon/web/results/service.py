"""What this page keeps for all its readers as long as the server runs: the calculator and the one bench."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from trilithon.serve.service import Service
from trilithon.web.context import AppContext
from trilithon.web.results.bench_run import Bench
from trilithon.web.results.calculator import Calculator

__all__ = ["ResultsService", "results_service_of"]


@dataclass(frozen=True, slots=True)
class ResultsService:
    calculator: Calculator
    bench: Bench

    async def close(self) -> None:
        """No child outlives the server."""
        await self.bench.close()
        await self.calculator.close()


_DESKS: WeakKeyDictionary[Service, ResultsService] = WeakKeyDictionary()


def results_service_of(context: AppContext) -> ResultsService:
    """The same one for every session of a server."""
    if context.service not in _DESKS:
        calculator = Calculator(context.store)
        _DESKS[context.service] = ResultsService(calculator, Bench(context.service.pool, context.configuration))
    return _DESKS[context.service]
