"""Jobs, nodes, presets, refunds of many jobs and failed tasks, for staff."""

from generation.admin import bulk_refunds, content, jobs, nodes, related

__all__ = ["bulk_refunds", "content", "jobs", "nodes", "related"]
