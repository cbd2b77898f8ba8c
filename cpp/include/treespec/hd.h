// SPDX-License-Identifier: Apache-2.0
// Marks functions that both the host compiler and nvcc compile, which is why CPU and GPU agree.
#pragma once

#if defined(__CUDACC__)
#define TREESPEC_HD __host__ __device__ __forceinline__
#else
#define TREESPEC_HD inline
#endif
