"""LangChain's standard integration tests for its clients of Ollama, OpenAI and Anthropic, against a server of ours.

They run in an environment of their own, because LangChain's packages bring a hundred others
(50 s to install, so `.ci/fixtures` does not; the tests take a minute on an idle machine):

    python -m venv FOLDER
    FOLDER/bin/pip install langchain-tests langchain-ollama langchain-openai langchain-anthropic
    TRILITHON_TEST_LANGCHAIN=FOLDER/bin/python pytest tests/serve/test_langchain.py
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from live_server import Serve
from tool_caller import write_tool_caller

PYTHON = os.environ.get("TRILITHON_TEST_LANGCHAIN")
SUITE = Path(__file__).parent / "standins" / "langchain_suite.py"


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="TRILITHON_TEST_LANGCHAIN names no Python; see this file's first lines")
@pytest.mark.timeout(600)
def test_langchains_standard_tests(serve: Serve, tmp_path: Path) -> None:
    assert PYTHON is not None
    server = serve(write_tool_caller(tmp_path / "caller.gguf"), placement="llama.cpp@embedded/cpu:t=1")
    # The clients keep connections from one test to the next, which belong to the loop that they were opened in.
    loop = ("-o", "asyncio_mode=auto", "-o", "asyncio_default_test_loop_scope=session")
    done = subprocess.run(
        [PYTHON, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *loop, shutil.copy(SUITE, tmp_path)],
        env=os.environ | {"TRILITHON_URL": server.url},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
