"""UTF-8 for files, output and paths, whatever the locale says: our messages and people's prompts need it."""

import locale
import os
import sys
from collections.abc import Sequence


def use_utf8(arguments: Sequence[str]) -> None:
    """Start Python again, with the same process id, in UTF-8 mode where neither it nor the locale has UTF-8.

    arguments: what follows `python` on the command line.
    """
    is_utf8 = sys.flags.utf8_mode or locale.getencoding().lower() in ("utf-8", "utf8")
    if is_utf8 and not os.environ.get("PYTHONIOENCODING"):
        return
    os.environ["PYTHONUTF8"] = "1"  # for what is started from here, too
    os.environ.pop("PYTHONIOENCODING", None)
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606
