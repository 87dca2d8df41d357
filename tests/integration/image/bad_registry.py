"""A registry that misbehaves on demand: a real HTTP server in a thread, so that our client meets real sockets."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tar(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return raw.getvalue()


class Image:
    """One small image, every part of which a test may change before it is served."""

    def __init__(
        self, layers: list[bytes] | None = None, pack: Callable[[bytes], bytes] = gzip.compress, layer_type: str = LAYER
    ) -> None:
        self.tars = (
            layers
            if layers is not None
            else [tar({"etc/passwd": b"root:x:0:0::/:/bin/sh\n", "big": bytes(range(256)) * 4096})]
        )
        self.blobs = [pack(data) for data in self.tars]
        self.config = {
            "os": "linux",
            "architecture": "amd64",
            "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(data) for data in self.tars]},
        }
        self.layer_type = layer_type

    def config_bytes(self) -> bytes:
        return json.dumps(self.config).encode()

    def manifest(self) -> dict:
        config = self.config_bytes()
        layers = [{"mediaType": self.layer_type, "digest": digest(blob), "size": len(blob)} for blob in self.blobs]
        return {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest(config), "size": len(config)},
            "layers": layers,
        }


class Registry:
    """Serves *image*; *hook* sees every request first and answers True when it dealt with it."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.manifest_bytes = json.dumps(image.manifest()).encode()
        self.manifest_type = MANIFEST
        self.documents: dict[str, tuple[bytes, str]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.hook: Callable[[BaseHTTPRequestHandler], bool] = lambda _request: False
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                registry.requests.append(
                    (self.command, self.path, {key.lower(): value for key, value in self.headers.items()})
                )
                if not registry.hook(self):
                    registry.serve(self)

            do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - names that http.server looks up

            def log_message(self, *_args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        last = request.path.rpartition("/")[2]
        if "/manifests/" in request.path:
            if last in self.documents:
                data, kind = self.documents[last]
                reply(request, 200, data, {"Content-Type": kind})
            elif last in ("latest", digest(self.manifest_bytes)):
                reply(request, 200, self.manifest_bytes, {"Content-Type": self.manifest_type})
            else:
                reply(request, 404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no"}]}')
            return
        for data in (self.image.config_bytes(), *self.image.blobs):
            if last == digest(data):
                wanted = request.headers.get("Range", "")
                if wanted:
                    start = int(wanted.removeprefix("bytes=").rstrip("-"))
                    reply(request, 206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})
                else:
                    reply(request, 200, data)
                return
        reply(request, 404, b"{}")


def reply(
    request: BaseHTTPRequestHandler,
    status: int,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    length: int | None = None,
) -> None:
    request.send_response(status)
    for key, value in (headers or {}).items():
        request.send_header(key, value)
    request.send_header("Content-Length", str(len(body) if length is None else length))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
