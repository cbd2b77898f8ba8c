# SPDX-License-Identifier: Apache-2.0
"""How the C library keeps memory while a model trains."""

from __future__ import annotations

import ctypes
import platform


def keep_freed_memory() -> None:
    """Keep glibc from returning large tensors to the system: the faults cost half the speed."""
    if platform.libc_ver()[0] == "glibc":
        mmap_threshold, trim_threshold = -3, -1  # their numbers in malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)
