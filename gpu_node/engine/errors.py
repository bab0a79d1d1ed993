"""Failures in the worker, and what each means for the process."""

import re

import torch

# A kernel that failed to launch; one that does not fit a shape says other words, and leaves the context whole.
_BROKEN_CONTEXT = re.compile(r"CUDA error|CUDA driver error|Triton Error \[CUDA\]|STATUS_EXECUTION_FAILED")


class ModelUnavailable(Exception):
    """The model can never be loaded as the node is set up; trying again is no use."""


class Canceled(Exception):
    """The job was canceled; raised out of the denoising loop to stop it at once."""


class UnusableResult(Exception):
    """The model produced values that are no picture."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return True when the GPU ran out of memory, after which the process can go on."""
    # cuDNN's words when there is no room for any of its kernels to work in
    return isinstance(error, torch.OutOfMemoryError) or "unable to find an engine" in str(error)


def poisons_process(error: BaseException) -> bool:
    """Return True when the error leaves the CUDA context unusable, so that only a new process helps."""
    if is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or bool(_BROKEN_CONTEXT.search(str(error)))
