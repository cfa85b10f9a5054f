"""Files below one folder: what is read and written, in which order, and what is refused."""

import errno
import os
from pathlib import Path

import pytest

from trilithon.errors import ModelError, NoRoom
from trilithon.models.store.safe_dir import SafeDir, read_at, translated


@pytest.fixture
def safe_dir(tmp_path: Path) -> SafeDir:
    return SafeDir(tmp_path / "data" / "root")


def open_files() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize(
    ("number", "filename", "error", "text"),
    [
        (
            errno.ENOSPC,
            None,
            NoRoom,
            "no space left in /store; free some there, or set TRILITHON_DATA to another folder",
        ),
        (
            errno.EDQUOT,
            "x",
            NoRoom,
            "no space left in /store; free some there, or set TRILITHON_DATA to another folder",
        ),
        (
            errno.EROFS,
            None,
            ModelError,
            "/store cannot be written (Read-only file system); fix that, or set TRILITHON_DATA to another folder",
        ),
        (
            errno.EACCES,
            "x",
            ModelError,
            "/store cannot be written (Permission denied); fix that, or set TRILITHON_DATA to another folder",
        ),
        (
            errno.EPERM,
            None,
            ModelError,
            "/store cannot be written (Operation not permitted); fix that, or set TRILITHON_DATA to another folder",
        ),
        (
            errno.EFBIG,
            None,
            ModelError,
            "/store takes no file of that size (FAT32: 4 GiB); set TRILITHON_DATA to another folder",
        ),
        (
            errno.ENAMETOOLONG,
            "n" * 300,
            ModelError,
            f"{'n' * 80}… is too long for this file system; choose a shorter name",
        ),
        (errno.ENAMETOOLONG, None, ModelError, "/store… is too long for this file system; choose a shorter name"),
        (
            errno.EIO,
            "x",
            ModelError,
            "/store: x: Input/output error; fix that, or set TRILITHON_DATA to another folder",
        ),
        (
            errno.EIO,
            7,
            ModelError,
            "/store: /store: Input/output error; fix that, or set TRILITHON_DATA to another folder",
        ),
    ],
)
def test_an_error_of_the_disk_is_one_line(
    number: int, filename: str | int | None, error: type[ModelError], text: str
) -> None:
    with pytest.raises(ModelError) as caught, translated(Path("/store")):
        raise OSError(number, os.strerror(number), filename)
    assert (type(caught.value), str(caught.value)) == (error, text)


def test_an_error_without_a_number_is_told_by_its_own_text() -> None:
    with pytest.raises(ModelError, match=r"^/store: /store: odd; fix that"), translated(Path("/store")):
        raise OSError("odd")


def test_files_are_written_and_listed(safe_dir: SafeDir) -> None:
    before = open_files()
    assert (safe_dir.names(("a",)), safe_dir.sizes(("a",))) == ([], {})
    for name in ("c", "b", "d"):
        safe_dir.write(("a", "b", name), name.encode() * 3)
    safe_dir.write(("a", "b", "c"), b"new")
    safe_dir.link(("a", "b", "link"), Path("c"))
    assert safe_dir.names(("a", "b")) == ["b", "c", "d", "link"]
    assert {name: status.st_size for name, status in safe_dir.sizes(("a", "b")).items()} == {"b": 3, "c": 3, "d": 3}
    assert safe_dir.read(("a", "b", "c"), 3) == b"new"
    assert (safe_dir.root / "a/b/c").read_bytes() == b"new"
    assert safe_dir.path(("a", "b", "c")) == safe_dir.root / "a/b/c"
    assert open_files() == before


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "folder", "link", "pipe", "none"])
def test_only_plain_files_of_the_folder_are_opened(safe_dir: SafeDir, name: str) -> None:
    safe_dir.write(("folder", "file"), b"x")
    (safe_dir.root / "a").mkdir()
    (safe_dir.root / "a/b").write_text("x")
    (safe_dir.root / "link").symlink_to("folder/file")
    os.mkfifo(safe_dir.root / "pipe")
    before = open_files()
    for attempt in (
        lambda: safe_dir.open((name,)),
        lambda: safe_dir.read((name,), 100),
        lambda: safe_dir.read((name, "file"), 100) if name != "folder" else safe_dir.read((name,), 100),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            attempt()
        expected = errno.ELOOP if name == "link" else errno.ENOENT
        assert (caught.value.errno, caught.value.filename in (name, "file")) == (expected, True)
    if name not in ("a/b", ".", "..", ""):
        with pytest.raises(FileNotFoundError) as caught:
            safe_dir.status((name,))
        assert caught.value.errno == errno.ENOENT
        assert str(caught.value.filename).endswith(name)
    assert open_files() == before


def test_no_file_that_is_opened_passes_to_a_child(safe_dir: SafeDir) -> None:
    safe_dir.write(("a", "file"), b"x")
    descriptor = safe_dir.open(("a", "file"))
    with safe_dir.folder(("a",)) as folder:
        assert (os.get_inheritable(descriptor), os.get_inheritable(folder)) == (False, False)
    os.close(descriptor)


def test_a_root_that_is_no_folder_is_an_error(safe_dir: SafeDir) -> None:
    safe_dir.root.parent.mkdir()
    safe_dir.root.write_text("a file")
    for attempt in (lambda: safe_dir.names(()), lambda: safe_dir.write(("a", "b"), b"x")):
        with pytest.raises((NotADirectoryError, FileExistsError)):
            attempt()
    with pytest.raises(NotADirectoryError), safe_dir.folder(()):
        pass


def test_a_link_is_never_written_through(safe_dir: SafeDir, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    safe_dir.root.mkdir(parents=True)
    (safe_dir.root / "folder").symlink_to(outside)
    (safe_dir.root / "file").symlink_to(outside / "file")
    with pytest.raises(OSError, match="is a symbolic link, and the store follows none") as caught:
        safe_dir.open(("file",), os.O_RDWR | os.O_CREAT)
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, "file")
    with pytest.raises(FileNotFoundError):
        safe_dir.write(("folder", "file"), b"x")
    safe_dir.write(("file",), b"x")  # replaces the link
    assert safe_dir.read(("file",), 1) == b"x"
    assert list(outside.iterdir()) == []


def test_folders_are_made_only_for_what_is_written(safe_dir: SafeDir) -> None:
    for attempt in (
        lambda: safe_dir.open(("a", "b")),
        lambda: safe_dir.unlink(("a", "b")),
        lambda: safe_dir.status(("a", "b")),
        lambda: safe_dir.rename(("a", "b"), ("c", "b")),
    ):
        with pytest.raises(FileNotFoundError):
            attempt()
    assert safe_dir.target(("a", "b")) is None
    assert not safe_dir.root.exists()
    os.close(safe_dir.open(("a", "b"), os.O_RDWR | os.O_CREAT))
    assert (safe_dir.root / "a/b").read_bytes() == b""
    assert (safe_dir.root / "a/b").stat().st_mode & 0o777 == 0o644
    safe_dir.rename(("a", "b"), ("c", "d", "e"))
    assert (safe_dir.names(("a",)), safe_dir.names(("c", "d"))) == ([], ["e"])


def test_a_file_is_read_up_to_a_size(safe_dir: SafeDir) -> None:
    safe_dir.write(("file",), b"12345")
    assert safe_dir.read(("file",), 5) == b"12345"
    with pytest.raises(OSError, match="File too large") as caught:
        safe_dir.read(("file",), 4)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, "file")
    safe_dir.write(("file",), b"")
    assert safe_dir.read(("file",), 0) == b""


def test_a_file_that_comes_in_pieces_is_read_whole(safe_dir: SafeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    safe_dir.write(("file",), b"12345")
    whole_read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, count: whole_read(descriptor, min(count, 2)))
    with safe_dir.folder(()) as folder:
        assert read_at(folder, "file", 5) == b"12345"


def test_a_file_that_grows_while_it_is_read_is_refused(safe_dir: SafeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    safe_dir.write(("file",), b"12345")
    whole_read = os.read

    def grown(descriptor: int, count: int) -> bytes:
        with (safe_dir.root / "file").open("ab") as file:
            file.write(b"6")
        return whole_read(descriptor, count)

    monkeypatch.setattr(os, "read", grown)
    with pytest.raises(OSError, match="File too large") as caught:
        safe_dir.read(("file",), 100)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, "file")


def test_a_link_is_made_replaced_and_read(safe_dir: SafeDir) -> None:
    safe_dir.link(("a", "link"), Path("/one"))
    (safe_dir.root / "a/.new-link").write_text("left by a killed writer")
    safe_dir.link(("a", "link"), Path("/other"))
    assert safe_dir.target(("a", "link")) == "/other"
    assert safe_dir.names(("a",)) == ["link"]
    safe_dir.write(("a", "file"), b"x")
    assert (safe_dir.target(("a", "file")), safe_dir.target(("a", "none"))) == (None, None)
    with pytest.raises(OSError, match="too long"):
        safe_dir.target(("a", "n" * 300))


def test_what_is_removed(safe_dir: SafeDir) -> None:
    for parts in (("a", "b", "file"), ("a", "b", ".new-file"), ("a", "b", "sub", "file"), ("a", "b", ".new-sub", "x")):
        safe_dir.write(parts, b"x")
    safe_dir.link(("a", "b", "link"), Path("file"))
    safe_dir.remove_temporary(("a", "b"))
    assert safe_dir.names(("a", "b")) == [".new-sub", "file", "link", "sub"]
    safe_dir.remove_entries(("a", "b"))
    assert safe_dir.names(("a", "b")) == [".new-sub", "sub"]
    safe_dir.remove_entries(("a", "none"))
    safe_dir.remove_empty(("a", "b", "sub"))
    assert safe_dir.names(("a", "b", "sub")) == ["file"]
    safe_dir.unlink(("a", "b", "sub", "file"))
    safe_dir.unlink(("a", "b", ".new-sub", "x"))
    safe_dir.remove_empty(("a", "b", ".new-sub"))
    assert safe_dir.names(("a", "b")) == ["sub"]
    safe_dir.remove_empty(("a", "b", "sub"))
    assert safe_dir.names(()) == ["a"]
    assert safe_dir.names(("a",)) == []


def test_a_walk_gives_the_entries_so_many_folders_below(safe_dir: SafeDir) -> None:
    for parts in (("a", "z", "2"), ("a", "z", "1"), ("a", "y", "3"), ("a", "y", "deeper", "4"), ("a", "top"), ("b",)):
        safe_dir.write(parts, b"/".join(map(str.encode, parts)))
    (safe_dir.root / "a/link").symlink_to("z")
    before, errors = open_files(), []
    seen = [
        (relative, read_at(folder, relative[-1], 100) if relative[-1] != "deeper" else b"")
        for relative, folder in safe_dir.walk(("a",), 1, lambda path, error: errors.append(path))
    ]
    assert seen == [(("y", "3"), b"a/y/3"), (("y", "deeper"), b""), (("z", "1"), b"a/z/1"), (("z", "2"), b"a/z/2")]
    assert [relative for relative, _ in safe_dir.walk((), 0, lambda *_: None)] == [("a",), ("b",)]
    assert list(safe_dir.walk(("none",), 1, lambda path, error: errors.append(path))) == []
    assert (errors, open_files()) == ([safe_dir.root / "a/link"], before)


def test_a_walk_tells_of_folders_that_cannot_be_read(safe_dir: SafeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        safe_dir.write(("top", name, "file"), b"x")
    whole_open, whole_list = os.open, os.listdir

    def refuse(name: str | Path, *others: int, **more: int) -> int:
        if name == "b":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "b")
        return whole_open(name, *others, **more)

    def closed(folder: int) -> list[str]:
        if Path(f"/proc/self/fd/{folder}").readlink().name == "c":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return whole_list(folder)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "listdir", closed)
    errors: list[tuple[Path, int | None]] = []
    seen = [
        relative for relative, _ in safe_dir.walk(("top",), 1, lambda path, error: errors.append((path, error.errno)))
    ]
    assert seen == [("a", "file")]
    assert errors == [(safe_dir.root / "top/b", errno.EACCES), (safe_dir.root / "top/c", errno.EACCES)]
    assert list(safe_dir.walk(("top", "b"), 0, lambda path, error: errors.append((path, error.errno)))) == []
    assert errors[-1] == (safe_dir.root / "top/b", errno.EACCES)
    assert len(errors) == 3


def test_names_are_on_the_disk_when_a_change_returns(safe_dir: SafeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut after the call loses nothing: the folders with a new or removed name are flushed."""
    synced: list[str] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    safe_dir.write(("a", "b", "file"), b"x")
    assert synced == ["root", "a", ".new-file", "b"]
    synced.clear()
    safe_dir.write(("a", "b", "file"), b"y")
    assert synced == [".new-file", "b"]
    synced.clear()
    safe_dir.rename(("a", "b", "file"), ("c", "file"))
    assert synced == ["root", "c", "b"]
    synced.clear()
    safe_dir.unlink(("c", "file"))
    assert synced == ["c"]
