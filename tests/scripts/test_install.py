"""`make install`, `make bench` and their scripts: which Python, which installer, where `trilithon` then is."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PROGRAM = Path(sys.executable).with_name("trilithon")
UV = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
# A system whose python3 is as old as that of Debian 11: it has no other.
OLD = "#!/bin/sh\ncase $2 in *%d.%d.%d*) echo 3.9.2 ;; *) exit 1 ;; esac\n"
OLD_PYTHONS = sorted(Path.home().glob(".pyenv/versions/3.[89].*/bin/python3")) or [Path("/nothing")]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """The only folder of PATH: what a script calls, and no Python."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("sh", "env", "make", "dirname", "rm", "ln", "mkdir", "readlink", "touch", "grep"):
        program = shutil.which(name)
        assert program, name
        (folder / name).symlink_to(program)
    return folder


def run(clone: Path, tools: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    home = clone.parent / "home"
    home.mkdir(exist_ok=True)
    kept = {name: text for name, text in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_", "HTTP", "http"))}
    environment = kept | {"HOME": str(home), "PATH": str(tools), "SHELL": "/bin/bash"} | more
    return subprocess.run(words, cwd=clone, env=environment, capture_output=True, text=True, timeout=300, check=False)


def stand_in(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_no_line_installs_from_an_index_that_does_not_carry_it() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if name and not name.startswith("tests/")]
    if not names:
        pytest.skip("this is not a git clone")
    wrong = re.compile(r"(?:pip|pipx|uv tool|uv pip) install [^\n`;&]*\btrilithon(?:\[|'|`|\s|$)")
    lines = [
        f"{name}: {line.strip()}"
        for name in names
        if (ROOT / name).suffix not in {".mo", ".png", ".svg"} and (ROOT / name).is_file()
        for line in (ROOT / name).read_text(encoding="utf-8", errors="replace").splitlines()
        if wrong.search(line)
    ]
    assert lines == []


@pytest.mark.parametrize("old", [None, *OLD_PYTHONS], ids=lambda path: path.parts[-3] if path else "stand-in")
def test_an_old_python_is_told_with_the_line_that_gets_another(clone: Path, tools: Path, old: Path | None) -> None:
    if old is None:
        stand_in(tools / "python3", OLD)
    elif old.exists():
        stand_in(tools / "python3", f'#!/bin/sh\nexec {old} "$@"\n')
    else:
        pytest.skip("this machine has no Python older than 3.11")
    done = run(clone, tools, "make", "bench")
    assert done.returncode == 2
    assert re.search(r"error: Python 3\.11 or newer is needed, python3 is 3\.[89]\.\d+; run this, ", done.stderr)
    assert "curl -LsSf https://astral.sh/uv/install.sh | sh" in done.stderr
    assert not (clone / ".venv").exists()


def test_the_package_of_the_distribution_is_named_where_there_is_one(clone: Path, tools: Path) -> None:
    stand_in(tools / "python3", OLD)
    policy = (
        'echo "$2:"; [ "$2" = python3.11 ] && echo "  Candidate: 3.11.0~rc1-1~22.04" || echo "  Candidate: (none)"\n'
    )
    stand_in(tools / "apt-cache", f"#!/bin/sh\n{policy}")
    done = run(clone, tools, "scripts/venv.sh")
    assert "\nor: sudo apt install python3.11 python3.11-venv\n" in done.stderr


def test_no_python_at_all(clone: Path, tools: Path) -> None:
    done = run(clone, tools, "make", "bench", PYTHON="")
    assert done.returncode == 2
    assert "error: Python 3.11 or newer is needed, python3 is missing" in done.stderr


@pytest.mark.slow  # it makes a real environment, with pip
@pytest.mark.timeout(400)
def test_a_newer_python_beside_an_old_one_is_taken(clone: Path, tools: Path) -> None:
    stand_in(tools / "python3", OLD)
    stand_in(tools / "python3.11", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    assert run(clone, tools, "scripts/venv.sh").returncode == 0
    assert (clone / ".venv" / "bin" / "pip").exists()


def without_venv(tools: Path) -> None:
    """As Debian's Python is without python3-venv."""
    python = sys._base_executable  # type: ignore[attr-defined] # uv takes no Python of a virtual environment
    stand_in(tools / "python3", f'#!/bin/sh\ncase $2 in *ensurepip*) exit 1 ;; *) exec {python} "$@" ;; esac\n')


def test_python_without_venv_names_its_package(clone: Path, tools: Path) -> None:
    without_venv(tools)
    done = run(clone, tools, "scripts/venv.sh")
    assert (done.returncode, (clone / ".venv").exists()) == (2, False)
    assert "error: python3 lacks venv; run: sudo apt install python3-venv" in done.stderr


@pytest.mark.slow  # it makes a real environment, with pip
@pytest.mark.timeout(400)
def test_uv_makes_the_environment_where_python_cannot(clone: Path, tools: Path) -> None:
    if UV is None:
        pytest.skip("uv is missing")
    without_venv(tools)
    (tools / "uv").symlink_to(UV)
    done = run(clone, tools, "scripts/venv.sh", UV_PYTHON_DOWNLOADS="never")
    assert done.returncode == 0, done.stderr
    assert (clone / ".venv" / "bin" / "pip").exists()


def test_the_measurement_takes_options(clone: Path, tools: Path) -> None:
    assert "\n.venv/bin/trilithon bench -p 16\n" in run(clone, tools, "make", "-n", "bench", "BENCH=-p 16").stdout


def linked(clone: Path, tools: Path) -> subprocess.CompletedProcess[str]:
    """As after `make bench`, with this environment's program in place of the clone's."""
    (clone / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
    (clone / ".venv" / "bin" / "trilithon").unlink(missing_ok=True)
    stand_in(clone / ".venv" / "bin" / "trilithon", f'#!/bin/sh\nexec {sys.executable} -m trilithon.cli "$@"\n')
    return run(clone, tools, "scripts/install.sh", "--link", PYTHONPATH=str(ROOT / "src"))


def test_a_link_puts_it_on_path_and_can_be_removed(clone: Path, tools: Path) -> None:
    (tools / "bash").symlink_to(shutil.which("bash") or "/bin/bash")
    done = linked(clone, tools)
    assert done.returncode == 0, done.stderr
    home = clone.parent / "home"
    link, completion = home / ".local/bin/trilithon", home / ".local/share/bash-completion/completions/trilithon"
    assert link.readlink() == clone / ".venv" / "bin" / "trilithon"
    assert f"trilithon is installed: {link} leads to this folder, which has to stay" in done.stderr
    assert '.local/bin is not on PATH yet; log in again, or run: export PATH="$HOME/.local/bin:$PATH"' in done.stderr
    assert "complete -o nosort -F _trilithon_completion trilithon" in completion.read_text()
    (tools / "trilithon").symlink_to(link)
    version = run(clone, tools, "trilithon", "--version", PYTHONPATH=str(ROOT / "src"))
    assert version.stdout.startswith("trilithon 0.")
    again = linked(clone, tools)
    assert again.returncode == 0
    removed = run(clone, tools, "make", "uninstall")
    assert (removed.returncode, link.is_symlink(), completion.exists()) == (0, False, False)


def test_another_installation_stays(clone: Path, tools: Path) -> None:
    theirs = clone.parent / "home/.local/bin/trilithon"
    theirs.parent.mkdir(parents=True)
    stand_in(theirs, "#!/bin/sh\n")
    done = linked(clone, tools)
    assert done.returncode == 0
    assert f"{theirs} is another installation and stays; this folder's program is {clone}/.venv/bin/" in done.stderr
    assert not theirs.is_symlink()


def test_pipx_gets_the_constraints_of_a_clone_with_spaces(clone: Path, tools: Path) -> None:
    """It splits --pip-args as a shell does."""
    clone = clone.rename(clone.with_name("my boards"))
    (tools / "python3").symlink_to(sys.executable)
    program = '[ "$1" = list ] || { for last in "$@"; do printf "%s\\n" "$last"; done > "$HOME/words"; }'
    link = 'mkdir -p "$PIPX_BIN_DIR"; ln -sf "$(dirname "$0")/true" "$PIPX_BIN_DIR/trilithon"'
    (tools / "true").symlink_to(shutil.which("true") or "")
    stand_in(tools / "pipx", f"#!/bin/sh\n{program}\n[ $1 != install ] || {{ {link}; }}\n")
    done = run(clone, tools, "scripts/install.sh")
    assert done.returncode == 0, done.stderr
    words = (clone.parent / "home/words").read_text().splitlines()
    assert shlex.split(words[words.index("--pip-args") + 1]) == ["--constraint", f"{clone}/constraints.txt"]


def test_a_removal_without_an_installation_removes_the_completion(clone: Path, tools: Path) -> None:
    stand_in(tools / "pipx", "#!/bin/sh\n[ $1 = list ]\n")  # it uninstalls what is there alone
    completion = clone.parent / "home/.local/share/bash-completion/completions/trilithon"
    completion.parent.mkdir(parents=True)
    completion.write_text("")
    done = run(clone, tools, "scripts/install.sh", "--remove")
    assert (done.returncode, completion.exists()) == (0, False), done.stderr


def test_an_unknown_option_is_named(clone: Path, tools: Path) -> None:
    done = run(clone, tools, "scripts/install.sh", "--pages")
    assert (done.returncode, done.stderr) == (
        2,
        "error: --pages is not an option; they are --no-pages, --link and --remove\n",
    )


def test_the_light_requirements_leave_out_the_pages_alone() -> None:
    words = [sys.executable, str(ROOT / "scripts" / "light_requirements.py")]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert any(line.startswith("fastapi") for line in lines)
    assert any(line.startswith("gemma3") for line in lines)
    assert not any(line.startswith("nicegui") for line in lines)


@pytest.mark.slow  # it builds and installs the real wheel with all that it needs into an empty environment
@pytest.mark.timeout(600)
def test_make_install_by_uv(tools: Path, tmp_path: Path) -> None:
    if UV is None:
        pytest.skip("uv is missing")
    clone = tmp_path / "whole"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".*", "build", "tests", "*.egg-info", "node_modules"))
    (tools / "uv").symlink_to(UV)
    (tools / "python3").symlink_to(sys.executable)
    cache = os.environ.get("UV_CACHE_DIR") or str(Path.home() / ".cache" / "uv")
    words = {"UV_CACHE_DIR": cache, "UV_PYTHON_DOWNLOADS": "never", "UV_PYTHON": sys.executable}
    done = run(clone, tools, "make", "install", **words)
    assert done.returncode == 0, done.stderr
    program = tmp_path / "home/.local/bin/trilithon"
    assert f"trilithon is installed by uv: {program}" in done.stderr
    shutil.rmtree(clone)  # "this folder is not needed any more"
    assert run(tmp_path, tools, str(program), "--version").stdout.startswith("trilithon 0.")
    code = "import nicegui, jinja2, tokenizers, PIL, trilithon.web.app; from trilithon.models.fetch import demo; "
    python = tmp_path / "home/.local/share/uv/tools/trilithon/bin/python"
    inside = run(tmp_path, tools, str(python), "-c", code + "print(demo.has_demo_package())")
    assert inside.stdout == "True\n", inside.stderr
