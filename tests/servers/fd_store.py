#!/usr/bin/python3
"""Plays the service manager's part with file descriptors (sd_notify(3), sd_listen_fds(3)).

    fd_store.py keep NAME                    keeps what is sent to the notification socket @NAME, and prints what it is told
    fd_store.py start NAME COMMAND [ARG...]  runs the command with what is kept
"""
import array
import json
import os
import select
import socket
import sys


def inode(fd):
    return os.fstat(fd).st_ino


def keep(name):
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind("\0" + name)
    giving = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    giving.bind("\0" + name + "-start")
    giving.listen()
    kept = []
    print(json.dumps({"told": {}, "kept": {}}), flush=True)
    while True:
        ready = select.select([notify, giving], [], [])[0]
        # What was told before comes first.
        if notify in ready:
            data, fds, _, _ = socket.recv_fds(notify, 4096, 253)
            told = dict(line.split("=", 1) for line in data.decode().splitlines())
            stored_as = told.get("FDNAME", "stored")
            for fd in fds:
                if told.get("FDSTORE") == "1" and inode(fd) not in [inode(other) for _, other in kept]:
                    kept.append((stored_as, fd))
                else:
                    os.close(fd)
            if told.get("FDSTOREREMOVE") == "1":
                for _, fd in [pair for pair in kept if pair[0] == stored_as]:
                    os.close(fd)
                kept = [pair for pair in kept if pair[0] != stored_as]
            print(json.dumps({"told": told, "kept": {of: inode(fd) for of, fd in kept}}), flush=True)
        else:
            connection, _ = giving.accept()
            names = [of for of, _ in kept]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd for _, fd in kept]))] if kept else []
            connection.sendmsg([json.dumps(names).encode()], rights)
            connection.close()


def start(name, command):
    giver = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    giver.connect("\0" + name + "-start")
    data, fds, _, _ = socket.recv_fds(giver, 65536, 253)
    names = json.loads(data)
    assert len(names) == len(fds)
    os.environ["NOTIFY_SOCKET"] = "@" + name
    if fds:
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=":".join(names))
    # To where none of their numbers are in each other's way.
    high = [os.dup2(fd, 500 + n, inheritable=False) for n, fd in enumerate(fds)]
    for fd in fds:
        os.close(fd)
    giver.close()
    for n, fd in enumerate(high):
        os.dup2(fd, 3 + n)
    os.execvp(command[0], command)


if sys.argv[1] == "keep":
    keep(sys.argv[2])
else:
    start(sys.argv[2], sys.argv[3:])
