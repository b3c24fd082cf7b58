"""Stops one thread of a process for good, as a bug would: stop_thread.py PID THREAD_NAME. Ends when the process has ended."""

import ctypes
import os
import sys

PTRACE_SEIZE, PTRACE_INTERRUPT, ALL_THREADS = 0x4206, 0x4207, 0x40000000

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request, thread):
    if libc.ptrace(request, thread, None, None) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def main():
    pid, name = sys.argv[1:]
    for thread in map(int, os.listdir(f"/proc/{pid}/task")):
        with open(f"/proc/{pid}/task/{thread}/comm") as comm:
            if comm.read().strip() == name:
                break
    else:
        sys.exit(f"no thread {name} in {pid}")
    ptrace(PTRACE_SEIZE, thread)
    ptrace(PTRACE_INTERRUPT, thread)
    os.waitpid(thread, ALL_THREADS)
    print("stopped", flush=True)
    # A traced thread is this process's to bury, or its own process would not end.
    while True:
        _, status = os.waitpid(thread, ALL_THREADS)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            return


main()
