"""`run` learns: what a start reads is kept under the root, and read ahead of the next start of the same command."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cext.errors import OnesecError
from lazyfs import learned
from onesec.images import ServedImage

_SIGNALS = 128  # from here on a status says that the command was ended by a signal, as services are


class Lesson:
    """One start of a command. known: what earlier ones read."""

    def __init__(
        self, served: ServedImage, path: str, known: Sequence[learned.Run], note: Callable[[str], None]
    ) -> None:
        self._served = served
        self._path = path
        self._known = known
        self._note = note

    def end(self, status: int) -> None:
        """The command has ended. What it read besides is kept, and its chunks are fetched for the store."""
        if 0 < status <= _SIGNALS:
            return  # a command that fails is not how the image starts
        attachment, settings = self._served.attachment, self._served.config.run
        try:
            read = learned.runs_of(attachment.learned())
            runs = learned.joined(self._known, read)
            if len(runs) > len(self._known):
                learned.save(self._path, runs)
                if attachment.origin and settings.prefetch > 0:
                    attachment.pushing.prefetch(learned.rows_of(runs), settings.prefetch, settings.prefetch_after_s)
        except (OSError, OnesecError) as error:
            self._note(f"{self._path}: this start is not learned from: {error}")


@contextmanager
def lesson(served: ServedImage, command: Sequence[str], note: Callable[[str], None]) -> Iterator[Lesson | None]:
    """Reads what earlier starts read while the block runs. None: [run] learn says no."""
    if not served.config.run.learn:
        yield None
        return
    path = learned.path_of(served.config.root, served.image.digest.hex, command)
    known = learned.load(path, note)
    process = -1
    if known:
        from lazyfs import replay

        process = replay.start(served.attachment.objects, known)
    try:
        served.attachment.learn()
        yield Lesson(served, path, known, note)
    finally:
        if process >= 0:
            replay.stop(process)
