"""A program that uses LiteLLM, in a process of its own: it is slow to import, and looks for its list of prices on the
internet unless told not to."""

import json
import os
import subprocess
import sys
from typing import Any

__all__ = ["said_by"]


def said_by(program: str, url: str) -> Any:
    """What it printed last, as JSON; it is given the server's address."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, url],
        env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
