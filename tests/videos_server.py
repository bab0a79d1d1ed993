"""A third party's `/v1/videos` server in the style of vLLM-Omni, as a program of its own.

    python tests/videos_server.py --port 9003 [--key secret] [--seconds 0.5] [--fault NAME] [--deletes]

It takes multipart/form-data only, and knows no idempotency, no progress, no cancel and no Prefer; with --deletes a
running job that is deleted stops. It imports the standard library and PyAV, and nothing of this project. Tests
start it by `with VideosServer.start() as server`.
"""

from __future__ import annotations

import argparse
import contextlib
import email
import email.policy
import hashlib
import io
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

FAULTS = {
    "none": "all is well",
    "failing": "every job fails, with a reason",
    "forgetful": "a job is accepted and then unknown",
    "other_job": "asked for a job, it answers with another",
    "odd_status": "jobs are in a state that is of no protocol",
    "wants_model": "takes no form that names no model",
    "busy": "takes no further job: 503 with Retry-After",
}


def make_clip(*, prompt: str, frames: int, fps: int, width: int, height: int) -> bytes:
    """A moving pattern as an H.264 MP4; another prompt gives other pictures."""
    import av

    buffer, shade = io.BytesIO(), hashlib.sha256(prompt.encode()).digest()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            picture = av.VideoFrame(width, height, "rgb24")
            row = bytes((x + number * 7 + shade[c]) % 256 for x in range(width) for c in range(3))
            picture.planes[0].update(row.ljust(picture.planes[0].line_size, b"\0") * height)
            picture.pts = number
            out.mux(stream.encode(picture.reformat(format="yuv420p")))
        out.mux(stream.encode(None))
    return buffer.getvalue()


@dataclass
class Job:
    """A row of the server's memory; what it shows of itself is `public`."""

    fields: dict[str, str]
    id: str = field(default_factory=lambda: f"video_gen_{uuid.uuid4().hex}")
    status: str = "queued"
    error: dict[str, str] | None = None
    clip: bytes = b""
    seconds: float | None = None
    created_at: int = field(default_factory=lambda: int(time.time()))

    def public(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "video",
            "model": "Wan-AI/Wan2.2-T2V",
            "prompt": self.fields["prompt"],
            "status": self.status,
            "progress": 100 if self.status == "completed" else 0,
            "size": self.fields.get("size"),
            "created_at": self.created_at,
            "completed_at": int(time.time()) if self.status == "completed" else None,
            "error": self.error,
            "file_name": f"{self.id}.mp4" if self.status == "completed" else None,
            "inference_time_s": self.seconds,
        }


class Server:
    """The jobs and the one GPU."""

    def __init__(self, *, key: str, seconds: float, fault: str, deletes: bool) -> None:
        self.key, self.seconds, self.fault, self.deletes = key, seconds, fault, deletes
        self.jobs: dict[str, Job] = {}
        self.gpu = threading.Lock()
        self.requests: list[dict[str, str]] = []

    def create(self, fields: dict[str, str]) -> Job:
        job = Job(fields)
        self.jobs[job.id] = job
        threading.Thread(target=self._run, args=(job,), daemon=True).start()
        return job

    def _run(self, job: Job) -> None:
        with self.gpu:
            if job.id not in self.jobs:
                return
            job.status, started = "in_progress", time.monotonic()
            time.sleep(self.seconds)
            if self.fault == "failing":
                job.error = {"code": "server_error", "message": "CUDA error: device-side assert triggered"}
                job.status = "failed"
                return
            width, height = (int(side) for side in job.fields.get("size", "96x64").split("x"))
            job.clip = make_clip(
                prompt=job.fields["prompt"],
                frames=int(job.fields.get("num_frames", 16)),
                fps=int(job.fields.get("fps", 24)),
                width=width,
                height=height,
            )
            job.seconds = time.monotonic() - started
            job.status = "completed"

    def shown(self, job: Job) -> dict[str, Any]:
        shown = job.public()
        if self.fault == "odd_status":
            shown["status"] = "marinating"
        return shown


class Routes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def _answer(self, status: int, body: Any = b"", content_type: str = "application/json") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        if status == 503:
            self.send_header("Retry-After", "3")
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _admitted(self) -> bool:
        state = self.server_state
        state.requests.append(
            {"method": self.command, "path": self.path, "type": self.headers.get("Content-Type", "")}
        )
        if self.path == "/health" or not state.key:
            return True
        if self.headers.get("Authorization") == f"Bearer {state.key}":
            return True
        self._answer(401, {"error": "Unauthorized"})
        return False

    def do_GET(self) -> None:
        if self.path == "/_requests":
            return self._answer(200, self.server_state.requests)
        if not self._admitted():
            return None
        if self.path == "/health":
            return self._answer(200)
        if self.path == "/v1/models":
            models = [{"id": "Wan-AI/Wan2.2-T2V", "object": "model"}]
            return self._answer(200, {"object": "list", "data": models})
        if self.path == "/v1/videos":
            shown = [self.server_state.shown(job) for job in self.server_state.jobs.values()]
            return self._answer(200, {"object": "list", "data": shown, "has_more": False})
        return self._job_or_content()

    def _job_or_content(self) -> None:
        found = re.fullmatch(r"/v1/videos/(\w+)(/content)?", self.path)
        job = self.server_state.jobs.get(found[1]) if found else None
        if job is None or self.server_state.fault == "forgetful":
            return self._answer(404, {"detail": "Video not found" if found else "Not Found"})
        if not found or not found[2]:
            other = {"id": "video_gen_other"} if self.server_state.fault == "other_job" else {}
            return self._answer(200, self.server_state.shown(job) | other)
        if job.status != "completed":
            return self._answer(404, {"detail": "Video is not ready"})
        return self._answer(200, job.clip, "video/mp4")

    def do_POST(self) -> None:
        raw = self._body()
        if not self._admitted():
            return None
        if self.path != "/v1/videos":
            return self._answer(404, {"detail": "Not Found"})
        if self.server_state.fault == "busy":
            return self._answer(503, {"error": {"message": "too many requests are waiting"}})
        fields = self._form(raw)
        if not fields.get("prompt"):
            problem = {"type": "missing", "loc": ["body", "prompt"], "msg": "Field required", "input": None}
            return self._answer(422, {"detail": [problem]})
        if self.server_state.fault == "wants_model" and not fields.get("model"):
            problem = {"type": "missing", "loc": ["body", "model"], "msg": "Field required", "input": None}
            return self._answer(422, {"detail": [problem]})
        if not re.fullmatch(r"\d+x\d+", fields.get("size", "96x64")):
            problem = {"loc": ["body", "size"], "msg": "String should match pattern", "type": "pattern"}
            return self._answer(422, {"detail": [problem]})
        return self._answer(200, self.server_state.shown(self.server_state.create(fields)))

    def do_DELETE(self) -> None:
        if not self._admitted():
            return None
        if not self.server_state.deletes:
            return self._answer(405, {"detail": "Method Not Allowed"})
        job_id = self.path.removeprefix("/v1/videos/")
        if self.server_state.jobs.pop(job_id, None) is None:
            return self._answer(404, {"detail": "Video not found"})
        return self._answer(200, {"id": job_id, "deleted": True, "object": "video.deleted"})

    def _form(self, raw: bytes) -> dict[str, str]:
        """The fields of a multipart body; of anything else none, as FastAPI's Form() sees it."""
        kind = self.headers.get("Content-Type", "")
        if not kind.startswith("multipart/form-data"):
            return {}
        message = email.message_from_bytes(
            b"Content-Type: " + kind.encode() + b"\r\n\r\n" + raw, policy=email.policy.HTTP
        )
        parts = message.iter_parts()
        return {
            str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True).decode()
            for part in parts
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="A third party's /v1/videos server.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default="")
    parser.add_argument("--seconds", type=float, default=0.2, help="what a clip takes")
    parser.add_argument("--fault", default="none", choices=FAULTS)
    parser.add_argument("--deletes", action="store_true", help="DELETE stops a job, as vLLM-Omni does it")
    arguments = parser.parse_args()
    state = Server(
        key=arguments.key, seconds=arguments.seconds, fault=arguments.fault, deletes=arguments.deletes
    )
    server = ThreadingHTTPServer(
        ("127.0.0.1", arguments.port), type("Bound", (Routes,), {"server_state": state})
    )
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"port": server.server_address[1]}), flush=True)
    # Whoever started it holds the other end of stdin: its death, too, ends this.
    sys.stdin.read()


class VideosServer:
    """The program above, running: `url`, `key`, `requests()`, `stop()`, `kill()`."""

    def __init__(self, process: subprocess.Popen[str], *, key: str) -> None:
        self._process, self.key = process, key
        assert process.stdout is not None
        self.port = json.loads(process.stdout.readline())["port"]
        self.url = f"http://127.0.0.1:{self.port}"

    @classmethod
    def start(
        cls, *, key: str = "", seconds: float = 0.2, fault: str = "none", deletes: bool = False, port: int = 0
    ) -> Self:
        command = [sys.executable, __file__, "--port", str(port), "--key", key, "--seconds", str(seconds)]
        command += ["--fault", fault, *(["--deletes"] if deletes else [])]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return cls(process, key=key)

    @property
    def pid(self) -> int:
        return self._process.pid

    def requests(self) -> list[dict[str, str]]:
        """The requests in order: method, path, content type."""
        with urllib.request.urlopen(f"{self.url}/_requests", timeout=10) as answer:
            entries: list[dict[str, str]] = json.load(answer)
        return entries

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
