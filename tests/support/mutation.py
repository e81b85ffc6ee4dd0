"""A small mutation fuzzer for decoders that are Python: bounded in time, and it holds them to the rule for bad input.

The rule: the package's own errors or a result, nothing else; a message of bounded length; bounded memory and time. All
runs of one target happen in a child process, so that its peak memory is its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from cext.errors import OnesecError

Target = Callable[[bytes], object]
Repair = Callable[[bytearray, random.Random], None]

MEMORY_MAX = 64 << 20
CPU_MAX = 5.0  # seconds for one input; the slowest decoders of the largest inputs take a tenth
EXECUTIONS_MIN = 100  # of mutations
MESSAGE_MAX = 4000  # a few hundred characters of input, all of them escaped
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)
_WORDS = (b"\0", b"/", b"..", b"../", b"//", b"\n", b" ", b"=", b"-1", b"99999999999999999999", b"\xff\xfe", b".wh.")


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """accepted, refused: how often the decoder gave a result, or an error of ours."""

    executions: int
    accepted: int
    refused: int
    memory: int
    slowest: float
    wrong: str | None


def mutate(seeds: Sequence[bytes], chance: random.Random, repair: Repair | None, size_max: int) -> bytes:
    """One of the seeds with a few changes."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((0, 1, 1, 1, 2, 2, 3, 5, 8))):
        _change(data, seeds, chance)
    if repair is not None and chance.random() < 0.9:
        repair(data, chance)
    return bytes(data[:size_max])


def _change(data: bytearray, seeds: Sequence[bytes], chance: random.Random) -> None:
    at = chance.randrange(len(data) + 1)
    end = min(len(data), at + chance.choice((1, 1, 4, 8, 100, 512, 5000)))
    kind = chance.randrange(8)
    if kind == 0 and data:
        data[at % len(data)] ^= 1 << chance.randrange(8)
    elif kind == 1 and data:
        data[at % len(data)] = chance.randrange(256)
    elif kind == 2:
        width = chance.choice("BHIQ")
        number = chance.choice(_NUMBERS) & (1 << 8 * struct.calcsize(width)) - 1
        data[at : at + struct.calcsize(width)] = struct.pack(chance.choice("<>") + width, number)
    elif kind == 3:
        del data[at:end]
    elif kind == 4:
        data[at:at] = data[at:end]
    elif kind == 5:
        other = chance.choice(seeds)
        start = chance.randrange(len(other) + 1)
        data[at:end] = other[start : start + end - at]
    elif kind == 6:
        word = chance.choice(_WORDS)
        data[at : at + len(word) * chance.randrange(2)] = word
    else:
        data[at:at] = bytes([chance.randrange(256)]) * chance.choice((1, 2, 100, 4096))


def fuzz(
    target: Target,
    seeds: Sequence[bytes],
    seconds: float,
    *,
    seed: int = 0,
    repair: Repair | None = None,
    memory_max: int = MEMORY_MAX,
    size_max: int = 200_000,
) -> Fuzzed:
    """Runs target on the seeds and on mutations of them, in a child."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            found = _loop(target, seeds, seconds, random.Random(seed), repair, memory_max, size_max)
        except BaseException:
            found = {**asdict(Fuzzed(0, 0, 0, 0, 0.0, None)), "wrong": traceback.format_exc()}
        with open(writer, "wb") as file:
            file.write(json.dumps(found).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as told:
        said = told.read()
    _, status = os.waitpid(child, 0)
    if not said:
        return Fuzzed(0, 0, 0, 0, 0.0, f"the process died with status {status}")
    return Fuzzed(**json.loads(said))


def _loop(
    target: Target,
    seeds: Sequence[bytes],
    seconds: float,
    chance: random.Random,
    repair: Repair | None,
    memory_max: int,
    size_max: int,
) -> dict[str, object]:
    for one in seeds:  # what is made once is no input's
        with contextlib.suppress(OnesecError):
            target(one)
    start = _memory("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak counts from here
    descriptors = len(os.listdir("/proc/self/fd"))
    done = accepted = 0
    slowest = 0.0
    wrong = None
    end = time.monotonic() + seconds
    waiting = list(seeds)
    # However little of the machine this process gets: less would show nothing.
    least = len(seeds) + EXECUTIONS_MIN
    while wrong is None and (done < least or time.monotonic() < end):
        data = waiting.pop() if waiting else mutate(seeds, chance, repair, size_max)
        began = time.process_time()
        what, fine = _one(target, data)
        took = time.process_time() - began
        done += 1
        accepted += fine
        slowest = max(slowest, took)
        if what is None and took > CPU_MAX:
            what = f"took {took:.1f} s"
        if what is None and done % 64 == 0 and (peak := _memory("VmHWM") - start) > memory_max:
            what = f"took {peak >> 20} MiB"
        if what is not None:
            wrong = f"{what}\ninput of {len(data)} bytes: {data[:3000].hex()}"
    peak = _memory("VmHWM") - start
    if wrong is None and peak > memory_max:
        wrong = f"took {peak >> 20} MiB"
    if wrong is None and len(os.listdir("/proc/self/fd")) != descriptors:
        wrong = "left descriptors"
    return {
        "executions": done,
        "accepted": accepted,
        "refused": done - accepted,
        "memory": peak,
        "slowest": slowest,
        "wrong": wrong,
    }


def _one(target: Target, data: bytes) -> tuple[str | None, bool]:
    """What is wrong, and whether there was a result."""
    try:
        target(data)
    except OnesecError as error:
        if not str(error) or len(str(error)) > MESSAGE_MAX:
            return f"message of {len(str(error))} characters: {str(error)[:300]}", False
        return None, False
    except BaseException:
        return traceback.format_exc(), False
    return None, True


def _memory(name: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(name))
    return int(line.split()[1]) << 10
