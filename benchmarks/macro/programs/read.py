"""Reads a file from start to end as fast as read(2) goes. Prints seconds, bytes, hash and the pages in memory after it.

The hash is taken afterwards, from memory and outside the clock: hashing while reading would measure the hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time

from benchmarks.macro.cold import resident

BLOCK = 1 << 20


def main() -> None:
    (path,) = sys.argv[1:]
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    size = 0
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    started = time.perf_counter()
    while count := os.readv(fd, [view]):
        size += count
    seconds = time.perf_counter() - started
    pages, _ = resident(path)
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    print(json.dumps({"seconds": seconds, "bytes": size, "sha256": digest, "resident_pages": pages}))


if __name__ == "__main__":
    main()
