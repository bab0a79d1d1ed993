"""The tests' Bot API server over HTTP: forms and multipart in, errors in Telegram's shape."""

import contextlib
import email.parser
import email.policy
import json
import re
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from tests.bot_api_rules import DropConnection, Refused

if TYPE_CHECKING:
    from tests.bot_api_server import BotApiServer

MAX_UPLOAD_BYTES = 50 * 1024 * 1024
CHUNK = 64 * 1024


def handler_of(server: "BotApiServer") -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            try:
                if length > MAX_UPLOAD_BYTES:
                    self.close_connection = True
                    raise Refused(413, "Request Entity Too Large")
                result = self._result(self._body(length))
            except Refused as refusal:
                answer = {"ok": False, "error_code": refusal.status, "description": refusal.description}
                if refusal.parameters:
                    answer["parameters"] = refusal.parameters
                self._send(refusal.status, answer)
            except DropConnection:
                self.close_connection = True
                self.connection.close()
            else:
                self._send(200, {"ok": True, "result": result})

        do_GET = do_POST  # noqa: N815

        def _body(self, length: int) -> bytes:
            """Read the body at the speed of the line."""
            if not server.bytes_a_second or length < CHUNK:
                return self.rfile.read(length)
            body = bytearray()
            while len(body) < length:
                body += self.rfile.read(min(CHUNK, length - len(body)))
                time.sleep(CHUNK / server.bytes_a_second)
            return bytes(body)

        def _result(self, body: bytes) -> Any:
            if self.path.startswith("/control/"):
                return server.control(self.path.removeprefix("/control/"), json.loads(body or b"{}"))
            prefix, _, method = self.path.rpartition("/")
            if not re.fullmatch(r"/bot\d+:[\w-]+", prefix):
                raise Refused(404, "Not Found")
            if prefix != f"/bot{server.token}":
                raise Refused(401, "Unauthorized")
            return server.answer(method, _parameters(self.headers.get("Content-Type") or "", body))

        def _send(self, status: int, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            with contextlib.suppress(OSError):  # the caller was killed
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Quiet."""

    return Handler


def _parameters(content_type: str, body: bytes) -> dict[str, Any]:
    if content_type.startswith("multipart/form-data"):
        return dict(_parts(content_type, body))
    return {name: values[-1] for name, values in parse_qs(body.decode(), keep_blank_values=True).items()}


def _parts(content_type: str, body: bytes) -> Iterator[tuple[str, Any]]:
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    whole = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    for part in whole.iter_parts():
        name = str(part.get_param("name", header="content-disposition"))
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        yield name, content if part.get_filename() else content.decode()
