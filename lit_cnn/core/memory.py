"""What the C library does with memory that is freed."""

import ctypes

# Options of glibc's mallopt, by the numbers in its malloc.h, and what they are set to.
_OPTIONS = {
    "M_MMAP_MAX": (-4, 0),  # large blocks come from the heap as well
    "M_TRIM_THRESHOLD": (-1, -1),  # whose end is never given back
    "M_TOP_PAD": (-2, 64 * 1024**2),  # and which grows by 64 MiB at least
}


def keep_freed_memory() -> None:
    """Makes the C library keep what one step frees for the next step, as PyTorch does on a GPU.

    Otherwise every large tensor is asked of the system and given back at every step, and each of its pages is a fault
    each time (tests/benchmarks/train_step.py). The process stays as large as its largest step was. Only glibc has this;
    elsewhere nothing happens.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        for option in _OPTIONS.values():
            set_option(*option)
