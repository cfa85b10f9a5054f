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


def results_service_of(house: AppContext) -> ResultsService:
    """The same one for every visit of a house."""
    if house.service not in _DESKS:
        calculator = Calculator(house.store)
        _DESKS[house.service] = ResultsService(calculator, Bench(house.service.pool, house.configuration))
    return _DESKS[house.service]
