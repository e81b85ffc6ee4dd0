from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import trio

from registry.client import Location
from registry.errors import UnreachableError
from registry.locations import Locations
from registry.model import PACK, Descriptor, Digest

BLOB = Descriptor(PACK, Digest.of(b"x"), 1)


@dataclass
class Origin:
    """Gives locations that last 100 s and should be renewed after 75."""

    now: float = 0.0
    asked: int = 0
    away: bool = False
    known: Locations = field(init=False)

    def __post_init__(self) -> None:
        self.known = Locations(self.find, clock=lambda: self.now)

    async def find(self, blob: Descriptor) -> Location:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.away:
            raise UnreachableError("host", "away")
        return Location(f"https://cdn.example/{self.asked}", {}, self.now + 100, self.now + 75)

    def get(self) -> str:
        async def main() -> str:
            return (await self.known.get(BLOB)).url

        return trio.run(main)


def test_a_location_is_asked_for_once_until_it_should_be_renewed() -> None:
    origin = Origin()
    assert origin.get() == origin.get() == "https://cdn.example/1"
    origin.now = 75
    assert origin.get() == "https://cdn.example/2"
    assert origin.asked == 2


def test_many_who_ask_at_once_cause_one_request() -> None:
    origin = Origin()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(origin.known.get, BLOB)

    trio.run(main)
    assert origin.asked == 1


def test_an_origin_that_is_away_costs_nothing_until_the_old_location_ends() -> None:
    origin = Origin()
    origin.get()
    origin.now, origin.away = 80, True
    assert origin.get() == "https://cdn.example/1"
    origin.now = 100
    with pytest.raises(UnreachableError):
        origin.get()
    origin.away = False
    assert origin.get() == f"https://cdn.example/{origin.asked}"


def test_what_a_server_refused_is_asked_for_again() -> None:
    origin = Origin()
    origin.get()
    origin.known.forget(BLOB.digest)
    origin.known.forget(BLOB.digest)
    assert origin.get() == "https://cdn.example/2"
