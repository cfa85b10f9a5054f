"""An Ollama registry on loopback: manifests by tag, blobs by digest behind a redirect, as the real one's storage."""

import hashlib
import json
from typing import Any

from standin_web import Asked, Content, Fault, WebStandIn, as_json

__all__ = ["RegistryStandIn"]

# known(source): ollama 0.33 server/images.go: paths, media types and what a manifest has
# known(source): ollama/ollama@01ca4ec server/download.go: blobs by digest, with a redirect (307 or 302) to another host
# known(guess): a registry answers 406 where Accept lacks the manifest's type, 404 for what is not there
_LAYER = "application/vnd.ollama.image."
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class RegistryStandIn(WebStandIn):
    """`storage` serves the blobs under another origin; without one they come from here."""

    def __init__(self, storage: WebStandIn | None = None) -> None:
        super().__init__()
        self.storage = storage
        self.manifests: dict[str, Any] = {}
        self.blobs: dict[str, bytes] = {}

    def add(self, model: str, tag: str, layers: list[tuple[str, bytes | str]], config: Any = None) -> list[str]:
        """The digests of its layers, in order."""
        rows = [self._blob(_LAYER + kind, data.encode() if isinstance(data, str) else data) for kind, data in layers]
        made = json.dumps(config or {"model_format": "gguf"}).encode()
        config_row = self._blob("application/vnd.docker.container.image.v1+json", made)
        self.manifests[f"{model}/{tag}"] = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": config_row,
            "layers": rows,
        }
        return [row["digest"].removeprefix("sha256:") for row in rows]

    def _blob(self, kind: str, data: bytes) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        if self.storage is not None:
            self.storage.put(f"/storage/{digest}", data)
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    def respond(self, asked: Asked) -> Content | Fault | None:
        _, version, *middle, kind, last = asked.path.split("/")
        if version != "v2":
            return None
        if kind == "manifests":
            if _MANIFEST not in asked.headers.get("accept", ""):
                return Fault(status=406)
            found = self.manifests.get(f"{'/'.join(middle)}/{last}")
            return None if found is None else as_json(found)
        if last not in self.blobs:
            return None
        if self.storage is not None:
            return Fault(status=307, headers={"Location": f"{self.storage.url}/storage/{last}"})
        return Content(data=self.blobs[last])
