"""Runs under the system's Python (libnbd's home): commands on standard input, answers on standard output.

write OFFSET LENGTH + data | read OFFSET LENGTH | trim OFFSET LENGTH | zero OFFSET LENGTH | flush
                                    -> "ok LENGTH" + data, or "error WORDS" and the end
"""

import sys

import nbd

commands, answers = sys.stdin.buffer, sys.stdout.buffer
try:
    handle = nbd.NBD()
    handle.connect_uri(sys.argv[1])
    while line := commands.readline().split():
        name, numbers = line[0].decode(), [int(word) for word in line[1:]]
        answer = b""
        if name == "write":
            handle.pwrite(commands.read(numbers[1]), numbers[0])
        elif name == "read":
            answer = bytes(handle.pread(numbers[1], numbers[0]))
        elif name == "trim":
            handle.trim(numbers[1], numbers[0])
        elif name == "zero":
            handle.zero(numbers[1], numbers[0])
        elif name == "flush":
            handle.flush()
        answers.write(b"ok %d\n" % len(answer) + answer)
        answers.flush()
except nbd.Error as error:
    answers.write(b"error " + " ".join(str(error).split()).encode() + b"\n")
    answers.flush()
