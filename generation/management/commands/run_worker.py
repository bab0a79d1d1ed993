"""Run the django-q2 cluster that dispatches, stores and cleans up."""

from typing import Any

from django.core.management.base import BaseCommand

from generation.jobs import queue


class Command(BaseCommand):
    requires_system_checks = ()  # they load every URL and view, which this process never serves
    help = "Run the worker: hands queued jobs to GPU nodes and stores what they made."

    def handle(self, *args: Any, **options: Any) -> None:
        queue.run()
