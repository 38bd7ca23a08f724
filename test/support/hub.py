"""A stand-in for the Hugging Face hub on the loopback: the few addresses that a download uses."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """One repository.

    Attributes:
        files: content by name; names that end in .safetensors or .pt are LFS files.
        promised: hashes that differ from those of the files, by name.
        gated: whether access is refused.
        cut_after: bytes of a body after which the connection breaks, and then every request of
            a file is refused; None for never.
        refuses: whether requests of files are refused.
        ranges: Range headers of the requests so far.
    """

    def __init__(self, repository: str, files: dict[str, bytes], licence: str = "apache-2.0"):
        self.repository = repository
        self.files = files
        self.licence = licence
        self.promised: dict[str, str] = {}
        self.gated = False
        self.cut_after: int | None = None
        self.refuses = False
        self.ranges: list[str] = []
        self.endpoint = ""

    def sha256(self, name: str) -> str:
        return self.promised.get(name, hashlib.sha256(self.files[name]).hexdigest())

    def info(self) -> dict:
        siblings = []
        for name, content in self.files.items():
            entry = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
            if name.endswith((".safetensors", ".pt")):
                entry["lfs"] = {"sha256": self.sha256(name), "size": len(content), "pointerSize": 1}
            siblings.append(entry)
        return {
            "id": self.repository,
            "sha": COMMIT,
            "siblings": siblings,
            "cardData": {"license": self.licence},
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "private": False,
        }


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            path = self.path.split("?")[0]
            if hub.gated:
                self._send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
            elif path.startswith(f"/api/models/{hub.repository}"):
                self._send(200, json.dumps(hub.info()).encode(), {}, with_body)
            elif path.startswith(f"/{hub.repository}/resolve/"):
                self._file(path.split("/resolve/")[1].split("/", 1)[1], with_body)
            else:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

        def _file(self, name: str, with_body: bool) -> None:
            if hub.refuses or name not in hub.files:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            content = hub.files[name]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hub.sha256(name)}"'}
            wanted, status = self.headers.get("Range"), 200
            if wanted and with_body:
                hub.ranges.append(wanted)
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                content, status = content[start:], 206
            self._send(status, content, headers, with_body)

        def _send(self, status: int, body: bytes, headers: dict, with_body: bool = True) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if not with_body:
                return
            if hub.cut_after is not None and len(body) > hub.cut_after:
                self.wfile.write(body[: hub.cut_after])
                self.wfile.flush()
                hub.refuses = True
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
