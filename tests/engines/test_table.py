from pathlib import Path

import pytest

from trilithon.engines.base import Engine
from trilithon.engines.table import ENGINES, engine, engines
from trilithon.errors import PlacementError
from trilithon.settings import Configuration


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return Configuration(data=tmp_path, cache=tmp_path)


@pytest.mark.parametrize("name", ENGINES)
def test_every_line_leads_to_an_engine_of_that_name(name: str, configuration: Configuration) -> None:
    found: Engine = engine(name, configuration)
    assert found.name == name
    assert isinstance(found.only_when_named, bool)
    for build in found.builds():
        assert build.engine == name
        assert build.units
    assert bool(found.missing()) != bool(found.builds())


def test_all_of_them_in_order(configuration: Configuration) -> None:
    assert [each.name for each in engines(configuration)] == list(ENGINES)


def test_an_unknown_engine(configuration: Configuration) -> None:
    with pytest.raises(PlacementError, match=r"^unknown engine llamacpp; there are llama\.cpp, "):
        engine("llamacpp", configuration)
