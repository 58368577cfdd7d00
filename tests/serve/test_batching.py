"""What is asked while a batch is computed is the next batch."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedms.core.shelf import Shelf
from fedms.serve.batching import Batcher
from fedms.serve.limits import OverloadedError


def answered(questions, *, most=10, wait=0.0, weights=None):
    """Batches that were made of questions asked at once, the first alone, and their answers."""
    batches, go = [], threading.Event()

    def perform(batch):
        batches.append(list(batch))
        go.wait(5)
        if "fall" in batch:
            raise ZeroDivisionError
        return [ValueError(q) if q == "bad" else q.upper() for q in batch]

    async def ask():
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(perform, executor, most, wait)
            tasks = [
                asyncio.create_task(batcher.ask(q, w))
                for q, w in zip(questions, weights or [1] * len(questions), strict=True)
            ]
            await asyncio.sleep(0.05)
            go.set()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            await batcher.close()
            return found

    return batches, asyncio.run(ask())


def test_all_that_is_asked_at_once_is_one_batch():
    batches, found = answered(["a", "b", "c"])
    assert found == ["A", "B", "C"]
    assert batches == [["a", "b", "c"]]


def test_a_batch_weighs_no_more_than_it_may_and_keeps_the_order():
    batches, found = answered(["a", "b", "c", "d", "e"], most=4, weights=[2, 2, 1, 9, 1])
    assert found == ["A", "B", "C", "D", "E"]
    assert batches == [["a", "b"], ["c"], ["d"], ["e"]]


def test_an_error_is_told_to_whom_it_concerns():
    _, found = answered(["a", "bad", "c"])
    assert found[0] == "A"
    assert found[2] == "C"
    assert isinstance(found[1], ValueError)
    _, found = answered(["fall", "b"])
    assert all(isinstance(each, ZeroDivisionError) for each in found)


def test_who_comes_while_it_computes_or_waits_is_in_the_next_batch():
    batches = []

    async def ask(wait):
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(lambda b: batches.append(list(b)) or list(b), executor, 9, wait)
            first = asyncio.create_task(batcher.ask(1, 1))
            await asyncio.sleep(0.01)
            await asyncio.gather(batcher.ask(2, 1), batcher.ask(3, 1), first)
            await batcher.close()

    asyncio.run(ask(0.0))
    assert batches == [[1], [2, 3]]
    asyncio.run(ask(0.1))
    assert batches[2:] == [[1, 2, 3]]


def test_nothing_is_computed_for_those_who_have_gone():
    batches = []
    go = threading.Event()

    def perform(batch):
        batches.append(list(batch))
        go.wait(5)
        return list(batch)

    async def ask():
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(perform, executor, 1, 0.0)
            tasks = [asyncio.create_task(batcher.ask(i, 1)) for i in range(3)]
            await asyncio.sleep(0.05)
            tasks[1].cancel()
            go.set()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            await batcher.close()
            with pytest.raises(asyncio.CancelledError):
                raise found[1]
            return found

    found = asyncio.run(ask())
    assert [found[0], found[2]] == [0, 2]
    assert batches == [[0], [2]]


def test_nobody_waits_for_what_is_closed():
    """Neither those whose batch is computed, nor those who wait, nor who comes later."""
    go = threading.Event()

    def perform(batch):
        go.wait(5)
        return list(batch)

    async def ask():
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(perform, executor, 1, 0.0)
            tasks = [asyncio.create_task(batcher.ask(i, 1)) for i in range(2)]
            await asyncio.sleep(0.05)
            await batcher.close()
            late = asyncio.create_task(batcher.ask(2, 1))
            _, pending = await asyncio.wait([*tasks, late], timeout=1)
            go.set()
            assert not pending
            return [task.cancelled() for task in tasks], late.exception()

    cancelled, refused = asyncio.run(ask())
    assert cancelled == [True, True]
    assert isinstance(refused, OverloadedError)


def test_a_shelf_keeps_what_was_asked_for_last():
    loaded = []
    shelf = Shelf(lambda key: loaded.append(key) or key * 10, lambda value: value, 60)
    assert [shelf(1), shelf(2), shelf(1), shelf(3)] == [10, 20, 10, 30]
    assert (shelf.bytes, len(shelf)) == (60, 3)
    assert shelf(4) == 40  # 2, 1 and 3 must go
    assert (shelf.bytes, len(shelf)) == (40, 1)
    assert shelf(9) == 90  # larger than all room: alone
    assert (shelf.bytes, len(shelf)) == (90, 1)
    assert loaded == [1, 2, 3, 4, 9]
    with pytest.raises(TypeError):
        shelf(None)
    assert len(shelf) == 1
