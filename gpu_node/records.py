"""What the node keeps on disk: each clip, and beside it a small JSON file that outlives a restart."""

import logging
import re
import time
from pathlib import Path

from pydantic import ValidationError

from gpu_node.job import Job

log = logging.getLogger(__name__)

CLIP_NAME = re.compile(r"[0-9a-f]{32}\.mp4")
OURS = re.compile(r"[0-9a-f]{32}\.(mp4|json|image)(\.part)?")
PART_SECONDS = 3600.0  # an unfinished file older than this belongs to a process that died


class RecordStore:
    """The folder of the clips. Names are made by the node; nothing a client sends becomes a path."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    def clip_path(self, job: Job) -> Path:
        """Where the job's clip lies, or will lie."""
        return self._folder / job.file_name

    def image_path(self, job: Job) -> Path:
        """Where the picture lies that the job's clip starts from, while the job lives."""
        return self.clip_path(job).with_suffix(".image")

    def find_clip(self, name: str) -> Path | None:
        """The clip of this name. None for a name that the node never gives, and for what is not there."""
        path = self._folder / name if CLIP_NAME.fullmatch(name) else None
        return path if path is not None and path.is_file() else None

    def save(self, job: Job) -> None:
        """Keep the job. A disk that is full loses it at the next restart, not now: the clip matters more."""
        path = self.clip_path(job).with_suffix(".json")
        part = path.with_name(path.name + ".part")
        try:
            part.write_text(job.model_dump_json(), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            log.error("cannot keep the record %s: %s", path, error)

    def load(self) -> list[Job]:
        """All records; a file that cannot be read is named in the log and left alone."""
        records = []
        for path in self._folder.glob("*.json"):
            if OURS.fullmatch(path.name):
                try:
                    records.append(Job.model_validate_json(path.read_bytes()))
                except (OSError, ValidationError) as error:
                    log.error("cannot read the record %s: %s", path, error)
        return records

    def delete(self, job: Job) -> None:
        """Remove the record and the clip; missing files are no error."""
        clip = self.clip_path(job)
        clip.with_suffix(".json").unlink(missing_ok=True)
        self.image_path(job).unlink(missing_ok=True)
        clip.unlink(missing_ok=True)
        self.discard_part(job)

    def save_image(self, job: Job, picture: bytes) -> None:
        """Keep the picture that the clip starts from until the job ends. Raises OSError."""
        self.image_path(job).write_bytes(picture)

    def discard_image(self, job: Job) -> None:
        """The picture is not needed any more."""
        if job.image is not None:
            self.image_path(job).unlink(missing_ok=True)

    def discard_part(self, job: Job) -> None:
        """Remove what a worker that died left half written."""
        clip = self.clip_path(job)
        clip.with_name(clip.name + ".part").unlink(missing_ok=True)

    def sweep(self, *, older_than: float) -> None:
        """Remove clips without a record and unfinished files, by age. `older_than`: seconds since the epoch."""
        for path in self._folder.iterdir():
            if OURS.fullmatch(path.name):
                limit = time.time() - PART_SECONDS if path.suffix == ".part" else older_than
                if path.stat().st_mtime < limit:
                    path.unlink(missing_ok=True)
