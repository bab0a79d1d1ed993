"""HTTP to a node that is not trusted: no redirects, bounded bodies, deadlines, one family of errors."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import os
import re
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import httpx
from django.conf import settings

from generation.nodes import protocol
from generation.nodes.protocol import NodeEndpoint

MAX_JSON_BYTES = 1024 * 1024
MAX_MESSAGE = 400
CONNECT_TIMEOUT = 5.0
DEFAULT_RETRY_AFTER = 5.0
MAX_RETRY_AFTER = 600.0
MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
# Where an error has its text, in this order.
MESSAGE_KEYS = ("error", "detail", "message", "msg", "errors", "error_message", "reason", "title")
# Of an unpacked body, at once.
PIECE_BYTES = 256 * 1024
# OpenSSL's codes for a certificate that is signed by itself, or by one that is not known here.
UNKNOWN_AUTHORITY = (18, 19, 20, 21)
# Services that clouds offer to each of their machines, keys included: link-local, and those of Alibaba, Azure and AWS.
METADATA = [
    ipaddress.ip_network(network)
    for network in ("169.254.0.0/16", "fe80::/10", "100.100.100.200", "168.63.129.16", "fd00:ec2::254")
]
# What an address is often pasted with: a route of a protocol, or where OpenAI's clients expect their base.
_ROUTE = re.compile(r"(/v1(/videos|/models)?|/health|/generate_video)?/*$")


@dataclass(frozen=True)
class Answer:
    """A whole HTTP answer of bounded size."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def is_page(self) -> bool:
        """True for HTML and XML: a proxy's words, not those of a node."""
        return self.body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<"

    def json_value(self) -> Any:
        """Return the body as JSON; else raise NodeAnsweredNonsense."""
        try:
            return storable(json.loads(self.body))
        except (ValueError, RecursionError):
            found = "nothing" if not self.body else "a web page" if self.is_page else "something else"
            raise protocol.NodeAnsweredNonsense(f"The node answered {found} instead of JSON.") from None

    def json_object(self) -> dict[str, Any]:
        """Return the body as a JSON object; else raise NodeAnsweredNonsense."""
        value = self.json_value()
        if not isinstance(value, dict):
            raise protocol.NodeAnsweredNonsense("The node answered JSON that is not an object.")
        return value


class Transport:
    """One pooled HTTP connection to a node, with its key."""

    def __init__(self, endpoint: NodeEndpoint) -> None:
        self._key = endpoint.api_key
        self._url = url = checked_url(endpoint.base_url)
        self._file_hosts = endpoint.file_hosts
        self._client = httpx.AsyncClient(
            base_url=url,
            headers=_auth_headers(endpoint.api_key),
            follow_redirects=False,
            timeout=httpx.Timeout(30.0, connect=CONNECT_TIMEOUT),
            verify=_tls_context(),
            # A proxy named in the environment must never be asked for a node on this machine.
            trust_env=not _is_loopback(url.host),
            event_hooks={"request": [lambda request: check_host(request.url.host)]},
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
            return await read_answer(response)

    @asynccontextmanager
    async def stream(
        self, place: str, *, headers: Mapping[str, str], read_timeout: float
    ) -> AsyncIterator[httpx.Response]:
        """Send a GET for a file, on the node or where it says, and follow redirects to where files may be.

        The caller reads the body, and keeps the deadline.
        """
        async with self._guard(None), AsyncExitStack() as open_answers:
            url = self._file_address(place) if place.startswith("http") else self._route_url(place)
            for _ in range(MAX_REDIRECTS + 1):
                request = self._client.build_request(
                    "GET", url, headers=headers, timeout=self._timeout(read_timeout)
                )
                if _origin(url) != _origin(self._url):
                    # The key is the node's alone; a signed address needs none.
                    for name in ("x-api-key", "authorization"):
                        request.headers.pop(name, None)
                response = await open_answers.enter_async_context(self._sent(request))
                if response.status_code not in REDIRECTS or not response.headers.get("location"):
                    yield response
                    return
                url = self._file_address(response.headers["location"], base=url)
            raise protocol.NodeAnsweredNonsense("The node answered with one redirect after another.")

    def _route_url(self, path: str) -> httpx.URL:
        return httpx.URL(str(self._url).rstrip("/") + path)

    def _file_address(self, address: str, *, base: httpx.URL | None = None) -> httpx.URL:
        """Return the address of a file; ResultElsewhere where its host is neither the node's nor allowed by staff."""
        try:
            url = _usable_url(str((base or self._url).join(address)))
        except (protocol.NodeMisconfigured, httpx.InvalidURL):
            raise protocol.NodeAnsweredNonsense("The node named no usable address for the file.") from None
        host = url.host.lower().rstrip(".")
        if host != self._url.host.lower() and not any(
            _matches(host, allowed) for allowed in self._file_hosts
        ):
            raise protocol.ResultElsewhere(
                f"The node's files are on another host, {host[:100]}: if you trust it, add it to the file hosts "
                "of this node in the admin."
            )
        return url

    def refuse(self, answer: Answer) -> protocol.NodeError:
        """Return the error for an answer with a status other than 2xx."""
        detail = self.clean(message_of(answer))
        if 300 <= answer.status < 400 and (address := self._moved_to(answer)):
            detail = f"It leads to {address[:100]}: if that is the node, enter it as the address."
        return error_for_status(answer, detail=detail)

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

    def absolute(self, address: str) -> str:
        """Complete an address that a node names in an answer: a path is one of its host."""
        try:
            return str(self._url.join(address))
        except httpx.InvalidURL:
            raise protocol.NodeAnsweredNonsense("The node named no usable address for the file.") from None

    def _moved_to(self, answer: Answer) -> str:
        """Name where a redirect leads, without path and query; empty where it stays on the node's address."""
        try:
            url = self._url.join(answer.headers.get("location", ""))
        except httpx.InvalidURL:
            return ""
        stays = _origin(url) == _origin(self._url)
        return "" if stays else str(url.copy_with(path="/", query=None, fragment=None))


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
    if status in (404, 410):
        return protocol.RemoteJobLost(f"The node answered {status}{suffix}")
    if 400 <= status < 500 and status not in (401, 407, 408, 425, 429) and answer.is_page:
        return protocol.NodeAnsweredNonsense(f"The node answered {status} with a web page.")
    if status in (401, 403):
        return protocol.NodeUnauthorized(f"The node does not accept the key{suffix}")
    if status in (202, 425, 429) or (status == 503 and "retry-after" in answer.headers):
        said = "busy" if status in (429, 503) else "not ready for this"
        return protocol.NodeBusy(f"The node is {said}{suffix}", retry_after=retry_after(answer.headers))
    if status == 408:
        return protocol.NodeTimeout(f"The node answered {status}{suffix}")
    if status >= 500:
        return protocol.NodeServerError(f"The node answered {status}{suffix}")
    if 300 <= status < 400:
        return protocol.NodeAnsweredNonsense(
            "The node answered with a redirect, which is not followed." + (f" {detail}" if detail else "")
        )
    if status in (405, 501):
        return protocol.NodeAnsweredNonsense("The node does not speak this protocol.")
    if status >= 400:
        return protocol.NodeRejected(detail or f"The node refused the request ({status}).")
    return protocol.NodeAnsweredNonsense(f"The node answered with status {status}.")


def message_of(answer: Answer) -> str:
    """Return the node's own message in an error body, in any of the usual shapes; empty when there is none."""
    try:
        body = answer.json_value()
    except protocol.NodeAnsweredNonsense:
        return ""
    return _said(body) if isinstance(body, str | dict) else ""


def _said(value: object, *, depth: int = 4) -> str:
    """Read a message: a text, a list of them, or an object with one, as FastAPI's, or of fields each with its own."""
    if isinstance(value, list):
        return "; ".join(filter(None, (_said(item, depth=depth - 1) for item in value[:5]))) if depth else ""
    if not isinstance(value, dict):
        return "" if value is None or isinstance(value, bool) else str(value)[: 5 * MAX_MESSAGE].strip()
    found = (
        next(filter(None, (_said(value.get(key), depth=depth - 1) for key in MESSAGE_KEYS)), "")
        if depth
        else ""
    )
    if found:
        place = value.get("loc")
        return f"{place[-1]}: {found}" if isinstance(place, list) and place else found
    fields = [
        f"{name}: {_said(said, depth=1)}" for name, said in value.items() if said and isinstance(said, list)
    ]
    return "; ".join(fields[:5])


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


async def read_answer(
    response: httpx.Response, *, begun: bytes = b"", rest: AsyncIterator[bytes] | None = None
) -> Answer:
    """Read the whole answer, at most MAX_JSON_BYTES of it. begun, rest: of one that has been looked at before."""
    body = bytearray(begun)
    async for piece in rest or plain_pieces(response):
        body += piece
        if len(body) > MAX_JSON_BYTES:
            raise protocol.NodeAnsweredNonsense("The node's answer is too long.")
    return Answer(response.status_code, response.headers, bytes(body))


def is_compressed(response: httpx.Response) -> bool:
    return response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity")


async def plain_pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the body, unpacked where it comes as gzip or deflate all the same, though `identity` was asked for.

    No piece is larger than PIECE_BYTES, so that the reader can stop before a small answer unfolds.
    """
    if not is_compressed(response):
        async for chunk in response.aiter_raw():
            yield chunk
        return
    encoding = response.headers["content-encoding"].strip().lower()
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise protocol.NodeAnsweredNonsense(
            "The node's answer is compressed in a way that was not asked for."
        )
    unpacker: Any = None
    try:
        async for chunk in response.aiter_raw():
            if unpacker is None:
                # By its head gzip or zlib; some servers send deflate without one.
                has_head = encoding != "deflate" or chunk[0] & 15 == 8
                unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32 if has_head else -zlib.MAX_WBITS)
            yield (piece := unpacker.decompress(chunk, PIECE_BYTES))
            while unpacker.unconsumed_tail or len(piece) == PIECE_BYTES:
                yield (piece := unpacker.decompress(unpacker.unconsumed_tail, PIECE_BYTES))
    except zlib.error:
        raise protocol.NodeAnsweredNonsense("The node's answer could not be unpacked.") from None
    if unpacker is not None and not unpacker.eof:
        raise protocol.NodeUnreachable("The connection to the node broke off (the answer ended early).")


def _reason(error: Exception) -> str:
    """Describe the kind of an httpx error; its own text may hold the address and is left out."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return _tls_reason(cause)
        if isinstance(cause, socket.gaierror):
            return "its name is not known here"
        if isinstance(cause, ConnectionRefusedError):
            return "refused: nothing listens at this address and port"
    names: dict[type[Exception], str] = {
        httpx.ConnectTimeout: "connecting took too long",
        httpx.ConnectError: "no route",
        httpx.RemoteProtocolError: "the answer ended early",
        httpx.ReadError: "reading failed",
        httpx.WriteError: "sending failed",
    }
    return names.get(type(error), type(error).__name__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _tls_reason(error: ssl.SSLError) -> str:
    """Say why TLS was not agreed on, and what mends it."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        reason = (error.reason or "broken off").replace("_", " ").lower()
        return f"no TLS there, {reason}: perhaps its address begins with http://"
    said = error.verify_message.partition(",")[0]
    if error.verify_code in UNKNOWN_AUTHORITY:
        return f"{said}: if the certificate is yours, add it to the file that SSL_CERT_FILE names"
    return f"its certificate does not hold: {said}"


def checked_url(base_url: str) -> httpx.URL:
    """Return a node's address as a usable URL; else raise NodeMisconfigured, which explains the fault."""
    url = _usable_url(base_url)
    # Of a pasted address with a query or a fragment, or with a route, the part before it is meant.
    path = _ROUTE.sub("", url.path) or "/"
    return url.copy_with(path=path, query=None, fragment=None)


def _usable_url(address: str) -> httpx.URL:
    try:
        url = httpx.URL(address.strip())
    except httpx.InvalidURL:
        raise protocol.NodeMisconfigured("The node's address is not a web address.") from None
    if url.port is not None and not 0 < url.port < 65536:
        raise protocol.NodeMisconfigured("The port in the node's address is out of range.")
    if url.scheme not in ("http", "https") or not url.host:
        raise protocol.NodeMisconfigured("The node's address must begin with http:// or https://.")
    # httpx has quoted a character that no host name has; in an IPv6 address the sign begins a zone.
    if "%" in url.host and ":" not in url.host:
        raise protocol.NodeMisconfigured("The node's address has characters that no host name has.")
    return url


async def check_host(host: str) -> None:
    """Refuse what only this machine reaches, such as its cloud's metadata, to nodes and to their redirects.

    Raises NodeMisconfigured. A name that leads elsewhere a moment later passes.
    """
    loop = asyncio.get_running_loop()
    with suppress(OSError, UnicodeError):  # connecting says what is wrong with the name
        for *_rest, place in await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM):
            ip = ipaddress.ip_address(str(place[0]).partition("%")[0])
            ip = getattr(ip, "ipv4_mapped", None) or ip
            private = not ip.is_global and not settings.NODE_PRIVATE_NETWORKS
            if private or ip.is_multicast or any(ip in network for network in METADATA):
                raise protocol.NodeMisconfigured(f"The node leads to {host}, where no node may be.")


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _matches(host: str, allowed: str) -> bool:
    """Compare a host with one that staff allow; `*.example.com` stands for all below."""
    allowed = allowed.lower()
    return host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed


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
    """Load the known authorities and those of SSL_CERT_FILE, once a process: it takes tens of milliseconds."""
    context = httpx.create_ssl_context(trust_env=False)
    own, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    try:
        if own or folder:
            context.load_verify_locations(cafile=own or None, capath=folder or None)
    except OSError:
        raise protocol.NodeMisconfigured("SSL_CERT_FILE names no readable file of certificates.") from None
    return context
