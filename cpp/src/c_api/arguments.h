// SPDX-License-Identifier: Apache-2.0
// Arguments from C, checked, as the core has them.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "treespec/array_view.h"
#include "treespec/error.h"
#include "treespec/rng.h"
#include "treespec/token_tree.h"
#include "treespec/treespec_c.h"

namespace treespec::c {

template <class T>
T& required(const char* who, const char* name, T* pointer) {
  TREESPEC_CHECK(pointer != nullptr, who, ": ", name, " must not be NULL");
  return *pointer;
}

/// Function pointers alike.
template <class Callback>
void require_callback(const char* who, const char* name, Callback* callback) {
  static_assert(std::is_function_v<Callback>);
  TREESPEC_CHECK(callback != nullptr, who, ": ", name, " must not be NULL");
}

/// `[size]` elements; the default limit is that of ids of 32 bits.
template <class T>
ArrayView<T> view(const char* who, const char* name, T* data, int64_t size,
                  int64_t most = INT32_MAX) {
  TREESPEC_CHECK(size >= 0 && size <= most, who, ": ", name, " must have 0 to ", most,
                 " elements, got ", size);
  TREESPEC_CHECK(data != nullptr || size == 0, who, ": ", name, " must not be NULL for ", size,
                 " elements");
  return {data, size};
}

/// The same, copied.
template <class T>
std::vector<T> copied(const char* who, const char* name, const T* data, int64_t size,
                      int64_t most = INT32_MAX) {
  const auto given = view(who, name, data, size, most);
  return {given.begin(), given.end()};
}

/// An output with room for at least `needed` elements.
template <class T>
T* output(const char* who, const char* name, T* data, int64_t capacity, int64_t needed) {
  TREESPEC_CHECK(capacity >= needed, who, ": ", name, " must have room for ", needed,
                 " elements, got a capacity of ", capacity);
  TREESPEC_CHECK(data != nullptr, who, ": ", name, " must not be NULL");
  return data;
}

/// Where a new handle goes; NULL stays there unless the call succeeds.
template <class Handle>
Handle*& new_handle(const char* who, const char* name, Handle** handle) {
  required(who, name, handle) = nullptr;
  return *handle;
}

/// A size, depth or width in [least, INT32_MAX].
int32_t size32(const char* who, const char* name, int64_t size, int64_t least);
/// A checked limit, of which 0 means none.
inline int32_t limit_of(int64_t limit) {
  return limit == 0 ? INT32_MAX : static_cast<int32_t>(limit);
}
void check_reserved(const char* who, const char* name, int32_t reserved);
/// At least the width, and no more than rows of memory can be apart.
void check_row_stride(const char* who, const char* name, int64_t num_rows, int64_t width,
                      int64_t row_stride);

DType dtype_of(const char* who, treespec_dtype dtype);
Proposal proposal_of(const char* who, treespec_proposal proposal);
RoundKey key_of(const treespec_key& key);
treespec_key c_key(const RoundKey& key);

RowsView rows_of(const char* who, const char* name, const treespec_rows* rows);
/// None for NULL, and for data NULL.
RowsView optional_rows_of(const char* who, const char* name, const treespec_rows* rows);
treespec_rows c_rows(const RowsView& rows);

}  // namespace treespec::c
