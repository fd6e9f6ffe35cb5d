"""A server that speaks as much of the Hub's API as a download needs."""

from __future__ import annotations

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlparse

from helpers.local_hub import COMMIT, LocalHub


class DownloadHub(LocalHub):
    """Serves the files of `folder` as the repository `name`; `requests` lists what was asked."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.requests: list[tuple[str, str, str]] = []
        self.token: str | None = None
        self.gated = False
        self.cut: str | None = None
        super().__init__()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        path = unquote(urlparse(request.path).path)
        self.requests.append((request.command, path, request.headers.get("Range", "")))
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return self.refuse(request, 401, "RepoNotFound")
        if self.gated:
            return self.refuse(request, 403, "GatedRepo")
        api = re.fullmatch(rf"/api/models/{self.name}(/revision/([^/]+)|/tree/([^/]+))?", path)
        file = re.fullmatch(rf"(?:/datasets)?/{self.name}/resolve/([^/]+)/(.+)", path)
        if api:
            revision = api[2] or api[3] or "main"
            if revision not in ("main", "v1", COMMIT):
                return self.refuse(request, 404, "RevisionNotFound")
            return self.send_json(request, self.tree() if api[3] else self.info())
        if file and (self.folder / file[2]).is_file():
            return self.send_file(request, self.folder / file[2])
        return self.refuse(request, 404, "EntryNotFound" if file else "RepoNotFound")

    def files(self) -> list[Path]:
        """The files of the repository."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def info(self) -> object:
        """The answer about a model."""
        siblings = [
            {
                "rfilename": str(path.relative_to(self.folder)),
                "size": path.stat().st_size,
                "blobId": etag(path),
            }
            for path in self.files()
        ]
        return {"id": self.name, "modelId": self.name, "sha": COMMIT, "siblings": siblings}

    def tree(self) -> object:
        """The answer about a model's files."""
        return [
            {
                "type": "file",
                "path": str(path.relative_to(self.folder)),
                "size": path.stat().st_size,
                "oid": etag(path),
            }
            for path in self.files()
        ]

    def refuse(self, request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        """An error as the Hub tells it."""
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("X-Error-Message", code)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def send_json(self, request: BaseHTTPRequestHandler, value: object) -> None:
        """A JSON answer."""
        data = json.dumps(value).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def send_file(self, request: BaseHTTPRequestHandler, path: Path) -> None:
        """A file, or a part of it; the file named in `cut` ends too early, once."""
        data = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        size = len(data)
        data = data[: int(wanted[2]) + 1] if wanted and wanted[2] else data
        request.send_response(206 if wanted else 200)
        if wanted:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{size}")
        request.send_header("ETag", f'"{etag(path)}"')
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.cut == path.name:
            self.cut = None
            request.wfile.write(data[start : start + len(data) // 2])
            request.close_connection = True
            return
        request.wfile.write(data[start:])


def etag(path: Path) -> str:
    """The name of a file's content."""
    return hashlib.sha1(path.read_bytes()).hexdigest()
