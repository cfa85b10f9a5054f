"""A new user in an empty Debian types the lines of README.md's "Quick start", and nothing else.

It takes many minutes and root, so it runs only where a folder for the empty systems is named, which are used again:

    TRILITHON_TEST_EMPTY_DEBIAN=FOLDER .venv/bin/pytest -m slow tests/emulated/test_empty_debian.py"""

import os
import re
import shlex
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from arm64_root import ARM64_PROGRAMS

ROOT = Path(__file__).parent.parent.parent
LINES = re.findall(
    r"^```sh\n(.*?)^```",
    (ROOT / "README.md").read_text(encoding="utf-8").partition("## Quick start")[2].partition("\n## ")[0],
    re.DOTALL | re.MULTILINE,
)
# What a computer has beside minbase: its user may become root, and services are systemd's.
PACKAGES = "ca-certificates,sudo,systemd"
# chroot ROOT COMMAND…, with what programs expect of a system that runs.
CHROOT = """
mount --make-rprivate /
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
mount --rbind /sys "$1/sys"
exec chroot "$@"
"""
# arm64 QEMU COMMAND…: as root of a user name space that has every user, where arm64 programs are given to qemu with the
# rights of their files (sudo). Who makes such a name space is nobody in it; who enters it is its root.
ARM64 = """
qemu=$1; shift
unshare --user sleep infinity & holder=$!
trap 'kill $holder' EXIT
until echo 0 0 65536 > /proc/$holder/uid_map; do sleep 0.1; done 2> /dev/null
echo 0 0 65536 > /proc/$holder/gid_map
export FORMAT="$FORMAT:$qemu:FC"
nsenter --user --target $holder --setuid 0 --setgid 0 unshare --mount --pid --fork --kill-child sh -ec '
  mount --make-rprivate /
  mount -t proc proc /proc
  mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
  printf %s "$FORMAT" > /proc/sys/fs/binfmt_misc/register
  exec "$@"' sh "$@"
"""
# The server answers until it is ended. A browser looks at it meanwhile.
BROWSER = """
import sys, time, urllib.request
url, end = sys.argv[1], time.monotonic() + 900
headers = {"Accept": "text/html"} | {"Authorization": f"Bearer {key}" for key in sys.argv[2:]}
while True:
    try:
        request = urllib.request.Request(url, headers=headers)
        page = urllib.request.urlopen(request, timeout=300).read().decode()
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


@dataclass(frozen=True, slots=True)
class System:
    """`enter` is what stands before a command that runs as root of name spaces where the system's programs run."""

    root: Path
    enter: tuple[str, ...]
    is_emulated: bool

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        words = [*self.enter, "sh", "-ec", CHROOT, "chroot", str(self.root), *argv]
        pipe = subprocess.PIPE
        return subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )


@pytest.fixture(params=["bookworm", "trixie", "bookworm-arm64"])
def debian(request: pytest.FixtureRequest, tmp_path: Path) -> System:
    """That release, with the clone in the home of `user`."""
    folder = os.environ.get("TRILITHON_TEST_EMPTY_DEBIAN")
    if not folder:
        pytest.skip("TRILITHON_TEST_EMPTY_DEBIAN names no folder: it downloads 2 GB and takes many minutes")
    if os.getuid() != 0 or shutil.which("mmdebstrap") is None:
        pytest.skip("an empty Debian is made by root, with mmdebstrap")
    release, _, machine = request.param.partition("-")
    enter: tuple[str, ...] = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
    if machine:
        enter = ("env", f"FORMAT={ARM64_PROGRAMS}", "sh", "-ec", ARM64, "arm64", str(request.getfixturevalue("qemu")))
    empty, root = Path(folder, request.param), tmp_path / "root"
    if not empty.exists():
        make_empty_system(release, empty, enter, machine)
    subprocess.run(["cp", "-a", empty, root], check=True)
    for name in ("resolv.conf", "ssl/certs/ca-certificates.crt"):  # how this machine reaches the world
        shutil.copy(Path("/etc", name).resolve(), root / "etc" / name)
    (root / "etc/sudoers.d/user").write_text("user ALL=(ALL) NOPASSWD: ALL\n")
    (root / "etc/apt/apt.conf.d/90yes").write_text('APT::Get::Assume-Yes "true";\n')  # the user says yes
    system = System(root, enter, is_emulated=bool(machine))
    added = system.run("useradd", "--create-home", "--shell", "/bin/bash", "user")
    assert added.returncode == 0, added.stdout
    left_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, root / "home/user/trilithon", symlinks=True, ignore=left_out)
    assert system.run("chown", "-R", "user:user", "/home/user").returncode == 0
    return system


def make_empty_system(release: str, folder: Path, enter: tuple[str, ...], machine: str) -> None:
    sites = subprocess.run(["apt-get", "indextargets", "--format", "$(SITE)"], capture_output=True, text=True)
    mirror = next(line for line in sites.stdout.splitlines() if line.rstrip("/").endswith("/debian"))
    unfinished = folder.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    options = ["--variant=minbase", f"--include={PACKAGES}"]
    if machine:  # the name spaces have no /sys, and no devices of their own
        options += [f"--architectures={machine}", "--mode=root"]
        options += ["--skip=check/qemu,chroot/mount/sys,chroot/mount/dev"]
    subprocess.run([*enter, "mmdebstrap", *options, release, unfinished, mirror], check=True, capture_output=True)
    unfinished.rename(folder)


def machine_variables() -> dict[str, str]:
    """How this machine reaches the world. What is emulated has the CPU of an RK3588."""
    names = ("PIP_CERT", "SSL_CERT_FILE", "https_proxy")
    variables = {name: os.environ[name] for name in names if name in os.environ}
    return variables | {"DEBIAN_FRONTEND": "noninteractive", "QEMU_CPU": "cortex-a76"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def script(port: int) -> str:
    """The lines as typed; a server is looked at in a browser, and then ended."""
    lines = ["set -eux", "cd ~/trilithon"]
    for line in "".join(LINES).splitlines():
        command = re.sub(r" +#.*", "", line)
        if command.startswith("trilithon serve"):
            lines += [f"{command} & server=$!", f"python3 ~/browser.py http://127.0.0.1:{port}/", "kill -TERM $server"]
            lines.append("wait $server")
        elif command.startswith("trilithon service install"):
            # No system manager runs in a chroot; what it would be given is checked. A login has a runtime directory.
            lines += [f"{command} --dry-run | sed '/^# then/,$d' > ~/trilithon.service"]
            lines += ["export XDG_RUNTIME_DIR=$(mktemp -d)", "systemd-analyze --user verify ~/trilithon.service"]
            lines.append("echo THE SERVICE IS FINE")
        else:
            lines.append(command)
    return "\n".join([*lines, "echo EVERY LINE WORKED", ""])


@pytest.mark.slow  # it installs everything into an empty system
@pytest.mark.timeout(3600)
def test_the_first_ten_minutes(debian: System) -> None:
    port, home = free_port(), debian.root / "home/user"
    (home / "browser.py").write_text(BROWSER)
    (home / "script").write_text(script(port))
    # Another server may have the usual port here.
    variables = machine_variables() | {"OLLAMA_HOST": f"127.0.0.1:{port}"}
    if debian.is_emulated:  # tens of times slower: little is measured, and nothing compiled that is never imported
        variables |= {"BENCH": "-p 16 -n 4 -r 1 --test pp --test tg --no-quality", "PIP_NO_COMPILE": "1"}
        variables |= {"TRILITHON_START_SECONDS": "1200", "TRILITHON_HANG_SECONDS": "1200"}
    exports = "".join(f"export {name}='{text}'\n" for name, text in variables.items())
    (debian.root / "etc/profile.d/machine.sh").write_text(exports)
    done = debian.run("su", "-", "user", "-c", "bash ~/script")
    assert done.stdout.endswith("EVERY LINE WORKED\n"), done.stdout[-5000:]
    assert "PAGES ARE THERE" in done.stdout
    assert "THE SERVICE IS FINE" in done.stdout
    assert re.search(r"^tg\d+ +llama\.cpp/cpu +Decode +[\d.]+ ", done.stdout, re.MULTILINE), "the first bench"
    assert "saved as campaign 1:" in done.stdout
    assert re.search(r"^\+ trilithon run demo .*\n(?:.*\n)*?.*\bParis\b", done.stdout, re.MULTILINE), "the first chat"


def container_steps() -> list[tuple[str, str]]:
    """Instructions of the container file with their arguments; lines that go on are one."""
    text = (ROOT / "packaging/Containerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word]


def copy_into(target: Path, sources: list[Path], *, is_folder: bool) -> None:
    """As COPY does: of a folder its content."""
    (target if is_folder else target.parent).mkdir(parents=True, exist_ok=True)
    for source in sources:
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        else:
            shutil.copy(source, target)


# The server is asked as the health check does, and by a browser with the key.
IN_THE_CONTAINER = """
cd /data
key=$(trilithon key add home)
trilithon run demo "The capital of France is"
trilithon serve --host 0.0.0.0 --port $PORT & server=$!
python /home/user/browser.py http://127.0.0.1:$PORT/ $key
python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$PORT/health', timeout=4)"
kill -TERM $server
wait $server
echo EVERY STEP WORKED
"""


@pytest.mark.slow  # it installs everything into an empty system
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("debian", ["bookworm"], indirect=True)
def test_the_container_files_steps(debian: System) -> None:
    """Without a container's engine: its image is Debian 12 with a Python, which is Debian's here."""
    clone, port = debian.root / "home/user/trilithon", free_port()
    (debian.root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    variables = machine_variables() | {"PATH": "/usr/local/bin:/usr/bin:/usr/sbin", "PORT": str(port)}

    def run(*argv: str) -> str:
        done = debian.run("env", "-i", *(f"{name}={text}" for name, text in variables.items()), *argv)
        assert done.returncode == 0, f"{argv}: {done.stdout[-3000:]}"
        return done.stdout

    run("sh", "-ec", "apt-get update && apt-get install python3-venv")
    user = []
    for instruction, rest in container_steps():
        if instruction == "COPY" and not rest.startswith("--from"):
            *names, target = rest.split()
            copy_into(debian.root / target.lstrip("/"), [clone / name for name in names], is_folder=target[-1] == "/")
        elif instruction == "RUN":
            run("sh", "-ec", rest)
        elif instruction == "ENV":
            values = (word.split("=", 1) for word in shlex.split(rest))
            variables |= {name: text.replace("$PATH", variables["PATH"]) for name, text in values}
        elif instruction == "USER":
            user = [
                "setpriv",
                "--clear-groups",
                *(f"--re{k}id={n}" for k, n in zip("ug", rest.split(":"), strict=True)),
            ]
    (debian.root / "home/user/browser.py").write_text(BROWSER)
    output = run(*user, "sh", "-exc", IN_THE_CONTAINER)
    assert output.endswith("EVERY STEP WORKED\n"), output[-3000:]
    assert "PAGES ARE THERE" in output and "Paris" in output
