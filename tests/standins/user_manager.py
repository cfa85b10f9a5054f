"""A real systemd of a user, for one shell script: both run in a mount namespace with an empty /run, because
systemd starts only where /run/systemd/system says that the machine was booted with it."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

__all__ = ["in_user_session"]

_PROGRAMS = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
_SESSION = r"""
mount -t tmpfs none /run && mkdir -p /run/systemd/system /run/session && chmod 700 /run/session || exit 77
export XDG_RUNTIME_DIR=/run/session
"$MANAGER" --user --log-target=console > "$HOME/manager.log" 2>&1 &
manager=$!
for _ in $(seq 100); do
    systemctl --user is-system-running > "$HOME/manager.state" 2>/dev/null
    case "$(cat "$HOME/manager.state")" in running|degraded) break ;; esac
    kill -0 $manager 2>/dev/null || exit 77
    sleep 0.1
done
bash -e "$HOME/session.sh"
code=$?
systemctl --user stop default.target
kill $manager; wait $manager
exit $code
"""


def in_user_session(script: str, home: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The script's output and exit code. The test is skipped where no such systemd can be started."""
    program = next((program for program in _PROGRAMS if Path(program).exists()), None)
    if program is None or shutil.which("unshare") is None:
        pytest.skip("this system has no systemd")
    (home / "session.sh").write_text(script)
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        ["unshare", *rights, "--mount", "--propagation", "private", "bash", "-c", _SESSION],
        env={**environment, "HOME": str(home), "MANAGER": program},
        capture_output=True,
        text=True,
        timeout=110,
    )
    if done.returncode == 77:
        pytest.skip(f"no systemd of a user can be started here: {done.stderr.strip()[-200:]}")
    return done
