"""Make a system call fail on one thread, as a broken disk would, without any tool and without root.

Linux lets a thread refuse itself system calls (seccomp(2)). A filter cannot be taken off again, but it is of its thread
and of the threads that this one starts later: it ends with them.
"""

import ctypes
import os
import platform
import struct

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06

_NUMBERS = {
    "x86_64": {"fsync": 74, "fdatasync": 75, "pread64": 17, "pwrite64": 18},
    "aarch64": {"fsync": 82, "fdatasync": 83, "pread64": 67, "pwrite64": 68},
}


def fail(*calls: str, error: int) -> None:
    """From now on these system calls of this thread do nothing and fail with this errno."""
    numbers = [_NUMBERS[platform.machine()][call] for call in calls]
    program = [(_LOAD, 0, 0, 0)]  # the number of the call
    program += [(_JUMP_IF_EQUAL, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    program += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | error)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, head, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
