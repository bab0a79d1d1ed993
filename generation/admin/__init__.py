"""Jobs, nodes, presets, refunds of many jobs and failed tasks, for staff."""

from generation.admin import content, incidents, jobs, nodes, presets, tasks

__all__ = ["content", "incidents", "jobs", "nodes", "presets", "tasks"]
