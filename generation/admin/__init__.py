"""Jobs, nodes, presets, content and bulk refunds, for staff."""

from generation.admin import bulk_refunds, content, jobs, nodes, person

__all__ = ["bulk_refunds", "content", "jobs", "nodes", "person"]
