"""Hugging Face on loopback: what its library asks about repositories, and files behind a redirect to other storage."""

import hashlib
from dataclasses import dataclass, field

from standin_web import Asked, Content, Fault, WebStandIn, as_json

__all__ = ["HubRepository", "HubStandIn"]

# known(source): huggingface_hub 2.4.0 hf_api.py: fields of a repository and its files
# known(source): huggingface_hub 2.4.0 utils/_http.py: X-Error-Code; 401 without a token
# known(source): huggingface_hub 2.4.0 errors.py: 403 for a gated repository that the user may not read
# known(guess): the hub redirects large files (302) to other storage, which refuses a request with a secret
# known(guess): the hub names the same X-Error-Code in answers to files as to repositories
_REVISION = "c0ffee" + "0" * 34
_LFS_BYTES = 2000  # the real hub keeps what is larger than some megabytes there, and what .gitattributes names


@dataclass
class HubRepository:
    files: dict[str, bytes]
    base_model: str | list[str] | None = None
    gated: bool = False
    private: bool = False
    sums: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


class HubStandIn(WebStandIn):
    """`storage` is the other origin; it refuses requests that carry a secret, as signed storage does."""

    def __init__(self, storage: WebStandIn, token: str = "") -> None:
        super().__init__()
        self.storage, self.token = storage, token
        self.repositories: dict[str, HubRepository] = {}

    def respond(self, asked: Asked) -> Content | Fault | None:
        allowed = not self.token or asked.headers.get("authorization") == f"Bearer {self.token}"
        parts = asked.path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) == 4:
            return self._about("/".join(parts[2:]), allowed=allowed)
        if len(parts) > 4 and parts[2:4] == ["resolve", _REVISION]:
            return self._file("/".join(parts[:2]), "/".join(parts[4:]), allowed=allowed)
        return None

    def _about(self, name: str, *, allowed: bool) -> Content | Fault:
        found = self.repositories.get(name)
        if found is None or (found.private and not allowed):
            return Fault(status=404 if allowed else 401, headers={"X-Error-Code": "RepoNotFound"})
        siblings = [self._sibling(found, path, data) for path, data in found.files.items()]
        card = {} if found.base_model is None else {"base_model": found.base_model}
        gated = "manual" if found.gated else False
        about = {
            "id": name,
            "sha": _REVISION,
            "gated": gated,
            "private": found.private,
            "tags": [],
            "siblings": siblings,
        }
        return as_json(about | {"cardData": card})

    def _sibling(self, found: HubRepository, path: str, data: bytes) -> dict[str, object]:
        size = found.sizes.get(path, len(data))
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        row: dict[str, object] = {"rfilename": path, "size": size, "blobId": blob}
        if len(data) > _LFS_BYTES:
            digest = found.sums.get(path) or hashlib.sha256(data).hexdigest()
            row["lfs"] = {"size": size, "sha256": digest, "pointerSize": 134}
        return row

    def _file(self, name: str, path: str, *, allowed: bool) -> Content | Fault | None:
        found = self.repositories.get(name)
        if found is None or path not in found.files:
            return None
        if (found.gated or found.private) and not allowed:
            return Fault(status=401 if not self.token else 403, headers={"X-Error-Code": "GatedRepo"})
        data = found.files[path]
        if len(data) <= _LFS_BYTES:
            return Content(data=data)
        self.storage.put(f"/lfs/{name}/{path}", data)
        return Fault(status=302, headers={"Location": f"{self.storage.url}/lfs/{name}/{path}?signature=secret"})
