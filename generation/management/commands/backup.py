"""Write the database and the clips into one file."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.template.defaultfilters import filesizeformat

from videoplatform.backup import BackupError, back_up


class Command(BaseCommand):
    requires_system_checks = ()  # they load every URL and view
    help = "Write the database and the clips into one file; nothing needs to stop meanwhile."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help="A tar archive; replaced if it is there.")

    def handle(self, *args: Any, file: Path, **options: Any) -> None:
        if not file.name or file.is_dir():
            raise CommandError(f"{file} is a folder: give the name of a file.")
        try:
            contents = back_up(file.absolute())
        except (BackupError, OSError) as error:
            raise CommandError(str(error)) from error
        for name in contents.missing:
            self.stderr.write(f"Not in MEDIA_ROOT, and so not in the backup: {name}")
        clips = f"{contents.files} files of clips ({filesizeformat(contents.media_bytes)})"
        self.stdout.write(f"{file}: the database ({filesizeformat(contents.database_bytes)}), {clips}.")
