"""A pooler in transaction mode in front of the test database: PgBouncer, or as much of one as the tests need.

Ours speaks PostgreSQL's protocol 3.0: a client has a connection to the server until the end of its transaction, then
another client may have it. What arrives on a connection that no client has is dropped, as by PgBouncer.
"""

import contextlib
import os
import select
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from psycopg import pq
from psycopg.conninfo import make_conninfo

from tests.processes import wait_for

NO_ENCRYPTION = (80877103, 80877104)  # asked for before the start, refused with an N
SYNC, QUERY, TERMINATE, READY = b"S", b"Q", b"X", b"Z"
IDLE = b"I"  # in READY: no transaction is open
PARAMETERS = (
    b"server_version",
    b"client_encoding",
    b"DateStyle",
    b"TimeZone",
    b"standard_conforming_strings",
)
SERVERS = 6


@contextmanager
def pooler(where: dict[str, Any], *, real: bool) -> Iterator[str]:
    """Yield the address of a pooler in front of the database at `where`, an entry of DATABASES with a socket."""
    with (_pgbouncer if real else _stand_in)(where) as port:
        yield f"postgresql://{where['USER']}@127.0.0.1:{port}/{where['NAME']}"


@contextmanager
def _pgbouncer(where: dict[str, Any]) -> Iterator[int]:
    """Run PgBouncer as the account that the server has: it refuses root."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    account = Path(where["HOST"]).stat()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host={where['HOST']} port={where['PORT']} user={where['USER']} "
            f"password={_password(where)}\n"
            f"[pgbouncer]\npool_mode = transaction\nauth_type = any\nunix_socket_dir =\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\n"
        )
        os.chown(folder, account.st_uid, account.st_gid)
        config.chmod(0o600)
        os.chown(config, account.st_uid, account.st_gid)
        other = (
            {"user": account.st_uid, "group": account.st_gid, "extra_groups": ()} if os.getuid() == 0 else {}
        )
        process = subprocess.Popen(["pgbouncer", str(config)], cwd="/", stderr=subprocess.DEVNULL, **other)
        try:
            wait_for(lambda: _listens(port), message="PgBouncer does not listen")
            yield port
        finally:
            process.terminate()
            process.wait(10)


def _password(where: dict[str, Any]) -> str:
    for line in Path(where["OPTIONS"]["passfile"]).read_text().splitlines():
        *_, role, password = line.split(":")
        if role == where["USER"]:
            return password
    raise LookupError(where["USER"])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _stand_in(where: dict[str, Any]) -> Iterator[int]:
    servers: SimpleQueue[_Wire] = SimpleQueue()
    opened = [_Wire.to_server(where) for _ in range(SERVERS)]
    for server in opened:
        servers.put(server)
    with socket.create_server(("127.0.0.1", 0)) as door:
        clients: list[socket.socket] = []

        def welcome() -> None:
            with contextlib.suppress(OSError):  # the door is closed
                while True:
                    client, _ = door.accept()
                    clients.append(client)
                    greeting = opened[0].greeting
                    threading.Thread(
                        target=_serve, args=[_Wire(client), greeting, servers], daemon=True
                    ).start()

        threading.Thread(target=welcome, daemon=True).start()
        try:
            yield int(door.getsockname()[1])
        finally:
            door.shutdown(socket.SHUT_RDWR)
            for connection in [*clients, *(server.socket for server in opened)]:
                connection.close()


class _Wire:
    """One connection that carries messages: a byte for the kind, four for the length, the rest."""

    greeting = b""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    @classmethod
    def to_server(cls, where: dict[str, Any]) -> "_Wire":
        """Connect and sign in by libpq, and make up what the server says at the start."""
        place = {"host": where["HOST"], "port": where["PORT"], "user": where["USER"], "dbname": where["NAME"]}
        server = pq.PGconn.connect(make_conninfo(**place, **where["OPTIONS"]).encode())
        assert server.status == pq.ConnStatus.OK, server.error_message
        wire = cls(socket.socket(fileno=os.dup(server.socket)))
        wire.socket.setblocking(True)
        wire._server = server  # open as long as the wire
        facts = [(name, server.parameter_status(name) or b"") for name in PARAMETERS]
        said = [(b"R", struct.pack("!i", 0)), *((b"S", b"%s\0%s\0" % fact) for fact in facts), (READY, IDLE)]
        wire.greeting = b"".join(kind + struct.pack("!i", 4 + len(rest)) + rest for kind, rest in said)
        return wire

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise ConnectionError("closed")
            data += more
        return data

    def read(self) -> tuple[bytes, bytes]:
        """Read the kind of a message, and its length with the rest."""
        kind, length = self.exactly(1), self.exactly(4)
        return kind, length + self.exactly(struct.unpack("!i", length)[0] - 4)

    def drop_what_came(self) -> None:
        while select.select([self.socket], [], [], 0)[0]:
            self.read()


def _serve(client: _Wire, greeting: bytes, servers: "SimpleQueue[_Wire]") -> None:
    server: _Wire | None = None
    with contextlib.suppress(OSError):
        while True:
            (length,) = struct.unpack("!i", client.exactly(4))
            (code,) = struct.unpack("!i", client.exactly(length - 4)[:4])
            if code not in NO_ENCRYPTION:
                break
            client.socket.sendall(b"N")
        client.socket.sendall(greeting)
        while True:
            kind, rest = client.read()
            if kind == TERMINATE:
                break
            if server is None:
                server = servers.get()
                server.drop_what_came()
            server.socket.sendall(kind + rest)
            while kind in (SYNC, QUERY):
                answer, rest = server.read()
                client.socket.sendall(answer + rest)
                if answer == READY:
                    kind = b""
                    if rest.endswith(IDLE):
                        servers.put(server)
                        server = None
    client.socket.close()
    if server is not None:  # the client left in the middle of a transaction: so ends it
        with contextlib.suppress(OSError):
            server.socket.sendall(QUERY + struct.pack("!i", 13) + b"ROLLBACK\0")
            while server.read() != (READY, struct.pack("!i", 5) + IDLE):
                pass
            servers.put(server)
