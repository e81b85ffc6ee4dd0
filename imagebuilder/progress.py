"""How far along a long call is: a bar in a terminal, plain lines in a pipe, events for whoever has other wishes.

Everything goes to stderr; stdout is for results. Work reports through the Progress protocol and knows of no terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_LINE_SECONDS = 5.0
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Progress(Protocol):
    def stage(self, name: str, total: int | None = None) -> None:
        """What happens from now on; total: its bytes, where they are known."""

    def advance(self, size: int = 0, files: int = 0) -> None:
        """So much more of the stage is done."""

    def note(self, text: str) -> None:
        """Something that the user should know and that fails nothing."""


class Silent:
    def stage(self, name: str, total: int | None = None) -> None:
        return

    def advance(self, size: int = 0, files: int = 0) -> None:
        return

    def note(self, text: str) -> None:
        return


class Lines:
    """For pipes and logs: a line when a stage begins, then at most one in five seconds. clock: seconds."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._name = ""
        self._total: int | None = None
        self._size = self._files = 0
        self._began = self._last = 0.0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None and self._size:
            self._print()

    def stage(self, name: str, total: int | None = None) -> None:
        self._name, self._total = name, total
        self._size = self._files = 0
        self._began = self._last = self._clock()
        print(name, file=self._stream, flush=True)

    def advance(self, size: int = 0, files: int = 0) -> None:
        self._size += size
        self._files += files
        if self._clock() - self._last >= _LINE_SECONDS:
            self._print()

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _print(self) -> None:
        self._last = self._clock()
        seconds = max(self._last - self._began, 1e-9)
        rate = self._size / seconds
        words = [self._name + ":", human(self._size)]
        if self._total is not None:
            words.append(f"of {human(self._total)}")
        if self._files:
            words.append(f"· {self._files} files")
        words.append(f"· {human(int(rate))}/s")
        if self._total is not None and rate and self._total > self._size:
            words.append(f"· {(self._total - self._size) / rate:.0f} s left")
        print(*words, file=self._stream, flush=True)


class Bar:
    """For terminals, drawn by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as RichProgress

        self._files = 0
        self._task: TaskID | None = None
        self._rich: RichProgress = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TextColumn("{task.fields[files]} files"),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )

    def __enter__(self) -> Bar:
        self._rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._rich.stop()

    def stage(self, name: str, total: int | None = None) -> None:
        if self._task is not None:
            self._rich.remove_task(self._task)
        self._files = 0
        self._task = self._rich.add_task(name, total=total, files=0)

    def advance(self, size: int = 0, files: int = 0) -> None:
        self._files += files
        if self._task is not None:
            self._rich.update(self._task, advance=size, files=self._files)

    def note(self, text: str) -> None:
        self._rich.console.print(text, markup=False, highlight=False)


def for_user(stream: TextIO | None = None) -> Bar | Lines:
    """A bar if stderr is a terminal, else lines. A context manager."""
    stream = stream or sys.stderr
    return Bar() if stream.isatty() else Lines(stream)


def human(size: int) -> str:
    """1536 -> `1.5 KiB`"""
    value = float(size)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the last unit takes every size")
