"""A model that is on a server: its sizes from the header of the GGUF that would be fetched, or from config.json of a
converted model. Nothing else is fetched."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from trilithon.errors import DownloadError, ModelError
from trilithon.estimate.answer import Subject
from trilithon.estimate.subjects.configuration import size_of_configuration
from trilithon.estimate.subjects.file_sizes import subject_of_file
from trilithon.language import Message
from trilithon.models.fetch.choose import Target
from trilithon.models.fetch.reachable import is_reachable
from trilithon.models.names import ModelName, ModelUrl, Reference, Repository

if TYPE_CHECKING:
    from trilithon.models.fetch.download_list import PullOptions

__all__ = ["remote_subject"]

# A command without a network answers within half a second.
_CONNECT_SECONDS = 0.3
_SILENCE_SECONDS = 10.0
_TRIES = 2


def remote_subject(reference: Reference, target: Callable[[], Target]) -> Subject:
    """Of the file that `pull` would choose for `target`, which is asked only with a network. Raises ModelError for a
    model that the server does not have, and DownloadError where it cannot be reached."""
    address = _address(reference)
    if not is_reachable(address, _CONNECT_SECONDS):
        raise DownloadError(
            "{host} cannot be reached; check the network", host=address.partition("://")[2].rpartition("@")[2]
        )
    # Imported only with a network: the clients take half a second.
    from trilithon.models.fetch.download import Download
    from trilithon.models.fetch.download_list import PullOptions
    from trilithon.models.fetch.http_client import RetryPolicy

    retry = RetryPolicy(attempts=_TRIES, silence_seconds=_SILENCE_SECONDS)
    return _subject(reference, PullOptions(target=target(), transfer=Download(retry=retry)))


def _address(reference: Reference) -> str:
    from trilithon.models.fetch.hub import hub_address

    match reference:
        case Repository():
            return hub_address()
        case ModelName():
            return f"https://{reference.host}"
        case ModelUrl():
            return "/".join(reference.url.split("/")[:3])
    raise ModelError("{path} is the path of a file; there is none", path=reference.path)


def _subject(reference: Reference, options: "PullOptions") -> Subject:
    from trilithon.models.fetch.http_client import AccessDenied, DownloadSource, is_loopback
    from trilithon.models.fetch.hub import plan_from_hub
    from trilithon.models.fetch.registry import plan_from_registry
    from trilithon.models.fetch.remote_header import read_remote_gguf

    retry = options.transfer.retry
    if isinstance(reference, ModelUrl):
        source = DownloadSource(url=reference.url)
        return _exact(subject_of_file(reference.url, read_remote_gguf([(reference.url, source)], retry)))
    if isinstance(reference, ModelName):
        options = replace(options, insecure=is_loopback(f"//{reference.host}"))
        downloads = plan_from_registry(reference, options)
    elif isinstance(reference, Repository):
        try:
            downloads = plan_from_hub(reference, options)
        except AccessDenied:
            raise
        except ModelError as error:  # no file that this chip runs
            return _configured(reference, options, "", error)
    weights = [item for item in downloads.items if item.role == "weights"]
    if isinstance(reference, Repository) and weights[0].format != "gguf":
        problem = ModelError(
            "{reference}: its config.json states no sizes of a language model; name its original", reference=reference
        )
        return _configured(reference, options, weights[0].quantization, problem)
    facts = read_remote_gguf([(item.name, item.source) for item in weights], retry)
    return _exact(subject_of_file(str(reference), facts))


def _exact(subject: Subject) -> Subject:
    return replace(subject, sizes_from=Message("sizes from the header of the GGUF on the server"))


def _configured(reference: Repository, options: "PullOptions", quantization: str, problem: ModelError) -> Subject:
    """Of a repository without a GGUF for this chip. Raises `problem` where its configuration does not help."""
    from trilithon.models.fetch.hub import configuration_from_hub

    try:
        configuration = configuration_from_hub(reference, options)
    except ModelError as error:
        raise problem from error
    size = size_of_configuration(configuration, reference.name)
    if size is None:
        raise problem
    return Subject(
        reference=str(reference),
        size=size,
        quantization=quantization or None,
        converted=bool(quantization),
        sizes_from=Message("sizes from config.json on the server"),
    )
