"""The tables of presets, nodes and jobs, and of what staff do about them."""

from generation.models.jobs import (
    GenerationJob,
    GpuNode,
    GpuNodeQuerySet,
    JobAttempt,
    JobQuerySet,
    Preset,
    ReadyMail,
    RunningTotal,
    SharedLink,
    UnclaimedFile,
    check_node_address,
    new_deadline,
    new_seed,
    new_share_token,
)
from generation.models.staff import BlockedPrompt, BulkRefund, BulkRefundItem, CanaryRun, DailyStats, Report
