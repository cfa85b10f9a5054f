"""`trilithon create`: a model after a Modelfile of Ollama's, with its weights in fewer bits where that is asked for."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trilithon.errors import ModelError, UserError

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.models.manifest import Manifest
    from trilithon.models.modelfile import Modelfile
    from trilithon.models.store import ModelStore
    from trilithon.settings import Configuration

__all__ = ["create"]

_MODELFILE = "Modelfile"
_MOST_BYTES = 16 << 20


@click.command("create")
@click.argument("name")
@click.option("-f", "--file", type=click.Path(path_type=Path), default=Path(_MODELFILE), help="The Modelfile.",
              show_default=True)  # fmt: skip
@click.option("-q", "--quantize", "quant", metavar="QUANT", help="Store the weights in QUANT: Q4_K_M, Q8_0, …")
@click.option("--copy", is_flag=True, help="Copy files of this machine into the store. [default: use them in place]")
def create(name: str, file: Path, quant: str | None, copy: bool) -> None:
    """Make the model NAME after a Modelfile: FROM, PARAMETER, SYSTEM, TEMPLATE (in Jinja), ADAPTER, MESSAGE, LICENSE.

    FROM is the name of a model that is here, or a path. --quantize takes the llama-quantize of a build of llama.cpp.
    """
    from trilithon.cli.progress import reading
    from trilithon.models.adopt import find_adopted
    from trilithon.models.create import create as make
    from trilithon.models.resolve import find_model, model_name
    from trilithon.models.store import ModelStore
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    wanted, said, folder = model_name(name), _read(file), file.absolute().parent
    with ModelStore.open(configuration) as store:

        def find(text: str) -> "Manifest":
            return find_model(model_name(text), store, lambda: find_adopted(configuration).manifests)

        created = make(wanted, said, folder, store, find, copy=copy, progress=reading("copying into the store"))
        manifest = created.manifest if quant is None else _quantized(created.manifest, quant, store, configuration)
        kept = store.put(manifest)
    for remark in created.remarks if quant is None else [each for each in created.remarks if "--copy" not in each]:
        click.echo(f"note: {remark}", err=True)
    click.echo(f"created {kept.name}; see trilithon show {kept.name}", err=True)


def _read(file: Path) -> "Modelfile":
    from trilithon.models.modelfile import parse_modelfile

    try:
        with file.open("rb") as opened:
            return parse_modelfile(opened.read(_MOST_BYTES + 1).decode())
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; name the Modelfile with -f") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text in UTF-8; name the Modelfile with -f") from error


def _quantized(manifest: "Manifest", quant: str, store: "ModelStore", configuration: "Configuration") -> "Manifest":
    """With one GGUF file in the place of its weights, which is in the store."""
    from trilithon.cli.engine_progress import CompileProgress
    from trilithon.cli.progress import reading
    from trilithon.cli.signals import stoppable
    from trilithon.engines.quantize import WHOLE, quantize
    from trilithon.engines.toolrun import conversions
    from trilithon.models.manifest import StoredFile
    from trilithon.models.resolve import place, weights_of
    from trilithon.models.workshop import workshop

    weights = [file for file in weights_of(manifest) if file.format == "gguf"]
    if not weights:
        raise ModelError(f"--quantize takes GGUF files, and {manifest.files[0].name} is none; leave it out")
    finest = next((file for file in weights if file.quantization.upper() in WHOLE), weights[0])
    name = f"{manifest.name.model}-{quant.lower()}.gguf"
    folder = conversions(configuration)
    folder.mkdir(parents=True, exist_ok=True)
    with stoppable("stopped; nothing was kept"), workshop(folder / name) as work:
        with CompileProgress() as progress:
            path = quantize(place(manifest, finest, store), work.folder / name, quant, configuration, progress)
        size = path.stat().st_size
        digest = store.add(path, reading("keeping it"))
    file = StoredFile(
        role="weights", digest=digest, size_bytes=size, name=name, format="gguf", quantization=quant.upper()
    )
    return replace(manifest, files=(file, *(each for each in manifest.files if each.role != "weights")))
