"""Takes from a decoder what it does not need, before it opens a clip, so that a hostile file gains nothing by it.

Of the whole machine it keeps its three files and its memory: no other file, no network, no program, no signal to
another process. Landlock guards files, TCP and signals (kernel 5.13, 6.7 and 6.12), a seccomp filter the calls; both
for good and without any privilege. Where this process is root, the decoder is a user that no other process is.

Only the standard library, and started by its path, as the decoder is. Numbers are those of Linux's headers.
"""

import ctypes
import os
import platform
import struct

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILE, WRITE_FILE, TRUNCATE = 1 << 2, 1 << 1, 1 << 14
# By Landlock's version: all rights over files that it knows of.
FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
TCP_RIGHTS, SCOPES = 0b11, 0b11  # bind and connect; abstract sockets and signals
KILL, ALLOW, ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
EPERM, ENOSYS = 1, 38
CLONE_THREAD = 0x10000
# By machine: its number for audit; clone; the calls that send signals; and what a decoder has no use for: sockets,
# programs, other processes, and the parts of the kernel that most faults were in.
MACHINES = {
    "x86_64": (
        0xC000003E,
        56,
        (62, 234),
        [41, 42, 43, 44, 46, 49, 50, 53, 57, 58, 59, 101, 129, 133, 155, 161, 165, 166, 175, 200, 246, 248, 249,
         250, 259, 272, 288, 297, 298, 304, 307, 308, 310, 311, 313, 321, 322, 323],
    ),
    "aarch64": (
        0xC00000B7,
        220,
        (129, 131),
        [33, 39, 40, 41, 51, 97, 104, 105, 117, 130, 138, 198, 199, 200, 201, 202, 203, 206, 211, 217, 218, 219,
         221, 240, 241, 242, 265, 268, 269, 270, 271, 273, 280, 281, 282],
    ),
}  # fmt: skip
# The same everywhere: pidfd_send_signal, io_uring (3), pidfd_open, pidfd_getfd, process_madvise.
NEW_CALLS = [424, 425, 426, 427, 434, 438, 440]
CLONE3 = 435  # its flags are out of a filter's reach; glibc falls back to clone

libc = ctypes.CDLL(None, use_errno=True)


def missing() -> list[str]:
    """Name what this system cannot take from a decoder."""
    words = [] if _landlock_version() else ["other files (Landlock)"]
    # Without a filter the kernel complains of its address where it has filters, and of the call where it has not.
    libc.prctl(PR_SET_SECCOMP, FILTER, 0) if hasattr(libc, "prctl") else ctypes.set_errno(ENOSYS)
    if ctypes.get_errno() != 14 or platform.machine() not in MACHINES:
        words.append("the network and programs (seccomp)")
    return words


def confine(source: str, *outputs: str) -> list[str]:
    """Give up all but these files; return the paths by which they are opened from now on. Raises OSError.

    They belong to another user then, where this process is root.
    """
    lacks = missing()
    files = [os.open(source, os.O_RDONLY), *(os.open(path, os.O_RDWR) for path in outputs)]
    paths = [source, *outputs]
    if os.geteuid() == 0:
        _use_own_uid(files)
        paths = [f"/proc/self/fd/{file}" for file in files]  # the folders are closed to that user
    if len(lacks) < 2:
        _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    if (version := _landlock_version()) > 0:
        _keep_files(version, files)
    if platform.machine() in MACHINES and not any("seccomp" in word for word in lacks):
        _filter_calls()
    return paths


def _use_own_uid(files: list[int]) -> None:
    """Become a user that no other process is. Containers may know only 65536 of them."""
    for user in (2_000_000_000 + os.getpid(), 60_000 + os.getpid() % 5_000):
        try:
            for file in files:
                os.fchown(file, user, user)
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        except OSError:
            continue
        return


def _landlock_version() -> int:
    """Return 0 where there is none."""
    return max(0, int(libc.syscall(LANDLOCK_CREATE, None, 0, 1))) if platform.system() == "Linux" else 0


def _keep_files(version: int, files: list[int]) -> None:
    rights = FILE_RIGHTS[min(version, max(FILE_RIGHTS))]
    handled = struct.pack("=QQQ", rights, TCP_RIGHTS if version >= 4 else 0, SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _check(libc.syscall(LANDLOCK_CREATE, handled, size, 0))
    for number, file in enumerate(files):
        allowed = READ_FILE if number == 0 else READ_FILE | WRITE_FILE | TRUNCATE
        _check(libc.syscall(LANDLOCK_ADD, rules, 1, struct.pack("=Qi", allowed & rights, file), 0))
    _check(libc.syscall(LANDLOCK_RESTRICT, rules, 0))
    os.close(rules)


def _filter_calls() -> None:
    """Answer EPERM to what a decoder has no use for: it makes threads and no processes, and signals only itself.

    Calls by the numbers of another machine, such as a 32 bit one, kill it.
    """
    machine, clone, signals, denied = MACHINES[platform.machine()]
    load, equal, at_least, has_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06  # instructions of classic BPF
    refuse = (end, 0, 0, ERRNO | EPERM)
    program = [(load, 0, 0, 4), (equal, 1, 0, machine), (end, 0, 0, KILL), (load, 0, 0, 0)]
    program += [(at_least, 0, 1, 0x40000000), (end, 0, 0, KILL)]  # x32
    for call in [*denied, *NEW_CALLS]:
        program += [(equal, 0, 1, call), refuse]
    program += [(equal, 0, 1, CLONE3), (end, 0, 0, ERRNO | ENOSYS)]
    program += [(equal, 0, 3, clone), (load, 0, 0, 16), (has_bit, 1, 0, CLONE_THREAD), refuse]
    # Where a call was let through, its argument is loaded, so the number is loaded anew for the next.
    for call in signals:
        program += [
            (load, 0, 0, 0),
            (equal, 0, 3, call),
            (load, 0, 0, 16),
            (equal, 1, 0, os.getpid()),
            refuse,
        ]
    program += [(end, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    _check(libc.prctl(PR_SET_SECCOMP, FILTER, struct.pack("@HP", len(program), ctypes.addressof(code))))


def _check(result: int) -> int:
    if result < 0:
        raise OSError(
            ctypes.get_errno(), "the decoder cannot be confined: " + os.strerror(ctypes.get_errno())
        )
    return result
