"""What kind of error it is: want of memory, or a GPU that has failed under its process."""

from __future__ import annotations

import re
import sys

from gsmae.errors import GsmaeError

# torch's allocators and CUDA calls, Warp's allocator, cuBLAS and cuDNN
_MEMORY = re.compile(
    r"DefaultCPUAllocator|CUDA out of memory|CUDA(?: driver)? error(?: \d+)?: out of memory"
    r"|Failed to allocate \d+ bytes|(?:CUBLAS|CUDNN)_STATUS_(?:INTERNAL_ERROR_DEVICE_)?ALLOC\w*_FAILED"
)
_DEVICE = re.compile(
    r"CUDA(?: driver| runtime| kernel)? error|CUDA initialization|CUDA unknown error|CUDA driver|NVIDIA driver"
    r"|No CUDA|no CUDA-capable|Torch not compiled with CUDA|(?:CUBLAS|CUDNN|CURAND)_STATUS_|uncorrectable ECC"
    r"|Invalid device identifier: cuda|cudaGetDeviceCount"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short: of a GPU, or of the machine."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error)))


def is_device_fault(error: BaseException) -> bool:
    """Whether CUDA has failed, other than for want of memory: no later call of the same process can be trusted.

    An illegal access, an uncorrectable memory error, a driver that is gone, no device, no kernel for it.
    """
    if is_out_of_memory(error) or isinstance(error, GsmaeError):
        return False
    if type(error).__name__ == "AcceleratorError":  # of torch, which need not be loaded here
        return True
    return isinstance(error, RuntimeError | AssertionError | ValueError) and bool(_DEVICE.search(str(error)))
