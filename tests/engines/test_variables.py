"""What the engines let `tune` change."""

from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.board.processors import Cluster, ClusterKind
from trilithon.board.snapshot import Board, read_board
from trilithon.engines.base import Placement, Settings
from trilithon.engines.llamacpp.argv import embedded_argv, server_argv
from trilithon.engines.llamacpp.variables import cpu_variables
from trilithon.engines.placement_spec import parse_placement
from trilithon.engines.placing import Need, place
from trilithon.engines.rk_llamacpp.variables import npu_variables
from trilithon.engines.scripted.engine import Script
from trilithon.engines.variables import cpu_masks
from trilithon.errors import PlacementError, UserError
from trilithon.models.files.model_file import read_model_file
from trilithon.settings import Configuration

UNKNOWN = ("core_type", "max_khz", "limit_khz", "current_khz", "capacity", "governor")


@pytest.fixture
def rk3588() -> Board:
    kinds: tuple[tuple[tuple[int, ...], ClusterKind], ...] = (((0, 1, 2, 3), "little"), ((4, 5, 6, 7), "big"))
    clusters = tuple(Cluster(cpus=cpus, kind=kind, **dict.fromkeys(UNKNOWN)) for cpus, kind in kinds)
    return replace(read_board(), chip="RK3588", clusters=clusters, big_cpus=(4, 5, 6, 7))


def placed(text: str, tiny: Path, board: Board, tmp_path: Path) -> Placement:
    configuration = Configuration(data=tmp_path / "data", cache=tmp_path / "cache")
    file = read_model_file(tiny, configuration.cache)
    return place(parse_placement(text), {}, Need(), [file], board, configuration)


def test_masks_are_the_fast_cores_one_fewer_and_all(rk3588: Board) -> None:
    assert cpu_masks(rk3588) == (("4-7", 4), ("4-6", 3), ("0-7", 8))
    assert cpu_masks(replace(rk3588, big_cpus=(4, 6, 7)))[0] == ("4+6-7", 3)


def test_only_kv_types_can_change_answers_on_the_cpu(rk3588: Board, tiny: Path, tmp_path: Path) -> None:
    placement = placed("scripted/cpu", tiny, rk3588, tmp_path)
    short, deep = (cpu_variables(placement, rk3588, depth) for depth in (512, 8192))
    lossy = {v.name for v in (*short, *deep) for choice in v.choices if choice.lossy}
    assert lossy == {"KV type"}
    assert "KV type" not in {variable.name for variable in short}
    assert {variable.choices[0].text for variable in deep} == {"default"}


def test_every_pipeline_of_the_npu_is_checked(rk3588: Board, tiny: Path, tmp_path: Path) -> None:
    placement = placed("scripted/npu", tiny, rk3588, tmp_path)
    pipeline, cores, *_ = npu_variables(placement, rk3588, "RK3588")
    assert "pipeline=W4A4_HADAMARD" in {choice.text for choice in pipeline.choices}
    assert all(choice.lossy for choice in pipeline.choices[1:])
    assert [choice.text for choice in cores.choices] == ["default", "cores=0", "cores=0+1"]
    assert npu_variables(placement, rk3588, "") == ()


def test_a_mask_and_threads_of_a_prompt(rk3588: Board, tiny: Path, tmp_path: Path) -> None:
    settings = placed("scripted/cpu:mask=4-5+7,tb=8", tiny, rk3588, tmp_path).settings
    assert (settings.cpus, settings.threads, settings.batch_threads) == ((4, 5, 7), 3, 8)
    for mask in ("8", "4-9", "x", "", "7-4"):
        with pytest.raises(PlacementError, match="mask="):
            placed(f"scripted/cpu:mask={mask}", tiny, rk3588, tmp_path)


def test_threads_of_a_prompt_reach_both_forms_of_the_server(rk3588: Board, tiny: Path, tmp_path: Path) -> None:
    placement = placed("scripted/cpu", tiny, rk3588, tmp_path)
    placement = replace(placement, settings=Settings(threads=3, batch_threads=8))
    argv = server_argv(placement, tmp_path, tmp_path, {})
    assert argv[argv.index("--threads-batch") + 1] == "8"
    embedded = embedded_argv(placement, tmp_path, tmp_path)[-1]
    assert '"cpuparams.n_threads": 3, "cpuparams_batch.n_threads": 8' in embedded


def test_the_scripted_engine_varies_as_it_is_told() -> None:
    first, second = Script.parse([("vary", "decode:90|decode:120&wrong:1;prefill:900")]).variables()
    assert [(choice.text, choice.lossy) for choice in first.choices] == [
        ("default", False),
        ("decode=90", False),
        ("decode=120,wrong=1", True),
    ]
    assert len(second.choices) == 2
    for text in ("decode", "decode:x", "unknown:1", "vary:decode:1"):
        with pytest.raises(UserError, match="scripted"):
            Script.parse([("vary", text)])
