"""Backup and restore: one file with the database and the clips.

The file is a tar archive: `manifest.json`, `database.dump` (pg_dump's custom format), `media/…`, and last of all
`complete.json`, without which it is not restored. Nothing needs to stop for a backup: the database is dumped as it was
in one moment, and the clips are those that it names in that moment; a clip is stored before its row says so, and is
never written again. Clips in a bucket are not in the file.

A restore puts the clips in place first and then replaces the database in one transaction, the ledger's guards
included: triggers are created after the rows are loaded. Whatever stops it, the old database is untouched.
"""

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import psycopg
from django.conf import settings
from django.core.files.storage import FileSystemStorage, default_storage
from django.db import connection, transaction
from django.db.migrations.loader import MigrationLoader
from django.utils import timezone

from generation.database import listen_parameters
from generation.models import GenerationJob
from videoplatform.embedded_postgres import EmbeddedPostgresError, binaries

FORMAT = 1
MANIFEST, DUMP, MEDIA, COMPLETE = "manifest.json", "database.dump", "media", "complete.json"
PROGRAMS = ("pg_dump", "pg_restore", "psql")
# Newer programs write a setting into the script's head that older servers do not know.
SETTING_OF_17 = b"SET transaction_timeout = 0;\n"
HEAD_LINES = 40
# Only what is ours in the schema: the role need not own the database, and extensions stay.
DROP_EVERYTHING = """
DO $$
DECLARE found record;
BEGIN
    FOR found IN SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables
                 WHERE schemaname = current_schema() LOOP
        EXECUTE 'DROP TABLE IF EXISTS ' || found.name || ' CASCADE';
    END LOOP;
    FOR found IN SELECT oid::regprocedure AS name FROM pg_proc
                 WHERE pronamespace = current_schema()::regnamespace
                   AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e') LOOP
        EXECUTE 'DROP ROUTINE IF EXISTS ' || found.name || ' CASCADE';
    END LOOP;
END $$;
"""
# The script empties the search path.
MARK_DELETED = "UPDATE public.generation_generationjob SET deleted_at = now() WHERE id = '{}';\n"


class BackupError(Exception):
    """A backup or a restore cannot be done. The message says why and what to do; nothing was replaced."""


@dataclass(frozen=True)
class Manifest:
    """The description of a backup, before its contents.

    media: whether the clips are inside; migrations: those that were applied, as `app.name`.
    """

    created_at: str
    server_version: int
    media: bool
    migrations: list[str]
    format: int = FORMAT


@dataclass
class Contents:
    """The contents of a backup: number of files, bytes of both parts.

    deleted: ids of videos that their owners deleted while the backup was made; missing: names that have no file.
    """

    files: int = 0
    media_bytes: int = 0
    database_bytes: int = 0
    deleted: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


# --- Backup -----------------------------------------------------------------------------------------------------------
def back_up(file: Path) -> Contents:
    """Write a backup to `file`, readable by its owner only; an older one is replaced once the new one is whole.

    Raises:
        BackupError: no program of PostgreSQL fits, or one failed; OSError: the disk is full, and the like.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        # Mode 0600: it holds password hashes and nodes' keys.
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            contents = _write(stream, beside=file.parent)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    descriptor = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return contents


def _write(stream: IO[bytes], *, beside: Path) -> Contents:
    contents = Contents()
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=beside) as folder:
        dump = Path(folder) / DUMP
        manifest, jobs = _dump_database(dump)
        contents.database_bytes = dump.stat().st_size
        with tarfile.open(fileobj=stream, mode="w") as archive:
            _add_json(archive, MANIFEST, asdict(manifest))
            archive.add(dump, DUMP)
            if manifest.media:
                _add_clips(archive, jobs, contents)
            _add_json(archive, COMPLETE, asdict(contents))
    return contents


@transaction.atomic(durable=True)
def _dump_database(dump: Path) -> tuple[Manifest, dict[str, uuid.UUID]]:
    """Dump one moment; also return the files that the database names in that moment, each with its job."""
    with connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        cursor.execute("SELECT pg_export_snapshot()")
        [snapshot] = cursor.fetchone()
    manifest = Manifest(
        created_at=timezone.now().isoformat(timespec="seconds"),
        server_version=_server_version(),
        media=_media_root() is not None,
        migrations=sorted(".".join(key) for key in MigrationLoader(connection).applied_migrations),
    )
    _run("pg_dump", "--format=custom", "--no-password", f"--snapshot={snapshot}", f"--file={dump}")
    shown = GenerationJob.objects.filter(deleted_at=None).values_list("pk", "video", "poster")
    return manifest, {name: pk for pk, *names in shown.iterator() for name in names if name}


def _add_clips(archive: tarfile.TarFile, jobs: dict[str, uuid.UUID], contents: Contents) -> None:
    root = _media_root()
    assert root is not None
    gone = {}
    for name, job in sorted(jobs.items()):
        try:
            with (root / name).open("rb") as clip:
                found = archive.gettarinfo(arcname=f"{MEDIA}/{name}", fileobj=clip)
                archive.addfile(found, clip)
        except FileNotFoundError:
            gone[name] = job
            continue
        contents.files += 1
        contents.media_bytes += found.size
    # A file that is not there was deleted by its owner meanwhile, or it is lost.
    since = GenerationJob.objects.filter(pk__in=gone.values(), deleted_at__isnull=False)
    deleted = set(since.values_list("pk", flat=True))
    contents.deleted = sorted(str(pk) for pk in deleted)
    contents.missing = [name for name, job in gone.items() if job not in deleted]


def _add_json(archive: tarfile.TarFile, name: str, value: dict[str, Any]) -> None:
    body = json.dumps(value, indent=1).encode()
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(body), 0o600
    archive.addfile(member, io.BytesIO(body))


# --- Restore ----------------------------------------------------------------------------------------------------------
def restore(file: Path, *, replace: bool) -> tuple[Manifest, Contents]:
    """Put a backup into this installation's database and MEDIA_ROOT. The caller keeps other processes out.

    replace: replace a database that is not empty; clips that only it names stay in MEDIA_ROOT as files.

    Raises:
        BackupError: `file` is no whole backup, does not fit this installation, or the database is not empty or in use.
    """
    with _opened(file) as archive:
        manifest, contents = _read_about(archive, file)
        _check_fits(manifest)
        _check_database(replace=replace)
        with tempfile.TemporaryDirectory(prefix=".restore-", dir=settings.DATA_DIR) as folder:
            script = _make_script(archive, Path(folder), deleted=contents.deleted)
            _place_clips(archive)
            connection.close()
            options = (
                "--no-psqlrc",
                "--quiet",
                "--output=/dev/null",
                "--no-password",
                "--single-transaction",
            )
            _run("psql", *options, "--set=ON_ERROR_STOP=1", f"--file={script}")
    return manifest, contents


@contextmanager
def _opened(file: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(file, "r:") as archive:
            yield archive
    except FileNotFoundError as error:
        raise BackupError(f"{error.filename} does not exist.") from error
    except (tarfile.TarError, EOFError) as error:
        raise BackupError(f"{file} is no backup, or it is damaged: {error}.") from error


def _read_about(archive: tarfile.TarFile, file: Path) -> tuple[Manifest, Contents]:
    if archive.next() is None or archive.getmembers()[0].name != MANIFEST:
        raise BackupError(f"{file} is no backup of this platform.")
    manifest = json.load(_member(archive, MANIFEST))
    if manifest.get("format") != FORMAT:
        raise BackupError(f"{file} has the format {manifest.get('format')}; this release reads {FORMAT}.")
    if COMPLETE not in archive.getnames():
        raise BackupError(f"{file} is cut off: its end is missing.")
    contents = Contents(**json.load(_member(archive, COMPLETE)))
    found = sum(1 for name in archive.getnames() if name.startswith(f"{MEDIA}/"))
    if found != contents.files:
        raise BackupError(f"{file} is damaged: it holds {found} of {contents.files} files.")
    return Manifest(**manifest), contents


def _check_fits(manifest: Manifest) -> None:
    """Refuse a backup of a newer release or a newer server; older ones can be restored."""
    if manifest.server_version > _server_version():
        raise BackupError(
            f"The backup comes from PostgreSQL {manifest.server_version}, this server is {_server_version()}: "
            "restore into one that is at least as new."
        )
    known = {".".join(key) for key in MigrationLoader(None).disk_migrations or {}}
    unknown = [name for name in manifest.migrations if name not in known]
    if unknown:
        raise BackupError(
            f"The backup was made by a newer release (it has {unknown[-1]}). Install that release first."
        )
    if manifest.media and _media_root() is None:
        raise BackupError(
            "The backup holds clips, but S3_BUCKET is set. Unset it, or copy the clips yourself."
        )


def _check_database(*, replace: bool) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()")
        [tables] = cursor.fetchone()
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename IS NOT NULL"
        )
        [others] = cursor.fetchone()
    if others:
        raise BackupError(
            f"The database is in use by {others} other connection{'s' if others > 1 else ''}. "
            "Stop web, worker, reconciler and bot first."
        )
    if tables and not replace:
        raise BackupError(
            f"The database is not empty ({tables} tables). --force replaces all that is in it with the backup."
        )


def _make_script(archive: tarfile.TarFile, folder: Path, *, deleted: list[str]) -> Path:
    """Write the whole change as one SQL script: drop what is there, create what was backed up."""
    dump, restored, script = folder / DUMP, folder / "restored.sql", folder / "script.sql"
    with dump.open("wb") as target:
        shutil.copyfileobj(_member(archive, DUMP), target)
    _run("pg_restore", "--no-owner", "--no-privileges", f"--file={restored}", str(dump), connect=False)
    with restored.open("rb") as source, script.open("wb") as target:
        target.write(DROP_EVERYTHING.encode())
        head = [source.readline() for _ in range(HEAD_LINES)]
        target.writelines(line for line in head if _server_version() >= 17 or line != SETTING_OF_17)
        shutil.copyfileobj(source, target)
        target.writelines(MARK_DELETED.format(uuid.UUID(job)).encode() for job in deleted)
    return script


def _place_clips(archive: tarfile.TarFile) -> None:
    """Write each file under a temporary name first. One that is there already is the same: names are never reused."""
    root = _media_root()
    for member in archive.getmembers():
        if not member.name.startswith(f"{MEDIA}/"):
            continue
        name = PurePosixPath(member.name).relative_to(MEDIA)
        if ".." in name.parts or not member.isreg():
            raise BackupError(f"The backup holds a file that no platform wrote: {member.name}")
        assert root is not None  # _check_fits has seen to it
        target = root / name
        if target.exists() and target.stat().st_size == member.size:
            continue
        for folder in reversed([each for each in target.parents if not each.exists()]):
            folder.mkdir(mode=0o700)  # as the site makes them: clips are for no other user of the machine
        part = target.with_name(f".{target.name}.part")
        part.unlink(missing_ok=True)  # of a restore that was killed
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            shutil.copyfileobj(_member(archive, member.name), stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(target)


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    try:
        stream = archive.extractfile(name)
    except KeyError as error:
        raise BackupError(f"The backup is damaged: there is no {name} in it.") from error
    if stream is None:
        raise BackupError(f"The backup is damaged: {name} is no file.")
    return stream


# --- PostgreSQL's programs, and paths --------------------------------------------------------------------------------
def _run(program: str, *arguments: str, connect: bool = True) -> None:
    command = [str(_programs(_server_version()) / program), *arguments]
    environment = {**os.environ, "LC_ALL": "C"}
    if connect:
        place = {name: str(value) for name, value in listen_parameters().items()}
        # Not in the command line, which any user of the machine can read.
        environment["PGPASSWORD"] = place.pop("password", "")
        command.append(f"--dbname={psycopg.conninfo.make_conninfo('', **place)}")
    result = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise BackupError(f"{program} failed:\n{result.stderr.strip()[-2000:]}")


def _programs(server: int) -> Path:
    """Return the folder of the programs that fit the server best: of its own version, else the next newer one."""
    folders = [Path(found).parent for found in [shutil.which(PROGRAMS[0])] if found]
    with suppress(EmbeddedPostgresError):  # an installation without the wheel
        folders.append(binaries())
    complete = [folder for folder in folders if all((folder / name).exists() for name in PROGRAMS)]
    fitting = [(version, folder) for folder in complete if (version := _program_version(folder)) >= server]
    if not fitting:
        raise BackupError(
            f"No pg_dump of PostgreSQL {server} or newer was found: install its client programs "
            f"(on Debian and Ubuntu: apt install postgresql-client-{server})."
        )
    return min(fitting)[1]


def _program_version(folder: Path) -> int:
    command = [str(folder / PROGRAMS[0]), "--version"]
    found = re.search(r"\) (\d+)", subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return int(found[1]) if found else 0


def _server_version() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version_num")
        [version] = cursor.fetchone()
    return int(version) // 10000


def _media_root() -> Path | None:
    """Return the folder of the clips; None when they are in a bucket."""
    return Path(settings.MEDIA_ROOT) if isinstance(default_storage, FileSystemStorage) else None
