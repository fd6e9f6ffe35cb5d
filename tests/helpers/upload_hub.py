"""A server that speaks as much of the Hub's API as an upload needs."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from typing import Any

from helpers.local_hub import COMMIT, LocalHub


class UploadHub(LocalHub):
    """Repositories in memory; `stop_after` files the connection breaks."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.files: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.commits: list[list[str]] = []
        self.uploads: list[str] = []
        self.stop_after: int | None = None
        super().__init__()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = request.path.partition("?")[0]
        blob = re.fullmatch(r"/blobs/([0-9a-f]{64})", path)
        if blob:
            return self._take(request, blob[1], body)
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return self._send(request, 401, {"error": "not allowed"})
        for pattern, answer in (
            (r"/api/repos/create", self._create),
            (r"/api/models/me/nano(/revision/main)?", self._info),
            (r"/api/models/me/nano/preupload/main", self._preupload),
            (r"/me/nano\.git/info/lfs/objects/batch", self._batch),
            (r"/api/models/me/nano/commit/main", self._commit),
            (r"/api/whoami-v2|/api/validate-yaml", lambda _: {"name": "me", "errors": []}),
        ):
            if re.fullmatch(pattern, path):
                if not self.created and answer == self._info:
                    return self._send(request, 404, {}, "RepoNotFound")
                return self._send(request, 200, answer(body))
        return self._send(request, 404, {}, "RepoNotFound")

    def _take(self, request: BaseHTTPRequestHandler, name: str, body: bytes) -> None:
        if self.stop_after is not None and len(self.uploads) >= self.stop_after:
            return self._send(request, 403, {"error": "no more"})
        if hashlib.sha256(body).hexdigest() != name:
            return self._send(request, 400, {})
        self.blobs[name] = body
        self.uploads.append(name)
        return self._send(request, 200, {})

    def _create(self, body: bytes) -> object:
        self.created.append(json.loads(body))
        return {"url": f"{self.url}/me/nano", "name": "me/nano"}

    def _info(self, _: bytes) -> object:
        siblings = []
        for name, data in self.files.items():
            git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git}
            if name.endswith(".gguf"):
                digest = hashlib.sha256(data).hexdigest()
                sibling["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
            siblings.append(sibling)
        return {"id": "me/nano", "modelId": "me/nano", "sha": COMMIT, "siblings": siblings}

    def _preupload(self, body: bytes) -> object:
        files = json.loads(body)["files"]
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".gguf") else "regular",
                    "shouldIgnore": False,
                }
                for file in files
            ]
        }

    def _batch(self, body: bytes) -> object:
        objects = json.loads(body)["objects"]
        upload = [{"upload": {"href": f"{self.url}/blobs/{o['oid']}"}} for o in objects]
        return {
            "transfer": "basic",
            "objects": [
                {"oid": o["oid"], "size": o["size"], "actions": action}
                for o, action in zip(objects, upload, strict=True)
            ],
        }

    def _commit(self, body: bytes) -> object:
        lines = [json.loads(line) for line in body.splitlines()]
        names = []
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.blobs[value["oid"]]
            if line["key"] != "header":
                names.append(value["path"])
        self.commits.append(names)
        return {"commitUrl": f"{self.url}/me/nano/commit/{COMMIT}", "commitOid": COMMIT}

    def _send(
        self, request: BaseHTTPRequestHandler, status: int, value: object, code: str = ""
    ) -> None:
        data = json.dumps(value).encode()
        request.send_response(status)
        if code:
            request.send_header("X-Error-Code", code)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)
