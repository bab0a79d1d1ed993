"""The first start of an installation: secrets in `.env`, tables, static files, a first staff user.

`python -m videoplatform.bootstrap` is safe to repeat. Progress goes to stderr; stdout gets only the first staff user's
password, once.
"""

import fcntl
import hashlib
import os
import secrets
import sys
from contextlib import nullcontext
from pathlib import Path

import django
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.staticfiles.finders import get_finders
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from dotenv import dotenv_values, set_key

from videoplatform import embedded_postgres

ENV_HEADER = "# Secrets of this installation; every setting is described in docs/configuration.md\n"
SECRETS = ("SECRET_KEY", "VIDEO_API_KEY")


def write_secrets(path: Path) -> None:
    """Give `.env` at `path` a random value for each secret that neither it nor the environment has. Mode 0600."""
    present = dotenv_values(path)
    missing = [name for name in SECRETS if not present.get(name) and name not in os.environ]
    if missing and not path.exists():
        path.touch(mode=0o600)
        path.write_text(ENV_HEADER)
    for name in missing:
        path.chmod(0o600)
        set_key(path, name, secrets.token_urlsafe(48), quote_mode="never")


def collect_static() -> None:
    """Collect and compress static files into STATIC_ROOT, unless none has changed since the last time."""
    root = Path(settings.STATIC_ROOT)
    root.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for finder in get_finders():
        for path, storage in finder.list([]):
            file = Path(storage.path(path))
            found = file.stat()
            digest.update(f"{file} {found.st_size} {found.st_mtime_ns}\n".encode())
    fingerprint = digest.hexdigest()
    with (root / ".collected").open("a+") as stamp:
        fcntl.flock(stamp, fcntl.LOCK_EX)
        stamp.seek(0)
        if stamp.read() == fingerprint:
            return
        print("Collecting static files …", file=sys.stderr, flush=True)
        call_command("collectstatic", interactive=False, verbosity=0, stdout=sys.stderr)
        for source_map in root.rglob("*.map*"):  # a third of all, for developers of the libraries alone
            source_map.unlink()
        stamp.truncate(0)
        stamp.write(fingerprint)


def create_first_staff_user() -> str | None:
    """Create the superuser `admin` when there is no superuser. Returns the password, or None when there was one."""
    # It reads the settings, which the launcher imports this module before.
    from generation.database import alone

    users = get_user_model().objects
    with alone("first staff user"):  # several hosts may start at once
        if users.filter(is_superuser=True).exists():
            return None
        password = secrets.token_urlsafe(12)
        users.create_superuser(username="admin", email="", password=password)
        return password


def main() -> None:
    """Migrate, collect static files, and create the first staff user."""
    database = embedded_postgres.hold(settings.DATA_DIR) if settings.EMBEDDED_POSTGRES else nullcontext()
    with database:
        django.setup()
        call_command("migrate", interactive=False, verbosity=0, stdout=sys.stderr)
        collect_static()
        password = create_first_staff_user()
    if password:
        print(f"Sign in as staff: user admin, password {password} (shown only now).")


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "videoplatform.settings")
    try:
        main()
    except (embedded_postgres.EmbeddedPostgresError, ImproperlyConfigured) as error:
        sys.exit(str(error))
