"""The tasks of the bot's process: loops that run until the end, and jobs that are finished first when there is time.

asyncio's own TaskGroup cancels everything at once, which would cut off an upload that is under way.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

Work = Coroutine[Any, Any, None]


class TaskGroup:
    """Tasks that stop together. The first one that fails is the failure of all."""

    def __init__(self) -> None:
        self._loops: set[asyncio.Task[None]] = set()
        self._jobs: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def loop(self, work: Work) -> None:
        """Run something that is simply cut off at the end."""
        self._start(work, self._loops)

    def job(self, work: Work) -> None:
        """Run something that should be brought to its end, such as an upload."""
        self._start(work, self._jobs)

    async def first_failure(self) -> None:
        """Wait until a task fails, and raise what it raised."""
        await self._failure

    async def stop(self, *, grace: float) -> None:
        """End everything; jobs get `grace` seconds to finish, loops none."""
        await self._cancel(self._loops)
        if self._jobs and grace:
            await asyncio.wait(self._jobs, timeout=grace)
        await self._cancel(self._jobs)
        if self._failure.done() and not self._failure.cancelled():
            self._failure.exception()  # seen: without this asyncio would complain about it
        self._failure.cancel()

    def _start(self, work: Work, group: set[asyncio.Task[None]]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        group.add(task)
        task.add_done_callback(group.discard)
        task.add_done_callback(self._note)

    def _note(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._failure.done():
            self._failure.set_exception(error)

    @staticmethod
    async def _cancel(group: set[asyncio.Task[None]]) -> None:
        tasks = list(group)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
