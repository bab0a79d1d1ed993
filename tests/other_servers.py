"""Other people's `/v1/videos` servers, each with one way of its own, in one process and under one port.

    with OtherServers() as servers:
        servers.url("fine")            # one that does everything right
        servers.url("fine", 17)        # another such machine
        servers.requests("refuses")    # ["POST /v1/videos", …]

WAYS lists them; each lists its name, as `fine-17`, as its one model. It imports the standard library and PyAV (for the
clip), and nothing of the service.
"""

from __future__ import annotations

import base64
import gzip
import json
import threading
import time
import uuid
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

from tests.videos_server import make_clip

WAYS = {
    "fine": "does everything right, and knows Idempotency-Key and Prefer",
    # --- It refuses, always the same way
    "refuses": "has a strict schema: 422 for every request",
    "wants_model": "takes no request that names no model, and lists one",
    "wants_one_of_many": "takes no request that names no model, and lists two",
    "wants_payment": "answers each request 402",
    "forbids": "answers each request 403, in JSON",
    "misses_model": "answers each request 404 in JSON: its model is not there",
    "no_route": "has models, health and jobs, but no route that takes a job",
    "refuses_with_200": "answers each request 200 with an error and no job",
    "picky": "refuses a request with a negative prompt, and does everything else right",
    # --- One answer is not its own
    "page_at_post": "the first answer to POST is a web page with 200",
    "page_once": "the first answer about a job is a web page with 200",
    "replica": "the first answer about a job is the 404 of another replica",
    "proxy_refusal": "the first answer about a job is a proxy's 403, a web page",
    "conflict_once": "the first answer about a job is 409",
    "late_file": "a finished file is there two seconds after it is first asked for; until then it is 404",
    "early_file": "a finished file is there two seconds after it is first asked for; until then it is 400",
    "page_for_file": "the first answer for the file is a web page with 200",
    "cut_file": "the first answer for the file has no length and ends in the middle",
    "broken_file": "the first twelve answers for the file are 500",
    "forgets": "knows no job once it has taken it, but goes on with it",
    # --- It speaks another dialect
    "unknown": "a job that waits has the status unknown",
    "shouts": "its words are IN_PROGRESS and SUCCEEDED",
    "prefixed": "its words are TASK_STATUS_PROCESSING and TASK_STATUS_SUCCEED",
    "expires": "a job ends as Expired the first time",
    "long_id": "ids of 900 characters, with characters that must be quoted",
    "recoded_id": "ids in base64 that name the model, and without it when they are asked for, as LiteLLM has them",
    "quoted_id": "ids with a slash and an equals sign, percent-encoded when they are asked for",
    "task_id": "task_id in place of id",
    "health_page": "/health is a web page",
    "health_word": "/health is the word OK",
    "health_shape": "/health is JSON without a status",
    "health_missing": "has neither /health nor a list of jobs, as Express answers routes of POST only",
    "signed_path": "the file is at a path of the same host that the job names; /content is 404",
    "signed_redirect": "/content is a redirect to a signed address of the same host",
    "elsewhere": "the file is at another host (localhost) that the job names; /content is 404",
    "elsewhere_redirect": "/content is a redirect to another host (localhost)",
    "content_json": "/content is JSON that names a signed address of the same host",
    "wrapped": "the job is the one of a list under data, and its id is a number beside a task_id",
    "numbered": "ids are numbers, under data, beside a success of its own; a file that is not there yet is 202",
    "moves": "is a redirect to another host, whatever is asked",
    "gzip": "compresses every answer, the file too",
    # --- It hangs
    "hangs": "healthy, but never answers POST",
    "silent": "takes connections and answers nothing at all",
    "stops": "takes a job, and answers nothing about it",
    "hanging_file": "makes a clip, and never answers for its file",
}
LATE_SECONDS = 2.0
# For longer than anything waits here.
FOR_EVER = 600.0


@cache
def clip_of(frames: int, fps: int) -> bytes:
    return make_clip(prompt="other", frames=frames, fps=fps, width=96, height=64)


@dataclass
class Job:
    """A job of one of the servers."""

    fields: dict[str, Any]
    id: str
    seconds: float
    born: float = field(default_factory=time.monotonic)
    stopped: bool = False
    asked_to_stop: bool = False
    asked: int = 0
    file_asked: int = 0
    file_asked_at: float = 0.0

    @property
    def done_for(self) -> float:
        """Seconds since it was made; negative while it is not."""
        return time.monotonic() - self.born - self.seconds


@dataclass
class Machine:
    """One of the servers: its way, its jobs, and the requests it was sent."""

    name: str
    seconds: float
    jobs: dict[str, Job] = field(default_factory=dict)
    keys: dict[str, Job] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys_seen: list[str] = field(default_factory=list)
    posts: int = 0

    @property
    def way(self) -> str:
        return self.name.rpartition("-")[0]

    @property
    def prompts(self) -> list[str]:
        return [body.get("prompt", "") for body in self.bodies]

    def create(self, fields: dict[str, Any], key: str) -> Job:
        if key and key in self.keys and self.way == "fine":
            return self.keys[key]
        name = f"video_{uuid.uuid4().hex}"
        if self.way == "long_id":
            name = (name + "/+=?#" + "x" * 900)[:900]
        elif self.way == "quoted_id":
            name = f"{name}/part=="
        elif self.way == "numbered":
            name = str(len(self.jobs) + 1)
        job = Job(fields, name, self.seconds)
        self.jobs[name] = self.keys[key] = job
        return job

    def shown_id(self, job: Job, *, created: bool) -> str:
        if self.way == "recoded_id":
            model = "wan" if created else ""
            return "video_" + _base64(f"litellm:custom_llm_provider:vllm;model_id:{model};video_id:{job.id}")
        return quote(job.id, safe="") if self.way == "quoted_id" and not created else job.id

    def find(self, name: str) -> Job | None:
        """Find a job by its quoted id; one that is encoded names the job at its end."""
        plain = unquote(name)
        if self.way == "recoded_id":
            plain = base64.urlsafe_b64decode(plain.removeprefix("video_") + "==").decode().rpartition(":")[2]
        return self.jobs.get(plain)

    def shown(self, job: Job, *, created: bool = False) -> dict[str, Any]:
        words = {
            "unknown": ("unknown", "completed"),
            "shouts": ("IN_PROGRESS", "SUCCEEDED"),
            "prefixed": ("TASK_STATUS_PROCESSING", "TASK_STATUS_SUCCEED"),
            "expires": ("processing", "Expired"),
        }.get(self.way, ("in_progress", "completed"))
        status = "canceled" if job.stopped else words[job.done_for >= 0]
        if self.way == "expires" and len(self.jobs) > 1 and job.done_for >= 0:
            status = "Finished"
        name = "task_id" if self.way in ("task_id", "wrapped") else "id"
        shown = {name: self.shown_id(job, created=created), "object": "video", "status": status}
        if self.way == "numbered":
            return {"status": "success", "data": shown | {"id": int(job.id)}}
        return {"code": 0, "data": [{"id": 17} | shown]} if self.way == "wrapped" else shown


def _base64(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


class Routes(BaseHTTPRequestHandler):
    """The paths of all servers: `/WAY-NUMBER/…`."""

    protocol_version = "HTTP/1.1"
    servers: OtherServers

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def answer(self, status: int, body: Any = b"", kind: str = "application/json", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if self.machine.way == "gzip":
            data, headers = gzip.compress(data), headers | {"Content_Encoding": "gzip"}
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def page(self, status: int = 200) -> None:
        self.answer(status, b"<!doctype html><title>Hello</title><h1>It works!</h1>", "text/html")

    def _route(self) -> str:
        """Note the request, and return its path on the server it is for."""
        _, name, path = self.path.split("/", 2)
        self.machine = self.servers.machine(name)
        self.machine.requests.append(f"{self.command} /{path}")
        self.machine.keys_seen.append(self.headers.get("Authorization") or "")
        if self.machine.way == "silent":
            self.servers.stopping.wait(FOR_EVER)
        if self.machine.way == "moves":
            self.answer(308, Location=f"https://elsewhere.example/api/{path}?key=secret")
            return ""
        return f"/{path}"

    def do_GET(self) -> None:
        path = self._route()
        if not path:
            return None
        if path == "/health":
            return self._health()
        if path == "/v1/models":
            names = [self.machine.name, *(["other"] if self.machine.way == "wants_one_of_many" else [])]
            models = [{"id": name, "object": "model"} for name in names]
            return self.answer(200, {"object": "list", "data": models})
        if path == "/v1/videos":
            if self.machine.way == "health_missing":
                return self.page(404)
            return self.answer(200, {"object": "list", "data": []})
        if path.startswith("/files/"):
            return self._file(path.removeprefix("/files/").partition("?")[0], signed="?sig=" in path)
        if path.startswith("/v1/videos/"):
            name, _, rest = path.removeprefix("/v1/videos/").partition("/")
            return self._content(name) if rest == "content" else self._job(name)
        return self.answer(404, {"detail": "Not Found"})

    def _health(self) -> None:
        match self.machine.way:
            case "health_page":
                self.page()
            case "health_word":
                self.answer(200, b"OK", "text/plain")
            case "health_shape":
                self.answer(200, {"healthy": True, "workers": [{"gpu": 0}]})
            case "health_missing":
                self.page(404)
            case _:
                self.answer(200, {"status": "ok"})

    def _job(self, name: str) -> None:
        job = self.machine.find(name)
        if job is None or self.machine.way == "forgets":
            return self.answer(404, {"detail": "Video not found"})
        if self.machine.way == "stops":
            self.servers.stopping.wait(FOR_EVER)
        job.asked += 1
        if job.asked == 1:
            match self.machine.way:
                case "page_once":
                    return self.page()
                case "proxy_refusal":
                    return self.page(403)
                case "replica":
                    return self.answer(404, {"detail": "Video not found"})
                case "conflict_once":
                    return self.answer(409, {"detail": "Try again"})
        if self.machine.way == "fine" and (wait := self.headers.get("Prefer", "")).startswith("wait="):
            self.servers.stopping.wait(max(0.0, min(float(wait[5:]), -job.done_for)))
        shown = self.machine.shown(job)
        if self.machine.way in ("signed_path", "elsewhere") and job.done_for >= 0:
            shown["output"] = {"video_url": self._signed(job, self.machine.way)}
        return self.answer(200, shown)

    def _signed(self, job: Job, way: str) -> str:
        host = self.headers["Host"]
        host = host.replace("127.0.0.1", "localhost") if way.startswith("elsewhere") else host
        return f"http://{host}/{self.path.split('/')[1]}/files/{job.id}?sig=a%2Fb"

    def _content(self, name: str) -> None:
        job = self.machine.find(name)
        if job is None or job.done_for < 0 or self.machine.way in ("signed_path", "elsewhere"):
            return self.answer(404, {"detail": "Video is not ready"})
        if self.machine.way == "hanging_file":
            self.servers.stopping.wait(FOR_EVER)
        job.file_asked += 1
        job.file_asked_at = job.file_asked_at or time.monotonic()
        if time.monotonic() - job.file_asked_at < LATE_SECONDS and self.machine.way in (
            "late_file",
            "early_file",
            "numbered",
        ):
            status = {"late_file": 404, "early_file": 400}.get(self.machine.way, 202)
            return self.answer(status, {"detail": "Not ready"})
        if job.file_asked == 1 and self.machine.way == "cut_file":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Type: video/mp4\r\n\r\n" + clip_of(16, 8)[:1500])
            self.close_connection = True
            return None
        if job.file_asked == 1 and self.machine.way == "page_for_file":
            return self.page()
        if job.file_asked <= 12 and self.machine.way == "broken_file":
            return self.answer(500, b"oops", "text/plain")
        if self.machine.way == "content_json":
            return self.answer(200, {"url": self._signed(job, self.machine.way)})
        if self.machine.way in ("signed_redirect", "elsewhere_redirect"):
            return self.answer(302, Location=self._signed(job, self.machine.way))
        return self._clip(job)

    def _file(self, name: str, *, signed: bool) -> None:
        job = self.machine.find(name)
        if job is None or not signed:
            return self.answer(403, b"<Error><Code>AccessDenied</Code></Error>", "application/xml")
        return self._clip(job)

    def _clip(self, job: Job) -> None:
        frames, fps = (int(job.fields.get(name, 8)) for name in ("num_frames", "fps"))
        self.answer(200, clip_of(frames, fps), "video/mp4")

    def do_POST(self) -> None:
        path = self._route()
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not path:
            return None
        if path.startswith("/v1/videos/") and path.endswith("/cancel"):
            return self._cancel(path.removeprefix("/v1/videos/").removesuffix("/cancel"))
        if path != "/v1/videos":
            return self.answer(404, {"detail": "Not Found"})
        self.machine.posts += 1
        try:
            fields = json.loads(raw)
        except ValueError:
            return self.answer(415, {"detail": "This server takes JSON."})
        self.machine.bodies.append(fields)
        if self.machine.way == "hangs":
            self.servers.stopping.wait(FOR_EVER)
        if self.machine.way == "page_at_post" and self.machine.posts == 1:
            return self.page()
        if refusal := self._refusal(fields):
            return self.answer(*refusal)
        job = self.machine.create(fields, self.headers.get("Idempotency-Key", ""))
        return self.answer(200, self.machine.shown(job, created=True))

    def _refusal(self, fields: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """The status and the body with which this server refuses a request, if it does."""
        extra = {
            "type": "extra_forbidden",
            "loc": ["body", "num_frames"],
            "msg": "Extra inputs are not permitted",
        }
        refusals: dict[str, tuple[int, dict[str, Any]]] = {
            "refuses": (422, {"detail": [extra]}),
            "wants_payment": (402, {"error": {"message": "Insufficient balance"}}),
            "forbids": (403, {"error": {"message": "Your plan has no videos", "code": "forbidden"}}),
            "misses_model": (
                404,
                {"error": {"message": "The model does not exist", "code": "model_not_found"}},
            ),
            "no_route": (404, {"detail": "Not Found"}),
            "refuses_with_200": (200, {"error": {"message": "Insufficient balance"}}),
        }
        if self.machine.way == "picky" and fields.get("negative_prompt"):
            return 400, {"error": {"message": "No such negative prompt", "param": "negative_prompt"}}
        if (
            self.machine.way.startswith("wants_")
            and self.machine.way != "wants_payment"
            and not fields.get("model")
        ):
            return 400, {"error": {"message": "model is required", "param": "model"}}
        return refusals.get(self.machine.way)

    def _cancel(self, name: str) -> None:
        job = self.machine.find(name)
        if job is None:
            return self.answer(404, {"detail": "Video not found"})
        job.asked_to_stop = True
        job.stopped = job.stopped or job.done_for < 0
        return self.answer(200, self.machine.shown(job))


class OtherServers:
    """All of them, serving from threads of this process until the block ends."""

    def __init__(self, *, seconds: float = 0.1) -> None:
        """seconds: what a clip takes; any number of clips are made at once."""
        self.seconds = seconds
        self.stopping = threading.Event()
        self._machines: dict[str, Machine] = {}
        self._lock = threading.Lock()

    def url(self, way: str, number: int = 0) -> str:
        """Return the address of a server; another number is another machine of the same way."""
        assert way in WAYS, way
        return f"http://127.0.0.1:{self._server.server_address[1]}/{way}-{number}"

    def machine(self, name: str) -> Machine:
        """Return a server by its name, `WAY-NUMBER`; it is made when it is first asked for."""
        with self._lock:
            return self._machines.setdefault(name, Machine(name, self.seconds))

    def __getitem__(self, way: str) -> Machine:
        return self.machine(f"{way}-0")

    def requests(self, way: str, number: int = 0) -> list[str]:
        """List the requests to a server in order, as `GET /health`."""
        return [
            urlsplit(asked).path if "?" in asked else asked
            for asked in self.machine(f"{way}-{number}").requests
        ]

    def __enter__(self) -> Self:
        routes = type("Bound", (Routes,), {"servers": self})
        self._server = Server(("127.0.0.1", 0), routes)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512
