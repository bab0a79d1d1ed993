"""Jobs, nodes, presets and refunds of many jobs, for staff."""

from django.contrib import admin
from django_q.models import OrmQ, Schedule, Success

from generation.admin import content, incidents, jobs, nodes, presets

__all__ = ["content", "incidents", "jobs", "nodes", "presets"]

# Nothing is scheduled here, successes are not kept, and a queued task is a name that would be called.
for unused in (Schedule, Success, OrmQ):
    admin.site.unregister(unused)
