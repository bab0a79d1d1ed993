"""A GPU node as they exist in the field, as a program of its own: three routes, one key, one clip at a time.

    python tests/field_node.py --port 9001 --key secret [--fault NAME] [--control-port 9002]

It imports the standard library and PyAV, and nothing of this project. Faults are what such machines do on bad days;
FAULTS lists them, and `PUT /fault/NAME` on the control port changes them on the way. `GET /requests` there lists
what was asked so far. Tests start it by `with FieldNode.start() as node`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

# What goes wrong: with the answer to POST /generate_video …
GENERATE_FAULTS = {
    "http400": "refuses the request, with a reason",
    "http429": "is busy: 429 with Retry-After 7",
    "http500": "answers 500 with a page",
    "http503": "is busy: 503 with Retry-After 3",
    "hang": "takes the request and never answers",
    "slow:SECONDS": "answers after that time",
    "drop_connection": "hangs up without an answer",
    "html200": "answers a web page with status 200",
    "empty200": "answers nothing with status 200",
    "list200": "answers JSON that is no object",
    "huge_json": "answers two megabytes of JSON, without saying how many",
    "deep_json": "answers JSON that is nested very deeply",
    "redirect": "sends the client elsewhere",
    "wrong_type": "says ok, and names a number as the path",
    "error_status": "reports a failure of its own: status error",
    "traversal": "names a path that ends in ..",
    "traversal_encoded": "names a path with encoded slashes",
}
# … with the file …
FILE_FAULTS = {
    "mpeg4": "makes MPEG-4 Part 2, which plays in no browser",
    "yuv444": "makes H.264 4:4:4, which plays almost nowhere",
    "turned": "makes H.264 that lies on its side, and says so in its display matrix",
    "not_video": "delivers text under the name of an MP4",
    "unplayable": "delivers an MP4 whose pictures are noise",
}
# … and with the answer to GET /get_video/{name}.
DOWNLOAD_FAULTS = {
    "download401": "no longer accepts the key",
    "download404": "has lost the file",
    "download500": "answers 500",
    "download_hang": "sends half of the file and then nothing",
    "download_html": "answers a web page with status 200",
    "download_redirect": "sends the client elsewhere",
    "truncated": "hangs up in the middle, each time at the same place",
    "flaky": "hangs up in the middle, but goes on from there when asked to",
    "flaky_no_range": "hangs up in the middle once, and knows no Range",
    "flaky_changed": "hangs up in the middle once, and then has another file under the same name",
    "endless": "never stops sending",
    "no_length": "sends the file without its length",
    "gzip": "claims that the file is compressed",
}
FAULTS = {
    "none": "all is well",
    "unhealthy": "has no health",
    **GENERATE_FAULTS,
    **FILE_FAULTS,
    **DOWNLOAD_FAULTS,
}


def make_clip(
    *, seed: str = "", frames: int = 16, fps: int = 8, codec: str = "libx264", pix_fmt: str = "yuv420p"
) -> bytes:
    """A moving pattern of 96x64 pixels as an MP4 with its index at the end, as most tools write it."""
    import av

    width, height, shade = 96, 64, hashlib.sha256(seed.encode()).digest()
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        for number in range(frames):
            picture = av.VideoFrame(width, height, "rgb24")
            row = bytes((x * 2 + number * 5 + shade[c]) % 256 for x in range(width) for c in range(3))
            picture.planes[0].update(row.ljust(picture.planes[0].line_size, b"\0") * height)
            picture.pts = number
            out.mux(stream.encode(picture.reformat(format=pix_fmt)))
        out.mux(stream.encode(None))
    return buffer.getvalue()


class Node:
    """State that the routes share: the key, the fault of the moment, the files, one GPU."""

    def __init__(self, *, key: str, fault: str, folder: Path) -> None:
        self.key, self.fault, self.folder = key, fault, folder
        self.gpu = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.stopping = threading.Event()

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        """Make a clip as the field's code does: one at a time."""
        started = time.monotonic()
        with self.gpu:
            clip = self._clip(body)
            name = f"video_{hashlib.sha256(os.urandom(8)).hexdigest()[:12]}.mp4"
            (self.folder / name).write_bytes(clip)
        elapsed = round((time.monotonic() - started) * 1000)
        return {"status": "ok", "video_path": str(self.folder / name), "generation_time_ms": elapsed}

    def _clip(self, body: dict[str, Any]) -> bytes:
        codec, pix_fmt = {"mpeg4": ("mpeg4", "yuv420p"), "yuv444": ("libx264", "yuv444p")}.get(
            self.fault, ("libx264", "yuv420p")
        )
        if self.fault == "not_video":
            return b"This is what is left of the video.\n" * 40
        clip = make_clip(
            seed=body["prompt"], frames=body["frames"], fps=body["fps"], codec=codec, pix_fmt=pix_fmt
        )
        if self.fault == "unplayable":
            pictures = clip.index(b"mdat") + 4
            return clip[:pictures] + os.urandom(len(clip) - pictures)
        if self.fault == "turned":
            upright, quarter = (1, 0, 0, 0, 1, 0, 0, 0), (0, 1, 0, -1, 0, 0, 0, 0)
            whole, turned = (struct.pack(">8i", *(number << 16 for number in m)) for m in (upright, quarter))
            track = clip.index(whole, clip.index(b"tkhd"))
            return clip[:track] + turned + clip[track + len(turned) :]
        return clip


class Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def answer(
        self, status: int, body: Any = b"", content_type: str = "application/json", **headers: str
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))


class FieldRoutes(Quiet):
    """GET /health, POST /generate_video, GET /get_video/{name}."""

    node: Node

    def do_GET(self) -> None:
        self._note()
        if self.path == "/health":
            if self.node.fault == "unhealthy":
                return self.answer(500, b"<h1>Internal Server Error</h1>", "text/html")
            return self.answer(200, {"status": "ready", "backend": "CogVideoX-5B"})
        if not self.path.startswith("/get_video/"):
            return self.answer(404, {"detail": "Not Found"})
        if not self._authorized():
            return self.answer(401, {"detail": "Invalid API key"})
        return self._file(self.path.removeprefix("/get_video/"))

    def do_POST(self) -> None:
        raw = self.read_body()
        self._note(raw)
        if self.path != "/generate_video":
            return self.answer(404, {"detail": "Not Found"})
        if not self._authorized():
            return self.answer(401, {"detail": "Invalid API key"})
        try:
            body = {"frames": 16, "fps": 8, "steps": 20, **json.loads(raw)}
            valid = isinstance(body["prompt"], str) and all(
                isinstance(body[name], int) and body[name] > 0 for name in ("frames", "fps", "steps")
            )
        except (ValueError, KeyError, TypeError):
            valid = False
        if not valid:
            problem = {"loc": ["body", "prompt"], "msg": "Field required", "type": "missing"}
            return self.answer(422, {"detail": [problem]})
        return self._generate(body)

    def _note(self, body: bytes = b"") -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        entry = {
            "method": self.command,
            "path": self.path,
            "headers": headers,
            "body": body.decode("utf-8", "replace"),
        }
        self.node.requests.append(entry)

    def _authorized(self) -> bool:
        return not self.node.key or self.headers.get("x-api-key") == self.node.key

    def _generate(self, body: dict[str, Any]) -> None:
        fault, _, argument = self.node.fault.partition(":")
        if fault == "hang":
            self.node.stopping.wait(600)
            return self.hang_up()
        if fault == "slow":
            self.node.stopping.wait(float(argument or 1))
        if fault == "drop_connection":
            return self.hang_up()
        if fault == "huge_json":
            return self._unmeasured(b'{"status": "ok", "padding": "' + b"x" * 2_000_000 + b'"}')
        canned = self._canned(fault)
        if canned is not None:
            status, answer, content_type, headers = canned
            return self.answer(status, answer, content_type, **headers)
        return self.answer(200, self.node.generate(body))

    def _canned(self, fault: str) -> tuple[int, Any, str, dict[str, str]] | None:
        page, text, data = b"<!doctype html><h1>It works!</h1>", "text/html", "application/json"
        path_answer = {"status": "ok", "generation_time_ms": 1}
        answers: dict[str, tuple[int, Any, str, dict[str, str]]] = {
            "http400": (400, {"status": "error", "error": "prompt not allowed"}, data, {}),
            "http429": (429, {"status": "error", "error": "queue full"}, data, {"Retry_After": "7"}),
            "http500": (500, page, text, {}),
            "http503": (503, b"try later", "text/plain", {"Retry_After": "3"}),
            "html200": (200, page, text, {}),
            "empty200": (200, b"", data, {}),
            "list200": (200, [1, 2, 3], data, {}),
            "deep_json": (200, b"[" * 200_000, data, {}),
            "redirect": (307, b"", text, {"Location": "http://169.254.169.254/latest/meta-data/"}),
            "wrong_type": (200, {**path_answer, "video_path": 17}, data, {}),
            "error_status": (200, {"status": "error", "error": "CUDA out of memory"}, data, {}),
            "traversal": (200, {**path_answer, "video_path": "/out/../../.."}, data, {}),
            "traversal_encoded": (200, {**path_answer, "video_path": "..%2f..%2fetc%2fpasswd"}, data, {}),
        }
        return answers.get(fault)

    def _file(self, name: str) -> None:
        fault = self.node.fault
        path = self.node.folder / name
        if not re.fullmatch(r"[\w.-]+", name) or not path.is_file() or fault == "download404":
            return self.answer(404, {"detail": "Video not found"})
        refusals = {
            "download401": (401, b"", "text/plain", {}),
            "download500": (500, b"oops", "text/plain", {}),
            "download_html": (200, b"<!doctype html><h1>It works!</h1>" * 9, "text/html", {}),
            "download_redirect": (302, b"", "text/plain", {"Location": "/health"}),
        }
        if fault in refusals:
            status, body, content_type, headers = refusals[fault]
            return self.answer(status, body, content_type, **headers)
        return self._send_file(path.read_bytes(), fault)

    def _send_file(self, data: bytes, fault: str) -> None:
        if fault == "no_length":
            return self._unmeasured(data)
        if fault == "endless":
            return self._endless(data)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        again = asked is not None
        if again and fault == "flaky_changed":
            data = make_clip(seed="another file", frames=20)
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        unchanged = self.headers.get("If-Range", etag) == etag
        start = int(asked[1]) if asked and unchanged and fault != "flaky_no_range" else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if fault == "gzip":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", "video/mp4")
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        return self._send_part(data, start, self._breaking_point(len(data), start, fault, again=again))

    @staticmethod
    def _breaking_point(size: int, start: int, fault: str, *, again: bool) -> int:
        """Return the byte at which the connection breaks; the whole size when it does not."""
        if fault == "flaky":
            return min(size, start + size // 3 + 1)
        breaks = fault in ("truncated", "download_hang") or (fault.startswith("flaky_") and not again)
        return size // 2 if breaks else size

    def _send_part(self, data: bytes, start: int, stop: int) -> None:
        self.wfile.write(data[start:stop])
        self.wfile.flush()
        if stop == len(data):
            return
        if self.node.fault == "download_hang":
            self.node.stopping.wait(600)
        self.hang_up()

    def _unmeasured(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Connection", "close")
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)
        self.close_connection = True

    def _endless(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Connection", "close")
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)
            while not self.node.stopping.is_set():
                self.wfile.write(b"\0" * 65536)
        self.close_connection = True


class ControlRoutes(Quiet):
    """PUT /fault/NAME, GET /requests: for whoever tests against this program."""

    node: Node

    def do_PUT(self) -> None:
        self.node.fault = self.path.removeprefix("/fault/")
        self.answer(200, {"fault": self.node.fault})

    def do_GET(self) -> None:
        self.answer(200, self.node.requests)


def serve(routes: type[Quiet], node: Node, port: int) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (routes,), {"node": node}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> None:
    parser = argparse.ArgumentParser(description="A GPU node as they exist in the field.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--control-port", type=int, default=0)
    parser.add_argument("--key", default="")
    parser.add_argument("--fault", default="none", help=", ".join(FAULTS))
    arguments = parser.parse_args()
    if arguments.fault.partition(":")[0] not in {name.partition(":")[0] for name in FAULTS}:
        parser.error(f"unknown fault {arguments.fault}; there are {', '.join(FAULTS)}")
    with tempfile.TemporaryDirectory(prefix="field-node-") as folder:
        node = Node(key=arguments.key, fault=arguments.fault, folder=Path(folder))
        server, control = (
            serve(FieldRoutes, node, arguments.port),
            serve(ControlRoutes, node, arguments.control_port),
        )
        ports = {"port": server.server_address[1], "control_port": control.server_address[1]}
        print(json.dumps(ports), flush=True)
        # Whoever started it holds the other end of stdin: its death, too, ends this.
        sys.stdin.read()


class FieldNode:
    """The program above, running: `url`, `key`, `set_fault(name)`, `requests()`, `stop()`, `kill()`."""

    def __init__(self, process: subprocess.Popen[str], *, key: str) -> None:
        self._process, self.key = process, key
        assert process.stdout is not None
        ports = json.loads(process.stdout.readline())
        self.port = ports["port"]
        self.url = f"http://127.0.0.1:{self.port}"
        self._control = f"http://127.0.0.1:{ports['control_port']}"

    @classmethod
    def start(cls, *, key: str = "field-key", fault: str = "none", port: int = 0) -> Self:
        command = [sys.executable, __file__, "--port", str(port), "--key", key, "--fault", fault]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return cls(process, key=key)

    @property
    def pid(self) -> int:
        return self._process.pid

    def set_fault(self, name: str) -> None:
        assert name.partition(":")[0] in {known.partition(":")[0] for known in FAULTS}, name
        request = urllib.request.Request(f"{self._control}/fault/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()

    def requests(self, path: str = "") -> list[dict[str, Any]]:
        """List the requests in order, only those whose path begins with `path`."""
        with urllib.request.urlopen(f"{self._control}/requests", timeout=10) as answer:
            return [entry for entry in json.load(answer) if entry["path"].startswith(path)]

    def stop(self) -> None:
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()
        if self._process.stdout:
            self._process.stdout.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


if __name__ == "__main__":
    main()
