"""Relays a camera with live555's proxy, as a server to compare with.

    live555_proxy.py CAMERA_URL [PORT]

Prints "NAME=URL,PID" as `rtsprelay-bench fanout --peer` takes it, then serves until it is killed. Its first run fetches
live555's sources (they come with the Python package liblivemedia) and compiles them with g++, which takes minutes; later
runs find the program in ~/.cache/rtsprelay-bench, or below $XDG_CACHE_HOME.
"""

import os
import pathlib
import socket
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

PACKAGE = "liblivemedia"
VERSION = "1.0.5"
LIBRARIES = ("UsageEnvironment", "BasicUsageEnvironment", "groupsock", "liveMedia")
FLAGS = ["-O2", "-w", "-DBSD=1", "-DSOCKLEN_T=socklen_t", "-DNO_OPENSSL=1", "-D_FILE_OFFSET_BITS=64"]
MAIN = pathlib.Path(__file__).with_suffix(".cpp")


def compile_into(directory, program):
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE]
    subprocess.run([*pip, "--dest", directory, f"{PACKAGE}=={VERSION}"], stdout=sys.stderr, check=True)
    archive = next(directory.glob("*.tar.gz"))
    with tarfile.open(archive) as sources:
        sources.extractall(directory)
    top = archive.with_suffix("").with_suffix("")
    includes = [f"-I{top / name / 'include'}" for name in LIBRARIES]
    files = [MAIN, *(f for name in LIBRARIES for kind in ("*.cpp", "*.c") for f in (top / name).glob(kind))]

    def compiled(source):
        compiler = ["g++", "-std=c++20"] if source.suffix == ".cpp" else ["gcc"]
        target = directory / f"{source.name}.o"
        # A previous run's binary is reused, unless the source is newer.
        if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
            part = target.with_suffix(".part")
            subprocess.run([*compiler, *FLAGS, *includes, "-c", source, "-o", part], check=True)
            part.rename(target)
        return target

    print(f"compiling live555 in {directory}", file=sys.stderr)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, files))
    # Renamed at the end, so that an interrupted compilation leaves no binary.
    subprocess.run(["g++", *objects, "-o", directory / "unfinished"], check=True)
    (directory / "unfinished").rename(program)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    camera, port = sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else "0"
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    directory = cache / "rtsprelay-bench" / "live555"
    program = directory / "live555_proxy"
    if not program.exists() or program.stat().st_mtime < MAIN.stat().st_mtime:
        directory.mkdir(parents=True, exist_ok=True)
        compile_into(directory, program)
    if port == "0":
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
    os.execv(program, [program, camera, port])


if __name__ == "__main__":
    main()
