"""`trilithon backup` and `trilithon restore`: everything that Trilithon keeps, except models."""

import json
from pathlib import Path

import click

from trilithon.cli.output import agreed, say
from trilithon.language import Message

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.

__all__ = ["backup", "restore"]


@click.command("backup")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def backup(file: Path, as_json: bool) -> None:
    """Write settings, keys, results, plans, conversations and builds into FILE, a tar.gz. Models are not in it.

    A server may run meanwhile."""
    from datetime import UTC, datetime

    from trilithon import __version__
    from trilithon.cli.backup.archive import write_backup
    from trilithon.models.store.model_store import ModelStore
    from trilithon.settings import configuration_path, load_configuration
    from trilithon.units import format_bytes

    configuration = load_configuration()
    with ModelStore.open(configuration) as store:
        names = [str(manifest.name) for manifest in store.list()]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    count, left_out = write_backup(
        file, configuration.data, configuration_path(), created=created, version=__version__, models=names
    )
    for line in left_out:
        say(Message("left out: {line}", line=line), err=True)
    size = file.stat().st_size
    if as_json:
        say(
            json.dumps(
                {"file": str(file), "files": count, "bytes": size, "left_out": left_out, "models": names}, indent=2
            )
        )
        return
    message = Message(
        "{file}: {count} file, {size}. It has conversations and hashes of keys: keep it private",
        plural="{file}: {count} files, {size}. It has conversations and hashes of keys: keep it private",
        file=file,
        count=count,
        size=format_bytes(size),
    )
    say(message, err=True)


@click.command("restore")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("-y", "--yes", is_flag=True, help="Replace files that differ without asking.")
def restore(file: Path, yes: bool) -> None:
    """Put back what trilithon backup wrote into FILE. Files that are replaced are kept in a folder beside the data."""
    import os
    from datetime import UTC, datetime

    from trilithon.cli.backup.archive import CONFIG, extracted, move_into_place
    from trilithon.errors import UserError
    from trilithon.settings import configuration_path, load_configuration

    data, config = load_configuration().data, configuration_path()
    _require_no_server()
    with extracted(file, data.parent) as (known, folder):
        if CONFIG in known.digests:  # those settings hold from now on, and may name another data folder
            data = load_configuration({**os.environ, "TRILITHON_CONFIG": str(folder / CONFIG)}).data
        if not yes and any(data.glob("*")):
            question = Message(
                "{data} is not empty; replace what differs by the backup of {created}?",
                data=data,
                created=known.created,
            )
            if not agreed(question, default=False):
                raise UserError("nothing was changed; run it again with -y to replace what differs")
        kept = data.parent / f"{data.name}-before-{datetime.now(UTC):%Y%m%dT%H%M%S}"
        try:
            replaced = move_into_place(known, folder, data, config, kept)
        except OSError as error:
            place = f"{error.filename or data}: {error.strerror or error}"
            there = f"; what was there until now is in {kept}" if kept.exists() else ""
            raise UserError("{place}{there}; correct it, and restore again", place=place, there=there) from error
    message = Message(
        "restored {count} file of {created} (Trilithon {version})",
        plural="restored {count} files of {created} (Trilithon {version})",
        count=len(known.digests),
        created=known.created,
        version=known.version,
    )
    say(message, err=True)
    if replaced:
        say(Message("what was there is in {folder}", folder=kept), err=True)
    if known.models:
        say(Message("models are not in a backup; there were: {names}", names=", ".join(known.models)), err=True)


def _require_no_server() -> None:
    """Raises UserError where one runs, or may: it would go on to write into the files that were replaced."""
    from trilithon.cli.serve.server_client import NobodyListens, address, running_server
    from trilithon.errors import TrilithonError, UserError

    try:
        server = running_server()
    except (NobodyListens, UserError):  # none at the named place, or settings by which none can start
        return
    except TrilithonError as error:  # such as a certificate that is not trusted
        raise UserError(
            "{reason}; if that is Trilithon's server, stop it first; else set TRILITHON_HOST", reason=error
        ) from error
    if server is not None:
        server.close()
        raise UserError("a server runs at {address}; stop it first (trilithon service, or Ctrl-C)", address=address())
