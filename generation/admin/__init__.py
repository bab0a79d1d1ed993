"""Jobs, nodes, presets, refunds of many jobs and failed tasks, for staff."""

from generation.admin import concerned, content, incidents, jobs, nodes, presets, tasks

__all__ = ["concerned", "content", "incidents", "jobs", "nodes", "presets", "tasks"]
