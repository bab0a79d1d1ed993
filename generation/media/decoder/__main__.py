"""Do what the arguments say, under the limits they name, and print the answer."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .converting import bring_to_form
from .limits import Limits, Unplayable, confine
from .looking import survey
from .posters import write_poster


def main(arguments: list[str]) -> None:
    """Do what the arguments say and print the answer."""
    limits = Limits(**json.loads(arguments[0]))
    command, paths = arguments[1], [Path(name) for name in arguments[2:]]
    confine(limits)
    try:
        answer: dict[str, Any] = {"facts": COMMANDS[command](limits, *paths)}
    except Unplayable as error:
        answer = {"unplayable": str(error)}
    except MemoryError:
        answer = {"unplayable": "it needs more memory than is allowed"}
    except OSError as error:
        answer = _outgrown(error) or {"failed": error.strerror or type(error).__name__}
    except Exception as error:
        # A mistake of ours: the worker's log should say which.
        answer = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer))  # noqa: T201  (stdout is the way back)


def _outgrown(error: OSError) -> dict[str, Any] | None:
    """The verdict when a limit of `confine` was met: the file is at fault, not the disk."""
    excess = {
        errno.ENOMEM: "it needs more memory than is allowed",
        errno.EFBIG: "it grows larger than is allowed",
    }
    return {"unplayable": excess[error.errno]} if error.errno in excess else None


def probe(limits: Limits, source: Path) -> dict[str, Any]:
    return survey(source, limits).facts


def playable(limits: Limits, source: Path, destination: Path) -> dict[str, Any]:
    return bring_to_form(source, destination, survey(source, limits), limits)


def poster(limits: Limits, source: Path, destination: Path) -> dict[str, Any]:
    found = survey(source, limits)
    write_poster(found.still, destination)
    return found.facts


def prepare(limits: Limits, source: Path, destination: Path, poster_file: Path) -> dict[str, Any]:
    """Check, bring to a form that plays, and make the poster, with one start of this program."""
    found = survey(source, limits)
    write_poster(found.still, poster_file)
    return bring_to_form(source, destination, found, limits)


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "probe": probe,
    "playable": playable,
    "poster": poster,
    "prepare": prepare,
}


if __name__ == "__main__":
    main(sys.argv[1:])
    # Skip the interpreter's tear-down: everything is written, and decoders may crash when they are taken apart.
    sys.stdout.flush()
    os._exit(0)
