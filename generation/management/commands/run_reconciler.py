"""Run the loop that follows jobs on their nodes and heals what was lost."""

import asyncio
import signal
from typing import Any

from django.core.management.base import BaseCommand

from generation.database import check_hearing
from generation.jobs import node_health
from generation.reconciler import Reconciler


class Command(BaseCommand):
    requires_system_checks = ()  # they load every URL and view, which this process never serves
    help = "Run the reconciler: follows running jobs on their GPU nodes and heals what was lost. Several may run."

    def handle(self, *args: Any, **options: Any) -> None:
        check_hearing()
        node_health.sync_environment_node()
        asyncio.run(_run())


async def _run() -> None:
    reconciler = Reconciler()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, reconciler.stop)
    await reconciler.run()
