"""A user of a mount in a process of its own: commands on standard input, answers on standard output.

    read PATH | write PATH LENGTH sync|close | replace PATH LENGTH sync|close | patch PATH OFFSET LENGTH | unlink PATH
    rename PATH TO | list PATH          -> "ok LENGTH" + data, "absent", or "error WORDS"

It holds the root open, as a shell that stands in it does: once that mount's process is dead every command fails,
whatever is mounted there next. (A process of its own, because a process that has files of a mount open cannot start
another one while the mount waits: closing the inherited descriptors between fork and exec waits too.)
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    root = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
    if not os.path.ismount(sys.argv[1]):
        sys.exit("nothing is mounted there")
    commands, answers = sys.stdin.buffer, sys.stdout.buffer
    while line := commands.readline().decode().split():
        length = int(line[-2]) if line[0] in ("write", "replace") else int(line[-1]) if line[0] == "patch" else 0
        data = commands.read(length)
        try:
            answer = execute(root, line[0], line[1:], data)
            answers.write(b"ok %d\n" % len(answer) + answer)
        except FileNotFoundError:
            answers.write(b"absent\n")
        except OSError as error:
            answers.write(f"error {error}\n".encode())
        answers.flush()


def execute(root: int, command: str, arguments: list[str], data: bytes) -> bytes:
    path = arguments[0]
    match command:
        case "read":
            fd = os.open(path, os.O_RDONLY, dir_fd=root)
            with os.fdopen(fd, "rb", buffering=0) as file:
                return file.readall()
        case "write":
            put(root, path, os.O_CREAT | os.O_TRUNC, 0, data, arguments[2])
        case "patch":
            put(root, path, 0, int(arguments[1]), data, "sync")
        case "replace":
            temporary = f"{path}.{os.urandom(6).hex()}.tmp"
            put(root, temporary, os.O_CREAT | os.O_EXCL, 0, data, arguments[2])
            os.rename(temporary, path, src_dir_fd=root, dst_dir_fd=root)
        case "rename":
            os.rename(path, arguments[1], src_dir_fd=root, dst_dir_fd=root)
        case "unlink":
            os.unlink(path, dir_fd=root)
        case "list":
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)
            try:
                return "\0".join(sorted(os.listdir(fd))).encode()
            finally:
                os.close(fd)
    return b""


def put(root: int, path: str, flags: int, offset: int, data: bytes, how: str) -> None:
    fd = os.open(path, os.O_WRONLY | flags, 0o600, dir_fd=root)
    try:
        done = 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], offset + done)
        if how == "sync":
            os.fsync(fd)
    finally:
        os.close(fd)  # answers when the metadata server has what was written, or says why not


if __name__ == "__main__":
    main()
