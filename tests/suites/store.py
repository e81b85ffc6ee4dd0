"""What every chunk store must do. A store's tests derive from StoreSuite and say how it is opened."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Literal, Protocol, Self

import pytest

import cext
from cext.errors import ClosedError, CorruptError, LimitError


class ChunkStore(Protocol):
    """See cache/store.py."""

    def put(
        self,
        id: bytes,
        data: bytes,
        *,
        algorithm: int = 1,
        codec: Literal["zstd", "raw"] = "zstd",
        pinned: bool = False,
    ) -> None: ...
    def get(self, id: bytes, *, algorithm: int = 1) -> bytes | None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


Opener = Callable[[], AbstractContextManager[ChunkStore]]

CHUNK_MAX = 256 << 10


def chunk(seed: int, size: int = 5000) -> tuple[bytes, bytes]:
    """Id and bytes. Odd seeds do not compress."""
    dice = random.Random(seed)
    data = dice.randbytes(size) if seed % 2 else (dice.randbytes(16) * (size // 16 + 1))[:size]
    return cext.blake3(data), data


class StoreSuite:
    @pytest.fixture
    def opener(self) -> Opener:
        raise NotImplementedError

    @pytest.mark.parametrize("codec", ["zstd", "raw"])
    @pytest.mark.parametrize("seed", [1, 2])
    @pytest.mark.parametrize("size", [1, 2, 4096, 70_000, CHUNK_MAX])
    def test_a_chunk_comes_back_as_it_was_put(
        self, opener: Opener, codec: Literal["zstd", "raw"], seed: int, size: int
    ) -> None:
        id, data = chunk(seed, size)
        with opener() as store:
            store.put(id, data, codec=codec)
            store.flush()
            assert store.get(id) == data

    def test_a_chunk_that_nobody_put_is_not_there(self, opener: Opener) -> None:
        with opener() as store:
            assert store.get(chunk(1)[0]) is None

    def test_a_chunk_named_by_sha256_comes_back_under_that_name_alone(self, opener: Opener) -> None:
        data = chunk(1)[1]
        id = hashlib.sha256(data).digest()
        with opener() as store:
            store.put(id, data, algorithm=2)
            store.flush()
            assert store.get(id, algorithm=2) == data
            assert store.get(id, algorithm=1) is None
            assert store.get(cext.blake3(data)) is None

    @pytest.mark.parametrize("algorithm", [1, 2])
    def test_what_is_not_what_its_id_says_does_not_enter(self, opener: Opener, algorithm: int) -> None:
        id, data = chunk(1)
        with opener() as store:
            with pytest.raises(CorruptError, match="not what its id says"):
                store.put(id, data[:-1] + b"?", algorithm=algorithm)
            store.flush()
            assert store.get(id, algorithm=algorithm) is None

    @pytest.mark.parametrize("size", [0, CHUNK_MAX + 1])
    def test_a_size_that_no_chunk_has_is_refused(self, opener: Opener, size: int) -> None:
        id, data = chunk(1, size)
        with opener() as store, pytest.raises(LimitError, match=f"got a chunk of {size} bytes"):
            store.put(id, data)

    @pytest.mark.parametrize("algorithm", [0, 3])
    def test_an_unknown_algorithm_is_refused(self, opener: Opener, algorithm: int) -> None:
        with opener() as store, pytest.raises(CorruptError, match="algorithm"):
            store.put(*chunk(1), algorithm=algorithm)

    @pytest.mark.parametrize("size", [0, 31, 33])
    def test_an_id_has_32_bytes(self, opener: Opener, size: int) -> None:
        with opener() as store:
            with pytest.raises(CorruptError, match="want 32"):
                store.put(bytes(size), b"data")
            with pytest.raises(CorruptError, match="want 32"):
                store.get(bytes(size))

    def test_a_chunk_may_be_put_again_and_otherwise(self, opener: Opener) -> None:
        id, data = chunk(2)
        with opener() as store:
            for codec in ("zstd", "zstd", "raw", "raw", "zstd"):
                store.put(id, data, codec=codec)
                store.flush()
                assert store.get(id) == data

    def test_many_chunks_come_back_in_any_order(self, opener: Opener) -> None:
        chunks = [chunk(seed, 100 + seed * 37 % 900) for seed in range(300)]
        with opener() as store:
            for number, (id, data) in enumerate(chunks):
                store.put(id, data, codec="raw" if number % 3 else "zstd", pinned=number % 7 == 0)
            store.flush()
            random.Random(0).shuffle(chunks)
            for id, data in chunks:
                assert store.get(id) == data

    def test_many_threads_may_use_it_at_once(self, opener: Opener) -> None:
        chunks = [chunk(seed, 2000) for seed in range(40)]
        wrong: list[int] = []

        def work(store: ChunkStore, seed: int) -> None:
            dice = random.Random(seed)
            for _ in range(60):
                id, data = dice.choice(chunks)
                if dice.random() < 0.4:
                    store.put(id, data)
                elif store.get(id) not in (None, data):
                    wrong.append(seed)

        with opener() as store:
            threads = [threading.Thread(target=work, args=(store, seed)) for seed in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for id, data in chunks:
                store.put(id, data)
            store.flush()
            assert wrong == []
            assert [store.get(id) for id, _ in chunks] == [data for _, data in chunks]

    def test_a_closed_store_says_so_and_may_be_closed_again(self, opener: Opener) -> None:
        with opener() as store:
            store.close()
            store.close()
            with pytest.raises(ClosedError):
                store.put(*chunk(1))
            with pytest.raises(ClosedError):
                store.get(chunk(1)[0])
            with pytest.raises(ClosedError):
                store.flush()
