"""Coroutines without an event loop, on a clock that only moves when the loop waits."""

from __future__ import annotations

import pytest

from registry.loop import Loop


class Time:
    """now moves by what is waited; news: happens during the wait of that number."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []
        self.happened: set[str] = set()
        self.news: dict[int, str] = {}

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        if (news := self.news.get(len(self.waits))) is not None:
            self.happened.add(news)
        else:
            self.now += seconds
        assert len(self.waits) < 100, "it waits for ever"


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def loop(time: Time) -> Loop:
    return Loop(time.wait, lambda: time.now)


def test_a_coroutine_that_waits_for_nothing_just_runs(loop: Loop, time: Time) -> None:
    async def work() -> int:
        return 7

    assert loop.run(work()) == 7
    assert time.waits == []


def test_a_failure_is_the_callers(loop: Loop) -> None:
    async def work() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        loop.run(work())


def test_sleep_is_as_long_as_it_says(loop: Loop, time: Time) -> None:
    async def work() -> None:
        await loop.sleep(2.5)

    loop.run(work())
    assert (time.now, time.waits) == (102.5, [2.5])


def test_tasks_go_on_while_another_one_is_waited_for(loop: Loop, time: Time) -> None:
    time.news = {1: "second", 2: "first"}
    order: list[str] = []

    async def work(name: str) -> str:
        await loop.until(lambda: name in time.happened)
        order.append(name)
        return name

    first, second = loop.start(work("first")), loop.start(work("second"))
    assert loop.run(first.result()) == "first"
    assert order == ["second", "first"]
    assert loop.run(second.result()) == "second"


def test_a_task_that_fails_says_so_to_whoever_asks(loop: Loop) -> None:
    async def work() -> None:
        raise KeyError("x")

    task = loop.start(work())
    with pytest.raises(KeyError):
        loop.run(task.result())


def test_a_deadline_ends_a_wait_and_counts_no_longer_after_its_block(loop: Loop, time: Time) -> None:
    async def work() -> str:
        with pytest.raises(TimeoutError), loop.deadline(3):
            await loop.until(lambda: False)
        assert time.now == 103
        with loop.deadline(1):
            pass
        await loop.sleep(5)
        return "done"

    assert loop.run(work()) == "done"
    assert time.now == 108


def test_the_nearest_of_two_deadlines_comes_first(loop: Loop, time: Time) -> None:
    async def work() -> None:
        with pytest.raises(TimeoutError), loop.deadline(9), loop.deadline(2):
            await loop.until(lambda: False)
        assert time.now == 102
        with pytest.raises(TimeoutError), loop.deadline(2), loop.deadline(9):
            await loop.until(lambda: False)
        assert time.now == 104

    loop.run(work())


def test_a_lock_is_held_by_one(loop: Loop) -> None:
    lock = loop.lock()
    inside = 0

    async def work() -> None:
        nonlocal inside
        async with lock:
            inside += 1
            assert inside == 1
            await loop.sleep(1)
            inside -= 1

    tasks = [loop.start(work()) for _ in range(3)]

    async def all_of_them() -> None:
        for task in tasks:
            await task.result()

    loop.run(all_of_them())


def test_what_is_left_is_ended_with_the_loop(loop: Loop) -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await loop.until(lambda: False)
        finally:
            ended.append("yes")

    loop.start(work())
    loop.close()
    assert ended == ["yes"]
