"""The tasks of a bot at work: loops that run until the end, and errands that are finished first when there is time."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Crew:
    """Tasks that stop together. The first one that fails is the failure of all."""

    def __init__(self) -> None:
        self._loops: set[asyncio.Task[None]] = set()
        self._errands: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stopping = False

    def loop(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Something that is simply cut off at the end."""
        return self._start(work, self._loops)

    def errand(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Something that should be brought to its end, such as an upload."""
        return self._start(work, self._errands)

    async def first_failure(self) -> None:
        """Wait until a task fails, and raise what it raised."""
        await self._failure

    async def stop(self, *, grace: float) -> None:
        """End everything; errands get `grace` seconds to finish."""
        self.stopping = True
        await self._cancel(self._loops)
        if self._errands and grace:
            await asyncio.wait(self._errands, timeout=grace)
        await self._cancel(self._errands)
        if self._failure.done() and not self._failure.cancelled():
            self._failure.exception()  # seen: without this asyncio would complain about it
        self._failure.cancel()

    def _start(self, work: Coroutine[Any, Any, None], group: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        group.add(task)
        task.add_done_callback(group.discard)
        task.add_done_callback(self._notice)
        return task

    def _notice(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not self._failure.done():
            self._failure.set_exception(error)

    @staticmethod
    async def _cancel(group: set[asyncio.Task[None]]) -> None:
        tasks = list(group)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
