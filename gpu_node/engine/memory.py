"""How much memory there is, and how much this process took."""

import os
import resource
import sys

import torch

from gpu_node.messages import Memory

MEGABYTE = 2**20
RUSAGE_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes on Linux


def memory_of(device: torch.device) -> Memory:
    """Of the GPU; on a CPU of the machine."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        peak = torch.cuda.max_memory_reserved(device)
    else:
        page = os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * page
        free = (
            os.sysconf("SC_AVPHYS_PAGES") * page
            if hasattr(os, "sysconf_names") and "SC_AVPHYS_PAGES" in os.sysconf_names
            else 0
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RUSAGE_UNIT
    return Memory(total_mb=total // MEGABYTE, free_mb=free // MEGABYTE, peak_mb=peak // MEGABYTE)
