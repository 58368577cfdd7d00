"""Dynamic batching: what is asked while a batch is computed is the next batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from fedms.serve.limits import OverloadedError

Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(frozen=True, eq=False)
class _Job(Generic[Q, A]):
    question: Q
    weight: int
    answer: asyncio.Future[A]


class Batcher(Generic[Q, A]):
    """Answers questions together, some at a time, in the order in which they came.

    Args:
        perform: answers of some questions, called in `executor`; an exception among them is raised
            where that question was asked. If it raises, all of its questions do.
        executor: of one thread.
        most: weight of a batch; a question that weighs more is a batch of its own.
        wait: seconds, see `Limits`.
    """

    def __init__(
        self,
        perform: Callable[[Sequence[Q]], Sequence[A | Exception]],
        executor: Executor,
        most: int,
        wait: float,
    ) -> None:
        self._perform, self._executor, self._most, self._wait = perform, executor, most, wait
        self._waiting: deque[_Job[Q, A]] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def ask(self, question: Q, weight: int) -> A:
        """The answer, when its batch is done.

        Raises:
            OverloadedError: if it is closed.
        """
        if self._closed:
            raise OverloadedError("got a question of a service that ends; try again in a second")
        job = _Job[Q, A](question, weight, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._arrived.set()
        if self._task is None:
            self._task = asyncio.create_task(self._go_on())
        return await job.answer

    async def close(self) -> None:
        """Stop; what was not answered is cancelled, also what is being computed."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for job in self._waiting:
            job.answer.cancel()
        self._waiting.clear()

    async def _go_on(self) -> None:
        while True:
            await self._arrived.wait()
            if self._wait and sum(job.weight for job in self._waiting) < self._most:
                await asyncio.sleep(self._wait)
            jobs = self._take()
            if not self._waiting:
                self._arrived.clear()
            if jobs:
                await self._answer(jobs)

    def _take(self) -> list[_Job[Q, A]]:
        """The next batch, without those whose askers have gone."""
        jobs: list[_Job[Q, A]] = []
        weight = 0
        while self._waiting and (not jobs or weight + self._waiting[0].weight <= self._most):
            job = self._waiting.popleft()
            if not job.answer.done():
                jobs.append(job)
                weight += job.weight
        return jobs

    async def _answer(self, jobs: Sequence[_Job[Q, A]]) -> None:
        questions = [job.question for job in jobs]
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(self._executor, self._perform, questions)
        try:
            await asyncio.wait([done])
            failed = done.exception()
            answers = [failed] * len(jobs) if failed else done.result()
            for job, answer in zip(jobs, answers, strict=True):
                if job.answer.done():
                    continue
                if isinstance(answer, BaseException):
                    job.answer.set_exception(answer)
                else:
                    job.answer.set_result(answer)
        finally:
            for job in jobs:  # closed meanwhile: what has no answer
                job.answer.cancel()
