// SPDX-License-Identifier: Apache-2.0
// Run-time choice of vector width for hot loops of a portable build. Contraction stays off
// (-ffp-contract=off), so that every clone gives the same bits.
#pragma once

// The choice is made before ThreadSanitizer is there to watch it, and would crash.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define TREESPEC_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TREESPEC_SIMD
#endif

// The body of a TREESPEC_SIMD function that several of them share.
#if defined(__GNUC__)
#define TREESPEC_INLINE inline __attribute__((always_inline))
#else
#define TREESPEC_INLINE inline
#endif
