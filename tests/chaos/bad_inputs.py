"""The bad inputs of R10: what is sent to which door. None of them is to be accepted."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.contrib import admin

NOBODYS = "video_" + "0" * 32
BOUNDARY = "frontier"
JSON = "Content-Type: application/json"
FORM = "Content-Type: application/x-www-form-urlencoded"
MULTIPART = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"
BIG = 10_000_000
# Codecs that Python knows and that are no charset of a text, or of none that anybody sends.
CODECS = (
    "idna",
    "punycode",
    "zlib",
    "bz2",
    "hex",
    "rot13",
    "uu",
    "utf-7",
    "undefined",
    "unicode_escape",
    "utf-16",
)


@dataclass(frozen=True)
class Input:
    """One request as it goes over the wire. `parsed`: it is good enough HTTP to reach a door of ours."""

    method: str
    target: str
    headers: tuple[str, ...] = ()
    body: bytes = b""
    parsed: bool = True

    @property
    def is_api(self) -> bool:
        return self.target.startswith("/v1/")

    def __str__(self) -> str:
        return f"{self.method} {self.target[:80]} {list(self.headers)!r:.120} {self.body[:60]!r}"


# --- REST -------------------------------------------------------------------------------------------------------------

JSON_BODIES: tuple[bytes, ...] = (
    b"",
    b"null",
    b"1",
    b'"x"',
    b"[]",
    b"[{}]",
    b"{}",
    b"{",
    b"}",
    b"{'prompt': 'x'}",
    b'{"prompt": "x",}',
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b'{"prompt": "\xff"}',
    b'{"prompt": "\xed\xa0\x80"}',
    b"\x00",
    b'{"prompt": "a\x00b"}',
    b'{"prompt": "\\u0000"}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "\\udc00\\ud800"}',
    b'{"prompt": "\\uZZZZ"}',
    b'{"prompt": null}',
    b'{"prompt": 1}',
    b'{"prompt": true}',
    b'{"prompt": []}',
    b'{"prompt": {}}',
    b'{"prompt": ""}',
    b'{"prompt": " \\t\\n\\u00a0\\u3000 "}',
    b'{"prompt": "' + b"a" * 201 + b'"}',
    b'{"prompt": "x", "prompt": []}',
    b'{"prompt": "x", "prompt": ""}',
    b'{"prompt": "x", "preset": "\\u0000"}',
    b'{"prompt": "x", "preset": "\\ud800"}',
    b'{"prompt": "x", "preset": []}',
    b'{"prompt": "x", "preset": "' + b"q" * 5000 + b'"}',
    b'{"prompt": "x", "preset": "quick\' OR 1=1 --"}',
    b'{"prompt": "x", "model": "\\u0000"}',
    b'{"prompt": "x", "model": "../../etc/passwd"}',
    b'{"prompt": "x", "model": 7}',
    b'{"prompt": "x", "size": "0x0"}',
    b'{"prompt": "x", "size": "99999999999x99999999999"}',
    b'{"prompt": "x", "size": "\\ud800"}',
    b'{"prompt": "x", "seconds": "\\u0662"}',
    b'{"prompt": "x", "seconds": -1}',
    b'{"prompt": "x", "seconds": 1e999}',
    b'{"prompt": "x", "seconds": 99999999999999999999}',
    b'{"prompt": "x", "seconds": []}',
    b'{"prompt": "x", "seed": NaN}',
    b'{"prompt": "x", "seed": Infinity}',
    b'{"prompt": "x", "seed": -1}',
    b'{"prompt": "x", "seed": 2147483648}',
    b'{"prompt": "x", "seed": 1e400}',
    b'{"prompt": "x", "seed": 1.5}',
    b'{"prompt": "x", "seed": true}',
    b'{"prompt": "x", "seed": "abc"}',
    b'{"prompt": "x", "seed": {}}',
    b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
    b'{"prompt": "x", "seed": "' + b"9" * 5000 + b'"}',
    b'{"prompt": "x", "negative_prompt": "\\u0000"}',
    b'{"prompt": "x", "negative_prompt": "\\ud800"}',
    b'{"prompt": "x", "negative_prompt": "' + b"n" * 201 + b'"}',
    b'{"prompt": "x", "negative_prompt": 1}',
    b'{"prompt": "x", "user": 1}',
    b'{"prompt": "x", "cost": 0}',
    b'{"prompt": "x", "state": "completed"}',
    b'{"prompt": "x", "source": "web"}',
    b'{"prompt": "x", "__proto__": {}}',
    b'{"prompt": "x", "num_frames": 1}',
    b'{"prompt": "x", "": 1}',
    b'{"prompt": "x", "\\u0000": 1}',
    b'{"prompt": "x", "\\ud800": 1}',
    b'{"prompt": "x", "input_reference": "http://127.0.0.1:1/"}',
    b'{"prompt": "x", "' + b"k" * 10_000 + b'": 1}',
    b"[" * 200_000,
    b'{"a":' * 50_000,
    b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"prompt": "' + b"a" * BIG + b'"}',
)


def part(name: str, value: bytes, more: str = "") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode("latin-1") + value + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
MULTIPART_BODIES = (
    b"",
    b"\x00",
    b"--",
    END,
    part("prompt", b""),
    part("prompt", b"") + END,
    part("prompt", b"\x00") + END,
    part("prompt", b"x", '; filename="a.txt"') + END,
    part("prompt", b"x", '; filename="../../../../etc/passwd"') + END,
    part("prompt", b"x", '; filename="\x01\r"') + END,
    part("input_reference", b"\x89PNG", '; filename="a.png"') + END,
    part("prompt", b"x") + part("seed", b"-1") + END,
    part("prompt", b"x") + part("seed", b"7", '; filename="s"') + END,
    part("prompt", b"!!!", "\r\nContent-Transfer-Encoding: base64") + END,
    part("a\x80", b"x") + END,
    b"".join(part(f"f{number}", b"x") for number in range(1100)) + END,
    b"".join(part(f"f{number}", b"x", '; filename="f"') for number in range(200)) + END,
    part("prompt", b"a" * BIG) + END,
    part("prompt", b"a" * BIG, '; filename="big.mp4"') + END,
)
FORM_BODIES = (
    b"",
    b"prompt=",
    b"prompt=%00",
    b"prompt=x&seed=%D9%A1x",
    b"prompt=&seed=",
    b"prompt=x&preset=%00",
    b"=x",
    b"%",
    b"prompt=x&prompt=",
    b"&".join(b"a%d=1" % number for number in range(1100)),
    b"prompt=x&unknown=1",
    b"prompt=" + b"a" * BIG,
)
CONTENT_TYPES = (
    "",
    "text/plain",
    "application/xml",
    "application/json, text/html",
    "application/JSON/x",
    ";",
    "/",
    "*/*",
    "a" * 3000,
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "multipart/form-data; boundary=\xff",
    "application/octet-stream",
    f"multipart/form-data; boundary={'b' * 300}",
    "multipart/mixed; boundary=x",
    "application/json\xff",
    "text/html; charset=\xff",
)
QUERIES = (
    "limit=0",
    "limit=-1",
    "limit=101",
    "limit=1e3",
    "limit=NaN",
    "limit=",
    "limit=%00",
    "limit=%D9%A1%D9%A2%D9%A3",
    "limit=" + "9" * 1200,
    "limit=99999999999999999999",
    "limit=1&limit=x",
    "limit[]=1",
    "order=",
    "order=DESC",
    "order=%00",
    "order=asc%20;drop",
    "after=",
    "after=%00",
    "after=%ff",
    f"after={NOBODYS}",
    f"after=VIDEO_{'0' * 32}",
    "after=-1",
    "after=99999999999999999999",
    "after=" + "a" * 3000,
    "%zz=%",
    "a=%ED%A0%80",
    "&&&;;",
)
IDS = (
    "%00",
    "%ff%fe",
    "%ed%a0%80",
    "video_",
    "video_%00",
    NOBODYS,
    NOBODYS.upper(),
    NOBODYS + "%0a",
    NOBODYS + "0",
    "video_" + "%EF%BC%90" * 32,
    "-1",
    "99999999999999999999999",
    "..%2f..%2fadmin",
    "%2e%2e",
    "' OR 1=1 --".replace(" ", "%20"),
    "a" * 3000,
    "%25%30%30",
    ";x=1",
    "{id}",
    "%0d%0aX-A:%201",
)
API_HEADERS = (
    "Authorization: ",
    "Authorization: Bearer",
    "Authorization: Bearer ",
    "Authorization: Bearer \xff\xfe",
    "Authorization: Basic Og==",
    "Authorization: Bearer vk_" + "x" * 5000,
    "Authorization: bearer\tx",
    "Authorization: Bearer a b c",
    "Authorization: Digest \x80",
    "Accept: \xff",
    "Accept: application/xml;q=NaN",
    "Accept-Language: ../../etc/passwd",
    "Accept-Language: " + "x," * 2000,
    "Host: evil.example",
    "Host: [",
    "Host: 127.0.0.1:99999999",
    "Host: \xff",
    "Host: a@b",
    "Host: ",
    "X-Forwarded-Host: evil.example",
    "X-Forwarded-For: \xff",
    "X-Forwarded-Proto: https",
    "X-HTTP-Method-Override: DELETE",
    "Content-Encoding: gzip",
    'Cookie: sessionid="\\000aaaaaaaaaaa"',
    "Cookie: \xff=\xff; =; ;;",
    "Cookie: " + "a=b; " * 1000,
    "Expect: nothing",
    "Upgrade: h2c",
    "Range: bytes=0-",
    "If-None-Match: \xff",
    "If-Modified-Since: never",
    "Referer: http://[",
)
RANGES = (
    "bytes=",
    "bytes=-",
    "bytes=9-1",
    "bytes=-0",
    "bytes=" + "9" * 18 + "-",
    "bytes=" + "9" * 400 + "-",
    "bytes=0-0,2-2",
    "lines=0-1",
    "bytes=\xff-",
    "bytes=\xb2-",
    "bytes=0x0-0x1",
)
METHODS = ("PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "PROPFIND", "POST")


def api_inputs() -> Iterator[Input]:
    post = "POST", "/v1/videos"
    yield from (Input(*post, (JSON,), body) for body in JSON_BODIES)
    yield from (Input(*post, (MULTIPART,), body) for body in MULTIPART_BODIES)
    yield from (Input(*post, (FORM,), body) for body in FORM_BODIES)
    yield from (Input(*post, (f"Content-Type: {kind}",), b'{"prompt": ""}') for kind in CONTENT_TYPES)
    for codec in CODECS:
        yield from (
            Input(*post, (f"{kind}; charset={codec}",), b"prompt=") for kind in (JSON, FORM, MULTIPART)
        )
    for key in ("k" * 256, "a\tb", "\x80", "\xad"):
        yield Input(*post, (JSON, f"Idempotency-Key: {key}"), b'{"prompt": ""}')
    yield from (Input("GET", f"/v1/videos?{query}") for query in QUERIES)
    yield from (Input("GET", f"/v1/credits?{query}") for query in QUERIES)
    for ident in IDS:
        yield Input("GET", f"/v1/videos/{ident}")
        yield Input("DELETE", f"/v1/videos/{ident}")
        yield Input("GET", f"/v1/videos/{ident}/content?variant=%00")
        yield Input("GET", f"/v1/videos/{ident}/events")
        yield Input("POST", f"/v1/videos/{ident}/cancel", (JSON,), b"[")
        yield Input("POST", f"/v1/videos/{ident}/remix", (JSON,), b'{"prompt": "x", "seed": 1}')
        yield Input("GET", f"/v1/models/{ident}")
    yield from (Input("GET", "/v1/videos", (header,)) for header in API_HEADERS)
    yield from (Input("GET", f"/v1/videos/{NOBODYS}/content", (f"Range: {wanted}",)) for wanted in RANGES)
    for method in METHODS:
        for path in (
            "/v1/credits",
            "/v1/presets",
            "/v1/schema",
            "/v1/docs",
            "/v1/",
            "/v1/nothing",
            f"/v1/videos/{NOBODYS}/events",
        ):
            yield Input(method, path)
    yield from (
        Input("GET", f"/v1/schema?{query}")
        for query in ("version=%00", "version=a%0d%0aX:%201", "lang=%00", "lang=../..", "format=yaml")
    )
    yield from (
        Input("GET", f"/v1/docs?{query}") for query in ("script=%00", "lang=%00", "url=//evil.example")
    )


# --- HTTP itself ------------------------------------------------------------------------------------------------------


def wire_inputs() -> Iterator[Input]:
    """Requests that are hardly HTTP. The server refuses most of them before our code sees them."""
    targets = (
        "*",
        "/v1/videos?" + "a" * 20_000,
        "http://evil.example/v1/videos",
        "//evil.example/",
        "/v1//videos",
        "/v1/../admin/",
        "/\x80",
        "/v1/videos#x",
    )
    yield from (Input("GET", target, parsed=False) for target in targets)
    yield from (
        Input(method, "/v1/videos", parsed=False) for method in ("get", "GE T", "\xff", "X" * 300, "CONNECT")
    )
    for header in (
        "Content-Length: -1",
        "Content-Length: x",
        "Content-Length: 1, 2",
        "Content-Length: +2",
        "No colon",
        ": no name",
        "X-A: \x00",
        "X-A: a\rb",
        "X-A: 1\r\n folded",
        "Host: a\r\nHost: b",
        "X-A: " + "a" * 70_000,
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
    ):
        yield Input("POST", "/v1/videos", (header,), parsed=False)
    yield Input("POST", "/v1/videos", ("\r\n".join(f"X-{number}: 1" for number in range(500)),), parsed=False)
    chunked = (JSON, "Transfer-Encoding: chunked")
    for body in (
        b"zz\r\n",
        b"-1\r\n\r\n0\r\n\r\n",
        b"2;a=b\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}\r\n0\r\nX-Trailer: 1\r\n\r\n",
        b"1\r\n{}\r\n0\r\n\r\n",
    ):
        yield Input("POST", "/v1/videos", chunked, body, parsed=False)
    yield Input("POST", "/v1/videos", chunked, b"989680\r\n" + b"a" * BIG + b"\r\n0\r\n\r\n")


# --- The site ---------------------------------------------------------------------------------------------------------

COMPOSERS = (
    "prompt=",
    "prompt=%00",
    "prompt=%20%09",
    "prompt=" + "a" * 201,
    "prompt=x&preset=%00",
    "prompt=x&preset=nope",
    "prompt=x&seed=-1",
    "prompt=x&seed=%D9%A1",
    "prompt=x&seed=99999999999999999999",
    "prompt=x&seed=1e5",
    "prompt=x&seed=" + "9" * 5000,
    "prompt=x&negative_prompt=%00",
    "prompt=x&negative_prompt=" + "n" * 201,
    "prompt=%ff&seed=x",
    "prompt=x&remix=%00&seed=x",
    "prompt=x&key=%00&seed=x",
    "prompt=&prompt=",
    "&".join(f"a{number}=1" for number in range(1100)),
    "%",
    "",
    "prompt=" + "a" * 3_000_000,
    "prompt=" + "a" * BIG,
)
PAGES = (
    "/?page=0",
    "/?page=-1",
    "/?page=%D9%A1",
    "/?page=99999999999999999999",
    "/?page=%00",
    "/?prompt=%00",
    "/?prompt=%ff",
    "/?remix=%00",
    "/?remix=x",
    f"/?remix={NOBODYS}",
    "/?remix=" + "f" * 3000,
    "/start/?prompt=%00",
    "/start/?prompt=%0d%0aX:%201",
    "/credits/?before=%00",
    "/credits/?before=-1",
    "/credits/?before=99999999999999999999",
    "/credits/?before=%D9%A1",
    "/videos/video_%00/",
    f"/videos/{NOBODYS}/",
    f"/videos/{NOBODYS.upper()}/",
    f"/videos/{NOBODYS}/video.mp4",
    f"/videos/{NOBODYS}/poster.jpg?%00",
    "/videos/..%2f..%2fetc%2fpasswd/",
    "/static/..%2f..%2fmanage.py",
    "/static/%00",
    "/%00",
    "/%ff",
    "/%ed%a0%80/",
    "/.env",
    "/.git/config",
    "/accounts/login/?next=http://[",
    "/accounts/signup/?next=http://[",
    "/accounts/logout/?next=http://[",
    "/accounts/confirm-email/%00/",
    "/accounts/password/reset/key/zzzzzzzzzzzzz-x/",
    "/accounts/password/reset/key/%00-%00/",
    "/accounts/password/reset/key/1-%ff/",
    "/accounts/reauthenticate/?next=http://[",
    "/accounts/email/?next=%00",
    "/healthz?%00",
    "/admin/?%00",
)
WEB_HEADERS = (
    'Cookie: sessionid="\\000aaaaaaaaaaaaa"',
    "Cookie: sessionid=\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    "Cookie: sessionid=" + "a" * 4000,
    'Cookie: csrftoken="\\000"',
    'Cookie: messages="\\000"',
    "Cookie: messages=W1siX19qc29uX21lc3NhZ2UiXV0:x:y",
    "Accept-Language: \xff",
    "Accept-Language: ../../etc/passwd",
    "Host: evil.example",
    "Host: [",
    "Referer: http://[",
    "If-None-Match: \xff",
    "Content-Type: text/plain; charset=idna",
    "Content-Type: text/plain; charset=punycode",
)
FORMS = (
    ("/api-keys/", "name="),
    ("/api-keys/", "name=%00"),
    ("/api-keys/", "name=" + "n" * 101),
    ("/api-keys/x/revoke/", ""),
    (f"/api-keys/{'0' * 8}-0000-0000-0000-{'0' * 12}/revoke/", ""),
    (f"/videos/{NOBODYS}/cancel/", ""),
    (f"/videos/{NOBODYS}/retry/", ""),
    (f"/videos/{NOBODYS}/delete/", ""),
    ("/accounts/login/", "login=%00&password=%00"),
    ("/accounts/signup/", "username=%00&password1=%00"),
    ("/accounts/signup/", "username=" + "u" * 200),
    ("/accounts/email/", "action_add=&email=%00"),
    ("/accounts/email/", "action_add=&email=a@["),
    ("/accounts/email/", "action_remove=&email=%00"),
    ("/accounts/email/", "action_primary=&email=" + "e" * 400),
    ("/accounts/password/change/", "oldpassword=%00&password1=%00"),
    ("/accounts/password/reset/", "email=%00"),
    ("/accounts/reauthenticate/", "password=%00&next=http://["),
    ("/events", ""),
    ("/balance/", ""),
    ("/", "x=%00"),
)


def web_inputs() -> Iterator[Input]:
    yield from (Input("POST", "/videos/", (FORM,), body.encode()) for body in COMPOSERS)
    yield from (
        Input("POST", "/videos/", (FORM, "HX-Request: true"), body.encode()) for body in COMPOSERS[:8]
    )
    yield from (
        Input("POST", "/videos/", (MULTIPART,), body)
        for body in MULTIPART_BODIES
        if b'"prompt"\r\n\r\nx' not in body
    )
    yield from (Input("POST", "/videos/", (f"{FORM}; charset={codec}",), b"prompt=") for codec in CODECS)
    yield from (
        Input("POST", "/videos/", (f"{MULTIPART}; charset={codec}",), part("prompt", b"") + END)
        for codec in CODECS
    )
    yield from (Input("GET", path) for path in PAGES)
    yield from (Input("POST", path, (FORM,), body.encode()) for path, body in FORMS)
    for header in WEB_HEADERS:
        yield from (Input("GET", path, (header,)) for path in ("/", "/accounts/login/", "/api-keys/"))
    yield from (
        Input("GET", f"/events?{query}", (WEB_HEADERS[0], "Last-Event-ID: \xb2")) for query in ("", "%00")
    )
    for url in ("http://[", "http://\xff", "%00", "//evil.example", "javascript:1"):
        yield Input("GET", "/balance/", ("HX-Request: true", f"HX-Current-URL: {url}", "Cookie: a=b"))
    for forged in (
        "Cookie: a=b",
        "X-CSRFToken: x",
        "X-CSRFToken: \xff",
        "Origin: http://[",
        "Origin: https://evil.example",
        "Origin: null",
    ):
        yield Input("POST", "/videos/", (FORM, forged), b"prompt=")


ADMIN_QUERIES = (
    "q=%00",
    "o=%00",
    "o=99999999999999999999",
    "p=%00",
    "p=-1",
    "p=99999999999999999999",
    "bogus=1",
    "id__exact=%00",
    "id__exact=x",
    "state__exact=%00",
    "all=%00",
    "e=1",
    "received_at__gte=%00",
    "received_at__gte=x",
    "user__password__startswith=a",
    "_facets=%00",
    "language_code=%00",
    "_popup=1",
    "_to_field=password",
)
ADMIN_IDS = ("%00", "x", "-1", "99999999999999999999", "_5F", "%ff", "..%2f..")


def admin_inputs() -> Iterator[Input]:
    """Addresses that staff may type, requested by a superuser: they must not break anything either."""
    admin.autodiscover()
    for model in admin.site._registry:
        place = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        yield from (Input("GET", f"{place}?{query}") for query in ADMIN_QUERIES)
        yield from (Input("GET", f"{place}{ident}/change/") for ident in ADMIN_IDS)
        yield Input("GET", f"{place}%00/history/")
        yield Input("POST", place, (FORM,), b"action=%00&_selected_action=%00")
    for path in (
        "login/?next=http://[",
        "autocomplete/?term=%00&app_label=%00&model_name=x&field_name=y",
        "jsi18n/?%00",
        "r/%00/%00/",
        "r/1/x/",
        "%00/",
        "search/?s=%00",
    ):
        yield Input("GET", f"/admin/{path}")


# --- Telegram ---------------------------------------------------------------------------------------------------------

MESSAGES = (
    "",
    "/",
    "//",
    "/video",
    "/video \x00",
    "/video \ud800",
    "/video " + "a" * 201,
    "/video " + "\U0001f600" * 3000,
    "/video\u00a0\u3000",
    "/VIDEO",
    "/video@",
    "/vidéo x",
    "/nothing",
    "/cancel now",
    "/balance \x00",
    "/history \ud800\udc00\udc00",
    "/start <b>&amp;</i>",
    "/help@videos_test_bot",
    "\x00",
    "\ud800",
    "<b>",
    "&lt;",
    "/video \u202e\u200b\x00",
    "/" + "x" * 4000,
    "hello",
)
ODD_SENDERS: tuple[dict[str, Any], ...] = (
    {"first_name": "\x00"},
    {"first_name": "\ud800"},
    {"first_name": "<b>&"},
    {"first_name": "n" * 5000},
    {"username": "\x00" * 500},
    {"language_code": "\ud800" * 99},
    {"last_name": "\x00"},
)
ODD_UPDATES: tuple[dict[str, Any], ...] = (
    {},
    {"message": None},
    {"message": []},
    {"message": {}},
    {"message": {"text": "/start"}},
    {"message": {"message_id": "x", "date": "y", "chat": 1}},
    {"edited_message": {"text": 1}},
    {"callback_query": {"id": "1", "data": "\x00"}},
    {"message": {"message_id": 2**70, "date": -1, "chat": {"id": 2**70, "type": "?"}, "text": 7}},
    {"\x00": {"\ud800": 1}},
)


# --- Commands -------------------------------------------------------------------------------------------------------

COMMANDS: tuple[list[str], ...] = (
    ["grant_credits"],
    ["grant_credits", "ada", "x", "--reason", "x"],
    ["grant_credits", "ada", "0", "--reason", "x"],
    ["grant_credits", "ada", "-5", "--reason", "x"],
    ["grant_credits", "ada", "9" * 30, "--reason", "x"],
    ["grant_credits", "ada", "9223372036854775807", "--reason", "x"],
    ["grant_credits", "ada", "1", "--reason", " "],
    ["grant_credits", "ada", "1", "--reason", "\udcff"],
    ["grant_credits", "\udcff", "1", "--reason", "x"],
    ["grant_credits", "nobody", "1", "--reason", "x"],
    ["create_api_key"],
    ["create_api_key", "nobody"],
    ["create_api_key", "\udcff"],
    ["create_api_key", "ada", "--name", "\udcff"],
    ["import_balances", "/"],
    ["import_balances", "/nowhere"],
    ["import_balances", "/dev/null"],
    ["check_gpu_node", "--node", "nobody"],
    ["check_gpu_node", "--node", "\udcff"],
    ["backup", "/nowhere/at/all"],
    ["backup", "/"],
    ["audit_credits", "--bogus"],
)
