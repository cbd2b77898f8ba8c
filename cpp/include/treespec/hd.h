// SPDX-License-Identifier: Apache-2.0
// Marks functions that both the host compiler and nvcc compile, which is why CPU and GPU agree:
// TREESPEC_HD for arithmetic, TREESPEC_RULE for decisions that a thread of the host takes alone,
// and all threads of a GPU block take together, each with the same values.
#pragma once

#if defined(__CUDACC__)
#define TREESPEC_HD __host__ __device__ __forceinline__
#define TREESPEC_RULE __device__ inline
#else
#define TREESPEC_HD inline
#define TREESPEC_RULE inline
#endif
