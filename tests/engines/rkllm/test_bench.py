"""A whole campaign over the RKLLM stand-in: the command line, the engine, the server, the client, the store."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.bench import campaign
from trilithon.board.accelerators import DeviceNode, Npu
from trilithon.board.snapshot import Board, read_board
from trilithon.cli.main import run
from trilithon.engines.rkllm import engine

ANSWER = "A stone stands upright and another lies across it, and so people built a door that holds for ages."


@pytest.fixture
def model(
    home: Path, standin: Callable[[str], Path], byte_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """A model for the stand-in, on a board that this machine then seems to be: `model("1.3.0", chip="RK3588", …)`."""

    async def settle(*, limit_seconds: float) -> tuple[str, ...]:
        return ()

    monkeypatch.setattr(campaign, "settle", settle)
    monkeypatch.setattr(campaign, "measure_bandwidth", lambda _: 1e10)
    monkeypatch.setenv("TRILITHON_HANG_SECONDS", "5")

    def model(version: str = "1.3.0", chip: str = "RK3588", **script: object) -> Path:
        npu = Npu(driver="rknpu", version="0.9.8", cores=3, nodes=(DeviceNode("/dev/dri/card1", True),))

        def planted(*_: object) -> Board:
            return replace(read_board(), chip=chip, npu=npu)

        monkeypatch.setattr(engine, "read_board", planted)
        monkeypatch.setenv("TRILITHON_BUILDS", str(standin(version).parent))
        folder = home / "models"
        shutil.copytree(byte_tokenizer, folder)
        words = "".join(f"{name}={value}\n" for name, value in script.items())
        (folder / "m-w8a8.rkllm").write_text(f"a stand-in's model\n#standin\n{words}")
        return folder / "m-w8a8.rkllm"

    return model


@pytest.mark.parametrize(
    "version", [*(pytest.param(version, marks=pytest.mark.slow) for version in ("1.1.4", "1.2.0", "1.2.3")), "1.3.0"]
)
def test_bench(model: Callable[..., Path], capsys: pytest.CaptureFixture[str], version: str) -> None:
    words = ["--placement", "rkllm/npu", "--test", "tg", "--test", "pp", "-p", "64", "-n", "8", "-r", "2", "-o", "json"]
    code = run(["bench", str(model(version, answer=ANSWER, decode_us=2000, limit=1024)), *words])
    out, err = capsys.readouterr()
    assert code == 0, err
    rows = json.loads(out)
    assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [(64, 0), (0, 8)]
    assert 0 < rows[1]["avg_ts"] < 500  # the stand-in sleeps 2 ms for each token
    assert "the context is 1024 tokens: the model was converted for no more" in err


@pytest.mark.slow
def test_a_crash_is_a_result(model: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Its own cause is told, and not what was fixed before: the context was too long, and was cut."""
    path = model(crash_after=1, answer=ANSWER, limit=1024)
    assert run(["bench", str(path), "--placement", "rkllm/npu", "--test", "tg", "-n", "8", "-r", "1"]) == 1
    out, err = capsys.readouterr()
    assert "rkllm/npu failed 1 of 1: segmentation fault (SIGSEGV)" in out
    assert "no placement worked" in err


@pytest.mark.slow
def test_safer_settings_are_tried_and_the_message_reaches_the_user(
    model: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = model(fail="memory")
    words = ["--placement", "rkllm/npu:c=512", "--test", "tg", "-n", "8", "-r", "1"]  # no shorter context to try
    assert run(["bench", str(path), *words]) == 1
    out, err = capsys.readouterr()
    assert "out of NPU memory (IOMMU domains full)" in out
    assert "embeddings left on the disk" in err


def test_a_placement_that_cannot_be_says_why(model: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(model(chip="RK3568")), "--placement", "rkllm/npu", "--test", "tg"]) == 2
    assert "the RKLLM runtime does not support the RK3568" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more", [("--no-quality",), pytest.param((), marks=pytest.mark.slow)], ids=["speed", "with quality"]
)
@pytest.mark.parametrize(
    ("printed", "line"), [("matmul", "E rkllm: matmul(w8a8) run failed"), ("submit", "E RKNN: failed to submit!")]
)
def test_errors_that_are_only_printed_make_it_broken(
    model: Callable[..., Path], capsys: pytest.CaptureFixture[str], printed: str, line: str, more: tuple[str, ...]
) -> None:
    path = model(answer=ANSWER, limit=1024, prints=printed)
    words = ["--placement", "rkllm/npu:c=512", "--test", "tg", "-n", "8", "-r", "2", *more]
    assert run(["bench", str(path), *words]) == 1
    out, err = capsys.readouterr()
    assert line in out
    assert "its answers are broken" in out + err
    assert run(["results", "show", "1", "-o", "json"]) == 0
    campaign = json.loads(capsys.readouterr().out)
    campaign = campaign.get("campaigns", [campaign])[0]
    assert campaign["placements"][0]["quality"]["verdict"] == "broken"
    assert {found["failure"]["kind"] for found in campaign["runs"] if found["failure"]} == {"tainted"}
