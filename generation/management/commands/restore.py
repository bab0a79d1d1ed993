"""Put a backup into this installation."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from generation.database import as_owner
from videoplatform.backup import BackupError, restore
from videoplatform.run import CannotRun, only_one


class Command(BaseCommand):
    requires_system_checks = ()  # they load every URL and view
    help = "Put a backup into this installation, which must not be running; it is migrated by the next start."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help="A file that `manage.py backup` wrote.")
        parser.add_argument("--force", action="store_true", help="Replace a database that is not empty.")

    def handle(self, *args: Any, file: Path, force: bool, **options: Any) -> None:
        try:
            with only_one(settings.DATA_DIR), as_owner():
                manifest, contents = restore(file.absolute(), replace=force)
        except (BackupError, CannotRun, OSError) as error:
            raise CommandError(str(error)) from error
        clips = f"{contents.files} files of clips" if manifest.media else "no clips: they are in the bucket"
        self.stdout.write(f"Restored the state of {manifest.created_at}: the database, {clips}.")
