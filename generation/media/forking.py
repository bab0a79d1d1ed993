"""The program that forks a decoder for each clip: importing PyAV takes longer than decoding most clips.

It imports the decoder once, reads a list of its arguments as JSON from each line of stdin, and answers with a line of
JSON on stdout: {"answer": what the decoder printed, "status": its exit status, negative for a signal, "missing": what
this system cannot take from it}. Each decoder is confined, and is gone when it is done; what one file does to it, the
next does not meet. On Linux, this program ends with the process that started it, and its decoders with it.

    python forking.py DECODER CONFINEMENT
"""

import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

ANSWER_CHARACTERS = 1_000_000
PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    # Other systems have no prctl; the decoder's alarm ends it there.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def load(program: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(program).stem, program)
    assert spec and spec.loader, f"{program} is no Python file"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main(*programs: str) -> None:
    end_with_parent()
    decoder, confinement = map(load, programs)
    missing = confinement.missing()
    gc.freeze()  # a forked process's collector does not touch, and copy, all of the memory
    while line := sys.stdin.readline():
        answer_end, decoder_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            end_with_parent()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(decoder_end, 1)
            os.closerange(3, 64)
            try:
                limits, *paths = json.loads(line)
                try:
                    paths = confinement.confine(*paths)
                    end_with_parent()  # another user's process forgets that
                except OSError as error:
                    print(json.dumps({"failed": error.strerror}))  # noqa: T201  (stdout is the way back)
                else:
                    decoder.main(limits, *paths)
                sys.stdout.flush()
            except BaseException:
                os._exit(1)
            # Skip the interpreter's tear-down: decoders may crash when they are taken apart.
            os._exit(0)
        os.close(decoder_end)
        with os.fdopen(answer_end, errors="replace") as answers:
            answer = answers.read(ANSWER_CHARACTERS)
        _, status = os.waitpid(pid, 0)
        if os.geteuid() == 0:
            for path in json.loads(line)[1:]:  # they belonged to the decoder's own user
                with contextlib.suppress(OSError):
                    os.chown(path, 0, 0)
        done = {"answer": answer, "status": os.waitstatus_to_exitcode(status), "missing": missing}
        sys.stdout.write(json.dumps(done) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
