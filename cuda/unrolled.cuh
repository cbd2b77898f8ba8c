// SPDX-License-Identifier: Apache-2.0
// Loops that are certain to be unrolled, so that arrays they index stay in registers.
#pragma once

#include <simt.cuh>
#include <type_traits>
#include <utility>

namespace treespec::simt {

namespace detail {
template <class Body, int... kIndex>
TREESPEC_DEVICE void unrolled(Body&& body, std::integer_sequence<int, kIndex...>) {
  (body(std::integral_constant<int, kIndex>{}), ...);
}
}  // namespace detail

/// body(0), body(1), ..., body(kCount - 1), each argument an integral_constant.
template <int kCount, class Body>
TREESPEC_DEVICE void unrolled(Body&& body) {
  detail::unrolled(body, std::make_integer_sequence<int, kCount>{});
}

}  // namespace treespec::simt
