"""The client's coroutines without an event loop: a few tasks in turn, until each has what it waits for.

There is one place where time passes, `wait`, which is the getter's: it ends with any news of any transfer. A task that
waits says until what, and is asked again after each news; with a handful of them that costs nothing, and importing
trio costs 150 ms.

    loop = Loop(getter.wait)
    manifest = loop.run(repository.resolve())
    tasks = [loop.start(fetch(blob)) for blob in blobs]
    loop.run(tasks[0].result())             # the other one goes on meanwhile
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")
_LONGEST_S = 60.0


class _Until:
    """What a task waits for: that ready() is true, or that the time has come."""

    def __init__(self, ready: Callable[[], bool], at: float) -> None:
        self.ready = ready
        self.at = at

    def __await__(self) -> Generator[_Until, None, None]:
        yield self


class Task(Generic[T]):
    """A coroutine under way. A failure is raised by whoever asks for its result."""

    def __init__(self, loop: Loop, coroutine: Coroutine[Any, Any, T]) -> None:
        self._loop = loop
        self._coroutine = coroutine
        self._waits: _Until | None = None
        self._value: T | None = None
        self._error: BaseException | None = None
        self.deadlines: list[float] = []
        self.done = False

    async def result(self) -> T:
        """Waits for its end."""
        await self._loop.until(lambda: self.done)
        if self._error is not None:
            raise self._error
        return cast(T, self._value)

    def step(self, now: float) -> bool:
        """Runs it up to its next wait, if the one before is over."""
        wait = self._waits
        late = bool(self.deadlines) and now >= min(self.deadlines)
        if wait is not None and not late and now < wait.at and not wait.ready():
            return False
        try:
            if late:
                self.deadlines = [one for one in self.deadlines if one > now]
                self._waits = self._coroutine.throw(TimeoutError())
            else:
                self._waits = self._coroutine.send(None)
        except StopIteration as end:
            self._value = end.value
            self.done = True
        except Exception as error:
            self._error = error
            self.done = True
        return True

    def next_time(self) -> float:
        """When it has to be looked at although there is no news."""
        return min([*self.deadlines, self._waits.at if self._waits is not None else 0.0])

    def cancel(self) -> None:
        if not self.done:
            self.done = True
            self._coroutine.close()


class Loop:
    """wait: blocks until there is news, for so many seconds at most. It may end early."""

    def __init__(self, wait: Callable[[float], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._wait = wait
        self._clock = clock
        self._tasks: list[Task[Any]] = []
        self._current: Task[Any] | None = None

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Task[T]:
        """A task that goes on whenever the loop runs, from its first step on, which is taken now."""
        task = Task(self, coroutine)
        self._tasks.append(task)
        self._step(task, self._clock())
        return task

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Its result. Tasks that were started go on meanwhile, and no longer."""
        main = self.start(coroutine)
        try:
            while not main.done:
                now = self._clock()
                moved = False
                for task in [one for one in self._tasks if not one.done]:
                    moved = self._step(task, now) or moved
                if not moved:
                    end = min((task.next_time() for task in self._tasks if not task.done), default=now)
                    self._wait(min(max(0.0, end - now), _LONGEST_S))
        finally:
            main.cancel()
            self._tasks = [task for task in self._tasks if not task.done]
        if main._error is not None:
            raise main._error
        return cast(T, main._value)

    def close(self) -> None:
        """Ends the tasks that are left."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    def _step(self, task: Task[Any], now: float) -> bool:
        before, self._current = self._current, task
        try:
            return task.step(now)
        finally:
            self._current = before

    # ------------------------------------------------------------------ what coroutines wait for

    async def until(self, ready: Callable[[], bool]) -> None:
        if not ready():
            await _Until(ready, float("inf"))

    async def sleep(self, seconds: float) -> None:
        await _Until(lambda: False, self._clock() + seconds)

    def lock(self) -> _Lock:
        return _Lock(self)

    async def in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """Here and now: what a start has to wait for is short, and nothing else of it could go on without it."""
        return work(*arguments)

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        task = self._current
        assert task is not None  # only coroutines of ours come here
        end = self._clock() + seconds
        task.deadlines.append(end)
        try:
            yield
        finally:
            if end in task.deadlines:
                task.deadlines.remove(end)


class _Lock:
    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._held = False

    async def __aenter__(self) -> None:
        await self._loop.until(lambda: not self._held)
        self._held = True

    async def __aexit__(self, *_: object) -> None:
        self._held = False
