"""A new user in an empty Debian types the lines of README.md's "Quick start", and nothing else.

It takes many minutes and root, so it runs only where a folder for the empty systems is named, which are used again:

    TRILITHON_TEST_EMPTY_DEBIAN=FOLDER .venv/bin/pytest -m slow tests/emulated/test_empty_debian.py"""

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LINES = re.findall(
    r"^```sh\n(.*?)^```",
    (ROOT / "README.md").read_text(encoding="utf-8").partition("## Quick start")[2].partition("\n## ")[0],
    re.DOTALL | re.MULTILINE,
)
# What a computer has beside minbase: its user may become root, and services are systemd's.
PACKAGES = "ca-certificates,sudo,systemd"
# The server answers until it is ended. A browser looks at it meanwhile.
BROWSER = """
import sys, time, urllib.request
url, end = sys.argv[1], time.monotonic() + 120
while True:
    try:
        request = urllib.request.Request(url, headers={"Accept": "text/html"})
        page = urllib.request.urlopen(request, timeout=60).read().decode()
        break
    except OSError:
        if time.monotonic() > end:
            raise
        time.sleep(0.5)
assert "Trilithon" in page and "_nicegui" in page, page[:500]
print("PAGES ARE THERE")
"""


def test_the_readme_has_the_lines() -> None:
    typed = re.sub(" +#.*", "", "".join(LINES))
    install, chat, service = "sudo apt install", "trilithon run demo", "trilithon service install"
    assert [line for line in (install, "make bench\n", chat, "trilithon serve\n", service) if line not in typed] == []


@pytest.fixture(params=["bookworm", "trixie"])
def debian(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The root of that release, with the clone in the home of `user`."""
    folder = os.environ.get("TRILITHON_TEST_EMPTY_DEBIAN")
    if not folder:
        pytest.skip("TRILITHON_TEST_EMPTY_DEBIAN names no folder: it downloads 2 GB and takes many minutes")
    if os.getuid() != 0 or shutil.which("mmdebstrap") is None:
        pytest.skip("an empty Debian is made by root, with mmdebstrap")
    empty, root = Path(folder, request.param), tmp_path / "root"
    if not empty.exists():
        make_empty_system(request.param, empty)
    subprocess.run(["cp", "-a", empty, root], check=True)
    for name in ("resolv.conf", "ssl/certs/ca-certificates.crt"):  # how this machine reaches the world
        shutil.copy(Path("/etc", name).resolve(), root / "etc" / name)
    (root / "etc/sudoers.d/user").write_text("user ALL=(ALL) NOPASSWD: ALL\n")
    (root / "etc/apt/apt.conf.d/90yes").write_text('APT::Get::Assume-Yes "true";\n')  # the user says yes
    subprocess.run(["chroot", root, "useradd", "--create-home", "--shell", "/bin/bash", "user"], check=True)
    left_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, root / "home/user/trilithon", symlinks=True, ignore=left_out)
    subprocess.run(["chroot", root, "chown", "-R", "user:user", "/home/user"], check=True)
    return root


def make_empty_system(release: str, folder: Path) -> None:
    sites = subprocess.run(["apt-get", "indextargets", "--format", "$(SITE)"], capture_output=True, text=True)
    mirror = next(line for line in sites.stdout.splitlines() if line.rstrip("/").endswith("/debian"))
    unfinished = folder.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    options = ("--variant=minbase", f"--include={PACKAGES}")
    subprocess.run(["mmdebstrap", *options, release, unfinished, mirror], check=True, capture_output=True)
    unfinished.rename(folder)


def script(port: int) -> str:
    """The lines as typed; a server is looked at in a browser, and then ended."""
    lines = ["set -eux", "cd ~/trilithon"]
    for line in "".join(LINES).splitlines():
        command = re.sub(r" +#.*", "", line)
        if command.startswith("trilithon serve"):
            lines += [f"{command} & server=$!", f"python3 ~/browser.py http://127.0.0.1:{port}/", "kill -TERM $server"]
            lines.append("wait $server")
        elif command.startswith("trilithon service install"):
            # No system manager runs in a chroot; what it would be given is checked.
            lines += [f"{command} --dry-run | sed '/^# then/,$d' > ~/trilithon.service"]
            lines += ["systemd-analyze --user verify ~/trilithon.service", "echo THE SERVICE IS FINE"]
        else:
            lines.append(command)
    return "\n".join([*lines, "echo EVERY LINE WORKED", ""])


@pytest.mark.slow  # it installs everything into an empty system
@pytest.mark.timeout(3600)
def test_the_first_ten_minutes(debian: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    home = debian / "home/user"
    (home / "browser.py").write_text(BROWSER)
    (home / "script").write_text(script(port))
    passed = {name: text for name, text in os.environ.items() if name in ("PIP_CERT", "SSL_CERT_FILE", "https_proxy")}
    # Another server may have the usual port here.
    passed |= {"OLLAMA_HOST": f"127.0.0.1:{port}", "DEBIAN_FRONTEND": "noninteractive"}
    exports = "".join(f"export {name}='{text}'\n" for name, text in passed.items())
    (debian / "etc/profile.d/machine.sh").write_text(exports)
    inside = (
        f"mount --make-rprivate / && mount -t proc proc {debian}/proc && mount --rbind /dev {debian}/dev && "
        f"mount --rbind /sys {debian}/sys && exec chroot {debian} su - user -c 'bash ~/script'"
    )
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", inside]
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", stdin=subprocess.DEVNULL
    )
    assert done.stdout.endswith("EVERY LINE WORKED\n"), done.stdout[-5000:]
    assert "PAGES ARE THERE" in done.stdout
    assert "THE SERVICE IS FINE" in done.stdout
    assert "recommended placement" in done.stdout, "of the first bench"
    assert re.search(r"^\+ trilithon run demo .*\n(?:.*\n)*?.*\bParis\b", done.stdout, re.MULTILINE), "the first chat"
