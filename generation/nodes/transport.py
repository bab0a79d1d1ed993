"""HTTP to a node that is not trusted: no redirects, bounded bodies, deadlines, one family of errors."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import httpx

from generation.nodes import protocol
from generation.nodes.protocol import NodeEndpoint

MAX_JSON_BYTES = 1024 * 1024
MAX_MESSAGE = 400
CONNECT_TIMEOUT = 5.0
DEFAULT_RETRY_AFTER = 5.0
MAX_RETRY_AFTER = 600.0


@dataclass(frozen=True)
class Answer:
    """A whole HTTP answer of bounded size."""

    status: int
    headers: httpx.Headers
    body: bytes

    def json_object(self) -> dict[str, Any]:
        """Return the body as a JSON object; else raise NodeAnsweredNonsense."""
        try:
            value = storable(json.loads(self.body))
        except (ValueError, RecursionError):
            is_page = self.body.lstrip()[:1] == b"<"
            found = "nothing" if not self.body else "a web page" if is_page else "something else"
            raise protocol.NodeAnsweredNonsense(f"The node answered {found} instead of JSON.") from None
        if not isinstance(value, dict):
            raise protocol.NodeAnsweredNonsense("The node answered JSON that is not an object.")
        return value


class Transport:
    """One pooled HTTP connection to a node, with its key."""

    def __init__(self, endpoint: NodeEndpoint) -> None:
        self._key = endpoint.api_key
        url = checked_url(endpoint.base_url)
        self._client = httpx.AsyncClient(
            base_url=url,
            headers=_auth_headers(endpoint.api_key),
            follow_redirects=False,
            timeout=httpx.Timeout(30.0, connect=CONNECT_TIMEOUT),
            verify=_tls_context(),
            # A proxy named in the environment must never be asked for a node on this machine.
            trust_env=not _is_loopback(url.host),
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def call(
        self,
        method: str,
        path: str,
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        json_body: Mapping[str, Any] | None = None,
        form: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request; returns the whole answer within `timeout` seconds, whatever its status."""
        try:
            # File tuples without a name make httpx write multipart/form-data even though nothing is a file.
            files = {name: (None, value.encode()) for name, value in form.items()} if form else None
            request = self._client.build_request(
                method, path, headers=headers, json=json_body, files=files, timeout=self._timeout(timeout)
            )
        except UnicodeEncodeError:
            raise protocol.NodeRejected("The request holds characters that cannot be sent.") from None
        async with self._guard(timeout), self._sent(request) as response:
            return Answer(response.status_code, response.headers, await _bounded_body(response))

    @asynccontextmanager
    async def stream(
        self, path: str, *, headers: Mapping[str, str], read_timeout: float
    ) -> AsyncIterator[httpx.Response]:
        """Send a GET; the caller reads the body, and keeps the deadline."""
        request = self._client.build_request(
            "GET", path, headers=headers, timeout=self._timeout(read_timeout)
        )
        async with self._guard(None), self._sent(request) as response:
            yield response

    def refuse(self, answer: Answer) -> protocol.NodeError:
        """Return the error for an answer with a status other than 2xx."""
        return error_for_status(answer, detail=self.clean(message_of(answer)))

    def clean(self, text: str) -> str:
        """Make a node's own message fit to show: one line, bounded, without our key."""
        if self._key:
            text = text.replace(self._key, "***")
        line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 1] + "…"

    @staticmethod
    def _timeout(seconds: float) -> httpx.Timeout:
        return httpx.Timeout(seconds, connect=min(CONNECT_TIMEOUT, seconds))

    @asynccontextmanager
    async def _sent(self, request: httpx.Request) -> AsyncIterator[httpx.Response]:
        response = await self._client.send(request, stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    @asynccontextmanager
    async def _guard(self, seconds: float | None) -> AsyncIterator[None]:
        """Turn what httpx raises, and the end of the time allowed, into NodeError."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except (httpx.ConnectTimeout, httpx.ConnectError) as error:
            raise protocol.NodeNotReached(f"No connection to the node ({_reason(error)}).") from None
        except (TimeoutError, httpx.TimeoutException):
            within = "in time" if seconds is None else f"within {seconds:g} s"
            raise protocol.NodeTimeout(f"The node did not answer {within}.") from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError):
            raise protocol.NodeMisconfigured(
                "The node's address or key cannot be used in a request."
            ) from None
        except httpx.DecodingError:
            raise protocol.NodeAnsweredNonsense("The node's answer could not be decoded.") from None
        except httpx.HTTPError as error:
            raise protocol.NodeUnreachable(
                f"The connection to the node broke off ({_reason(error)})."
            ) from None


def storable(value: Any) -> Any:
    """Drop the characters of JSON that PostgreSQL (NUL) or UTF-8 (lone surrogates) cannot hold."""
    if isinstance(value, str):
        return "".join(c for c in value if c != "\0" and not "\ud800" <= c <= "\udfff")
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    return value


def error_for_status(answer: Answer, *, detail: str) -> protocol.NodeError:
    """Return the error for a status other than 2xx; `detail` is the node's own message, already cleaned."""
    status, suffix = answer.status, f": {detail}" if detail else "."
    if status in (401, 403):
        return protocol.NodeUnauthorized("The node does not accept the key.")
    if status in (404, 410):
        return protocol.RemoteJobLost(f"The node answered {status}{suffix}")
    if status == 429 or (status == 503 and "retry-after" in answer.headers):
        return protocol.NodeBusy(f"The node is busy{suffix}", retry_after=retry_after(answer.headers))
    if status in (408, 425):
        return protocol.NodeTimeout(f"The node answered {status}{suffix}")
    if status >= 500:
        return protocol.NodeServerError(f"The node answered {status}{suffix}")
    if 300 <= status < 400:
        return protocol.NodeAnsweredNonsense("The node answered with a redirect, which is not followed.")
    if status in (405, 501):
        return protocol.NodeAnsweredNonsense("The node does not speak this protocol.")
    if status >= 400:
        return protocol.NodeRejected(detail or f"The node refused the request ({status}).")
    return protocol.NodeAnsweredNonsense(f"The node answered with status {status}.")


def message_of(answer: Answer) -> str:
    """Return the node's own message in an error body, in any of the usual shapes; empty when there is none."""
    try:
        body = answer.json_object()
    except protocol.NodeAnsweredNonsense:
        return ""
    for key in ("error", "detail", "message"):
        value = body.get(key)
        if isinstance(value, dict):
            value = value.get("message")
        if isinstance(value, list):
            value = "; ".join(_validation_line(item) for item in value[:5])
        if isinstance(value, str) and value.strip():
            return value
    return ""


def _validation_line(item: object) -> str:
    """Describe one entry of FastAPI's list of validation errors."""
    if not isinstance(item, dict):
        return str(item)[:MAX_MESSAGE]
    place, text = item.get("loc"), str(item.get("msg", ""))[:MAX_MESSAGE]
    return f"{place[-1]}: {text}" if isinstance(place, list) and place else text


def retry_after(headers: httpx.Headers) -> float:
    """Return the seconds of Retry-After (a number or a date), within 1..600; 5 when it holds nothing usable."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except (TypeError, ValueError, IndexError, OverflowError):
            return DEFAULT_RETRY_AFTER
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    if not math.isfinite(seconds):
        return DEFAULT_RETRY_AFTER
    return min(max(seconds, 1.0), MAX_RETRY_AFTER)


async def _bounded_body(response: httpx.Response) -> bytes:
    """Read the body, at most MAX_JSON_BYTES of it: raw, so that a small compressed answer cannot unfold."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise protocol.NodeAnsweredNonsense("The node's answer is too long.")
    return bytes(body)


def _reason(error: Exception) -> str:
    """Describe the kind of an httpx error; its own text may hold the address and is left out."""
    names: dict[type[Exception], str] = {
        httpx.ConnectTimeout: "connecting took too long",
        httpx.ConnectError: "refused or no route",
        httpx.RemoteProtocolError: "the answer ended early",
        httpx.ReadError: "reading failed",
        httpx.WriteError: "sending failed",
    }
    return names.get(type(error), type(error).__name__)


def checked_url(base_url: str) -> httpx.URL:
    """Return a node's address as a usable URL; else raise NodeMisconfigured, which explains the fault."""
    try:
        url = httpx.URL(base_url.strip())
    except httpx.InvalidURL:
        raise protocol.NodeMisconfigured("The node's address is not a web address.") from None
    if url.port is not None and not 0 < url.port < 65536:
        raise protocol.NodeMisconfigured("The port in the node's address is out of range.")
    if url.scheme not in ("http", "https") or not url.host:
        raise protocol.NodeMisconfigured("The node's address must begin with http:// or https://.")
    # httpx has quoted a character that no host name has; in an IPv6 address the sign begins a zone.
    if "%" in url.host and ":" not in url.host:
        raise protocol.NodeMisconfigured("The node's address has characters that no host name has.")
    # Of a pasted address with a query or a fragment, the part before it is meant.
    return url.copy_with(query=None, fragment=None)


def _auth_headers(key: str) -> dict[bytes, bytes]:
    headers = {b"Accept": b"application/json, video/*;q=0.9", b"Accept-Encoding": b"identity"}
    if not key:
        return headers
    if any(c.isspace() or not c.isprintable() for c in key):
        raise protocol.NodeMisconfigured("The node's key has a space or a control character in it.")
    encoded = key.encode("utf-8", "surrogatepass")
    return headers | {b"x-api-key": encoded, b"Authorization": b"Bearer " + encoded}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@cache
def _tls_context() -> ssl.SSLContext:
    """Load the certificate store once a process: it takes tens of milliseconds."""
    return httpx.create_ssl_context()
