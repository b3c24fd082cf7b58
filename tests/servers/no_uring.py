"""Runs a program with io_uring_setup refused by a seccomp filter, as containers refuse it.

    no_uring.py PROGRAM [ARGUMENT...]
"""

import ctypes
import os
import struct
import sys

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
IO_URING_SETUP = 425  # The same number on every architecture.
EPERM = 1
LOAD_NUMBER, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def instruction(code, if_true, if_false, value):
    return struct.pack("HBBI", code, if_true, if_false, value)


def main():
    code = b"".join(
        [
            instruction(LOAD_NUMBER, 0, 0, 0),
            instruction(JUMP_IF_EQUAL, 0, 1, IO_URING_SETUP),
            instruction(RETURN, 0, 0, ERRNO | EPERM),
            instruction(RETURN, 0, 0, ALLOW),
        ]
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    program = Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    for call in [(PR_SET_NO_NEW_PRIVS, 1, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program))]:
        if libc.prctl(*call, 0, 0) != 0:
            sys.exit(f"prctl{call}: {os.strerror(ctypes.get_errno())}")
    os.execv(sys.argv[1], sys.argv[1:])


main()
