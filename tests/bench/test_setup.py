import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.bench.setup import CampaignSetup, in_turn, reference_placement, resolve
from trilithon.board.limits.cgroups import Limits
from trilithon.board.processors import Cluster
from trilithon.board.snapshot import Board, read_board
from trilithon.engines.base import Build, Placement, Settings, Unit
from trilithon.engines.placement_spec import parse_placement
from trilithon.engines.scripted.engine import ScriptedEngine
from trilithon.errors import PlacementError
from trilithon.measure.records import Test
from trilithon.models.files.model_file import ModelFile, read_model_file
from trilithon.settings import Configuration

PP = Test(kind="pp", prompt_tokens=16)
words = st.text("abcdefghijklmnopqrstuvwxyz._-0123456789", min_size=1, max_size=12)
tests = st.builds(
    Test,
    kind=st.sampled_from(["pp", "tg", "pg", "question", "cold"]),
    prompt_tokens=st.integers(0, 9999),
    generated_tokens=st.integers(0, 9999),
    depth=st.integers(0, 9999),
    question=st.text(max_size=20),
)
plans = st.builds(
    CampaignSetup,
    model=words.map(Path),
    tests=st.lists(tests, min_size=1, max_size=4).map(tuple),
    placements=st.lists(words, max_size=3).map(tuple),
    variants=st.lists(st.dictionaries(words, words, max_size=2), min_size=1, max_size=3).map(tuple),
    rounds=st.none() | st.integers(1, 100),
    budget_seconds=st.none() | st.floats(0, 1e6),
    reference=st.none() | words.map(Path),
    also=st.lists(words.map(Path), max_size=2).map(tuple),
    quality=st.booleans(),
)


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache")


@pytest.fixture
def file(tiny: Path, configuration: Configuration) -> ModelFile:
    return read_model_file(tiny, configuration.cache)


class Here:
    """Resolves plans for the tiny model on this machine."""

    def __init__(self, file: ModelFile, configuration: Configuration):
        self.file = file
        self.configuration = configuration
        self.board: Board = read_board()

    def __call__(self, *placements: str, **more: object) -> list[Placement]:
        plan = CampaignSetup(**{"model": self.file.path, "tests": (PP,), "placements": placements, **more})  # type: ignore[arg-type]
        return resolve(plan, self.file, self.board, self.configuration)


@pytest.fixture
def here(file: ModelFile, configuration: Configuration) -> Here:
    return Here(file, configuration)


@given(plans)
def test_a_plan_survives_the_database(plan: CampaignSetup) -> None:
    assert CampaignSetup.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_of_a_later_version_is_read_without_what_it_added(tiny: Path) -> None:
    plan = CampaignSetup(model=tiny, tests=(PP,))
    assert CampaignSetup.from_json(plan.to_json() | {"colour": "red"}) == plan


@given(st.lists(st.integers(), max_size=6), st.integers(0, 20))
def test_every_other_round_runs_backwards(placements: list[int], number: int) -> None:
    turn = in_turn(placements, number)  # type: ignore[type-var, arg-type]
    assert turn == (placements if number % 2 == 0 else placements[::-1])


@given(words, st.none() | words, st.sampled_from(["cpu", "gpu", "npu"]), st.dictionaries(words, words, max_size=3))
def test_a_spelled_placement_is_read_back(engine: str, build: str | None, unit: str, options: dict[str, str]) -> None:
    tail = ",".join(f"{name}={value}" for name, value in options.items())
    text = f"{engine}{f'@{build}' if build else ''}/{unit}{f':{tail}' if tail else ''}"
    spelling = parse_placement(f" {text} ")
    assert (spelling.text, spelling.engine, spelling.build) == (text, engine, build)
    assert spelling.unit == unit
    assert spelling.options == options


@given(st.text(max_size=40))
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    try:
        spelling = parse_placement(text)
    except PlacementError as error:
        assert "placement" in str(error)
    else:
        assert spelling.unit in ("cpu", "gpu", "npu")


@pytest.mark.parametrize("text", ["", "llama.cpp", "/cpu", "a/cpu:", "a/cpu:t", "a/cpu:t=1,fast", "a@/cpu"])
def test_what_is_no_placement(text: str) -> None:
    with pytest.raises(PlacementError, match=r"placement .*: write "):
        parse_placement(text)


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ("llama.cpp/tpu", r"placement llama.cpp/tpu: unknown unit tpu; there are cpu, gpu, npu; did you mean npu\?"),
        ("vllm/cpu", "unknown engine vllm; there are .*llama.cpp"),
        ("llama.cpp/npu", "llama.cpp/npu: .*there are llama.cpp@embedded/cpu"),
        ("llama.cpp@nightly/cpu", "no such build; there are .*llama.cpp@embedded/cpu"),
        ("scripted/cpu:speed=3", r"unknown option speed; did you mean seed\?"),
        ("scripted/cpu:decode=fast", "decode = 'fast' is not valid"),
        ("scripted/cpu:t=0", "threads is a number from 1, not 0"),
        ("scripted/cpu:t=-1", "threads is a number from 1, not -1"),
        ("scripted/cpu:c=many", "context is a number from 1"),
        ("scripted/cpu:fa=maybe", "flash attention is on, off or auto"),
        ("llama.cpp/cpu:ctk=q3", "unknown KV type q3; there are f32"),
        ("llama.cpp/cpu:ctv=q8_0,fa=off", "needs flash attention"),
        ("llama.cpp/cpu:turbo=1", "unknown option turbo"),
    ],
)
def test_a_placement_that_cannot_run_here_is_refused(here: Here, placement: str, message: str) -> None:
    with pytest.raises(PlacementError, match=message) as caught:
        here(placement)
    assert "\n" not in str(caught.value)


def test_without_names_it_is_every_real_engine(here: Here) -> None:
    names = [placement.name for placement in here()]
    assert names
    assert all(name.startswith("llama.cpp") for name in names)


def test_a_placement_named_twice_is_refused(here: Here) -> None:
    with pytest.raises(PlacementError, match="named twice"):
        here("scripted/cpu", " scripted/cpu")


def test_variants_make_one_placement_each(here: Here) -> None:
    found = here("scripted/cpu", "scripted/gpu:decode=9", variants=({"t": "1", "fa": "on"}, {"t": "2", "fa": "on"}))
    assert [(placement.name, placement.settings.threads) for placement in found] == [
        ("scripted/cpu:t=1,fa=on", 1),
        ("scripted/cpu:t=2,fa=on", 2),
        ("scripted/gpu:decode=9,t=1,fa=on", 1),
        ("scripted/gpu:decode=9,t=2,fa=on", 2),
    ]
    assert {placement.settings.flash_attention for placement in found} == {"on"}


@pytest.mark.parametrize("spelled", ["t=4", "threads=4"])
def test_a_setting_of_its_own_outweighs_the_variants(here: Here, spelled: str) -> None:
    (placement,) = here(f"scripted/cpu:{spelled}", variants=({"t": "1"}, {"t": "2"}))
    assert placement.name == f"scripted/cpu:{spelled}"
    assert placement.settings.threads == 4


def test_names_are_unique(here: Here) -> None:
    found = here("scripted/cpu", "scripted/cpu:t=1", variants=({"t": "1"}, {"t": "2"}))
    assert [placement.name for placement in found] == ["scripted/cpu:t=1", "scripted/cpu:t=2"]


def test_every_short_name_reaches_its_setting(here: Here) -> None:
    (placement,) = here("scripted/cpu:t=3,ub=64,b=128,c=1024,ctk=q8_0,ctv=q4_0,fa=on,seed=5")
    settings = placement.settings
    assert (settings.threads, settings.micro_batch, settings.batch, settings.context) == (3, 64, 128, 1024)
    assert (settings.kv_type_k, settings.kv_type_v, settings.flash_attention) == ("q8_0", "q4_0", "on")
    assert settings.options == (("seed", "5"),)


def test_tests_that_the_model_has_no_context_for_are_refused(here: Here) -> None:
    with pytest.raises(PlacementError, match=r"need a context of \d+ tokens .* trained for 2048; make -p, -n or -d"):
        here("scripted/cpu", tests=(Test(kind="pp", prompt_tokens=2000, depth=100),))


def test_a_question_fits_into_any_context(here: Here) -> None:
    here.file = replace(here.file, context_train=1024)
    (placement,) = here("scripted/cpu", tests=(PP, Test(kind="question", question="why?")))
    assert placement.settings.context == 1024


def test_the_fast_cores_are_taken_where_there_are_slow_ones(here: Here) -> None:
    little = Cluster(
        cpus=(0, 1),
        core_type="Cortex-A55",
        max_khz=1_800_000,
        governor="performance",
        kind="little",
        capacity=None,
        limit_khz=None,
        current_khz=None,
    )
    big = replace(little, cpus=(2, 3), core_type="Cortex-A76", max_khz=2_400_000, kind="big")
    here.board = replace(here.board, clusters=(little, big), big_cpus=(2, 3), physical_cores=4)
    (placement,) = here("scripted/cpu")
    assert placement.settings.cpus == (2, 3)
    assert placement.settings.threads == 2


def test_a_cpu_quota_limits_the_threads_and_pins_nothing(here: Here) -> None:
    here.board = replace(here.board, big_cpus=(0,), physical_cores=4, limits=Limits(cpu_quota=1.5))
    (placement,) = here("scripted/cpu")
    assert (placement.settings.cpus, placement.settings.threads) == (None, 1)


def test_quality_is_held_against_a_cpu_placement_of_the_same_file(here: Here) -> None:
    found = here("scripted/gpu", "scripted/cpu")
    plan = CampaignSetup(model=here.file.path, tests=(PP,))
    reference = reference_placement(plan, found, here.file, here.board, here.configuration)
    assert reference is found[1]


def test_another_file_is_the_reference_on_a_real_engine(here: Here, configuration: Configuration) -> None:
    found = here("scripted/cpu")
    other = replace(here.file, path=here.file.path.with_name("other.gguf"))
    plan = CampaignSetup(model=here.file.path, tests=(PP,))
    reference = reference_placement(plan, found, other, here.board, configuration)
    assert reference.file is other
    assert reference.name == "llama.cpp/cpu with other.gguf"


@pytest.fixture
def converted(here: Here, monkeypatch: pytest.MonkeyPatch) -> ModelFile:
    """The same model in another form; the scripted engine then runs that alone."""

    def refusal(_: ScriptedEngine, file: ModelFile, build: Build, unit: Unit, settings: Settings) -> str:
        return "" if file.format == "rkllm" else f"scripted runs .rkllm files, and {file.path.name} is {file.format}"

    monkeypatch.setattr(ScriptedEngine, "refusal", refusal)
    return replace(here.file, path=here.file.path.with_name("tiny.rkllm"), format="rkllm", sha256="2")


def test_each_placement_takes_the_file_that_its_engine_runs(here: Here, converted: ModelFile) -> None:
    plan = CampaignSetup(model=here.file.path, tests=(PP,), placements=("scripted/npu", "llama.cpp/cpu"))
    for first, second in ((here.file, converted), (converted, here.file)):
        found = resolve(plan, first, here.board, here.configuration, also=[second])
        assert [placement.file.format for placement in found] == ["rkllm", "gguf"]
        reference = reference_placement(plan, found, first, here.board, here.configuration, also=[second])
        assert reference is found[1]
    by_itself = resolve(replace(plan, placements=()), converted, here.board, here.configuration, also=[here.file])
    assert {placement.file.format for placement in by_itself} == {"gguf"}


def test_where_no_file_fits_each_is_told(here: Here, converted: ModelFile) -> None:
    other = replace(here.file, path=here.file.path.with_name("other.gguf"))
    plan = CampaignSetup(model=here.file.path, tests=(PP,), placements=("scripted/npu",))
    with pytest.raises(PlacementError, match=r"runs \.rkllm files, and tiny\.gguf is gguf; .*and other\.gguf is gguf$"):
        resolve(plan, here.file, here.board, here.configuration, also=[other])


def test_a_handover_between_two_files_is_refused(here: Here, converted: ModelFile) -> None:
    plan = CampaignSetup(model=here.file.path, tests=(PP,), placements=("scripted/npu+llama.cpp/cpu",))
    with pytest.raises(PlacementError, match=r"its halves run different files \(tiny\.rkllm and tiny\.gguf\)"):
        resolve(plan, here.file, here.board, here.configuration, also=[converted])


@pytest.mark.parametrize("text", ["llama.cpp/cpu:t=4,t=8", "llama.cpp/cpu:t=4,threads=8", "scripted/cpu:text=a,text=b"])
def test_a_setting_given_twice_is_refused(text: str) -> None:
    with pytest.raises(PlacementError, match="given twice"):
        parse_placement(text)
