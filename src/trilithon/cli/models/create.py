"""`trilithon create`: a model from a Modelfile of Ollama, optionally quantised."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trilithon.cli.output import say
from trilithon.errors import UserError
from trilithon.language import Message

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.models.create.modelfile import Modelfile
    from trilithon.models.store.manifest import Manifest
    from trilithon.models.store.model_store import ModelStore
    from trilithon.settings import Configuration

__all__ = ["create"]

_MODELFILE = "Modelfile"
_MOST_BYTES = 16 << 20


@click.command("create")
@click.argument("name")
@click.option("-f", "--file", type=click.Path(path_type=Path), default=Path(_MODELFILE), help="The Modelfile.",
              show_default=True)  # fmt: skip
@click.option("-q", "--quantize", "quant", metavar="QUANT", help="Quantise the weights to QUANT: Q4_K_M, Q8_0, …")
@click.option("--copy", is_flag=True, help="Copy local files into the store. [default: use them in place]")
def create(name: str, file: Path, quant: str | None, copy: bool) -> None:
    """Create the model NAME from a Modelfile: FROM, PARAMETER, SYSTEM, TEMPLATE (in Jinja), ADAPTER, MESSAGE, LICENSE.

    FROM is the name of a local model, or a path. --quantize uses the llama-quantize of a build of llama.cpp."""
    from trilithon.cli.progress import reading
    from trilithon.models.adopt.places import find_adopted
    from trilithon.models.create.from_modelfile import create as make
    from trilithon.models.store.model_store import ModelStore
    from trilithon.models.store.resolve import find_model, model_name
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    target, modelfile, folder = model_name(name), _read(file), file.absolute().parent
    with ModelStore.open(configuration) as store:

        def find(text: str) -> "Manifest":
            return find_model(model_name(text), store, lambda: find_adopted(configuration).manifests)

        created = make(target, modelfile, folder, store, find, copy=copy, progress=reading("copying into the store"))
        manifest = created.manifest if quant is None else _quantized(created.manifest, quant, store, configuration)
        stored = store.put(manifest)
    for remark in created.remarks:
        if quant is None or "--copy" not in remark:
            say(Message("note: {text}", text=remark), err=True)
    say(Message("created {name}; see trilithon show {name}", name=stored.name), err=True)


def _read(file: Path) -> "Modelfile":
    from trilithon.models.create.modelfile import parse_modelfile

    try:
        with file.open("rb") as opened:
            return parse_modelfile(opened.read(_MOST_BYTES + 1).decode())
    except OSError as error:
        raise UserError(
            "{file} cannot be read: {reason}; name the Modelfile with -f", file=file, reason=error.strerror
        ) from error
    except UnicodeDecodeError as error:
        raise UserError("{file} is not a text in UTF-8; name the Modelfile with -f", file=file) from error


def _quantized(manifest: "Manifest", quant: str, store: "ModelStore", configuration: "Configuration") -> "Manifest":
    from trilithon.cli.engines.progress import CompileProgress
    from trilithon.cli.progress import reading
    from trilithon.cli.signals import stoppable
    from trilithon.engines.llamacpp.quantized import plan_quantized, quantized

    plan = plan_quantized(manifest, quant, store, configuration)
    with stoppable("stopped; nothing was kept"), ExitStack() as bar:
        progress, report_storing = bar.enter_context(CompileProgress()), reading("storing the model")

        def storing(done: int, total: int) -> None:
            bar.close()
            report_storing(done, total)

        return quantized(plan, store, configuration, progress, storing)
