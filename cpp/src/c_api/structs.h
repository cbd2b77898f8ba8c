// SPDX-License-Identifier: Apache-2.0
// Structs that begin with struct_size: callers may be older or newer than the library.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "c_api/arguments.h"
#include "c_api/border.h"
#include "treespec/error.h"
#include "treespec/treespec_c.h"

namespace treespec::c {

/// Bytes of a struct in the first release of this ABI version, what the oldest callers have: up to
/// the last field of then. A field that is appended changes nothing here.
template <class T>
inline constexpr size_t kFirstSize = 0;
#define TREESPEC_C_LAST_FIELD(type, field) \
  template <>                              \
  inline constexpr size_t kFirstSize<type> = offsetof(type, field) + sizeof(type::field)
TREESPEC_C_LAST_FIELD(treespec_builder_info, reserved);
TREESPEC_C_LAST_FIELD(treespec_build_options, key);
TREESPEC_C_LAST_FIELD(treespec_tree_data, reserved);
TREESPEC_C_LAST_FIELD(treespec_sampling, top_k);
TREESPEC_C_LAST_FIELD(treespec_logit_options, num_allowed_words);
TREESPEC_C_LAST_FIELD(treespec_verify_options, reserved);
TREESPEC_C_LAST_FIELD(treespec_verdict, next_token);
TREESPEC_C_LAST_FIELD(treespec_ngram_options, reserved);
TREESPEC_C_LAST_FIELD(treespec_suffix_options, reserved);
TREESPEC_C_LAST_FIELD(treespec_draft_model, observe);
TREESPEC_C_LAST_FIELD(treespec_target_model, states);
TREESPEC_C_LAST_FIELD(treespec_decoder_options, lossy);
TREESPEC_C_LAST_FIELD(treespec_generate_options, allow);
TREESPEC_C_LAST_FIELD(treespec_result_data, reserved);
#undef TREESPEC_C_LAST_FIELD

template <class T>
void check_struct_size(const char* who, const char* name, size_t struct_size) {
  static_assert(std::is_trivially_copyable_v<T> && std::is_standard_layout_v<T>);
  static_assert(kFirstSize<T> > 0 && offsetof(T, struct_size) == 0);
  constexpr size_t kMost = 4096;  // no struct ever has so much: what else is there is rubbish
  TREESPEC_CHECK(struct_size >= kFirstSize<T> && struct_size <= kMost, who, ": ", name,
                 ".struct_size must be its sizeof, in [", kFirstSize<T>, ", ", kMost, "], got ",
                 struct_size);
}

/// The caller's struct in the layout of this library. Fields that an older caller has not got are
/// those of `result`, and 0 if they were appended; those that only a newer one has must be 0.
template <class T>
T read_struct(const char* who, const char* name, const T* given, T result = {}) {
  const size_t struct_size = required(who, name, given).struct_size;
  check_struct_size<T>(who, name, struct_size);
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (size_t i = sizeof(T); i < struct_size; ++i) {
    if (bytes[i] == 0) continue;
    throw Unsupported(detail::message(who, ": ", name, " has a field at byte ", i,
                                      " that treespec ", treespec_version(),
                                      " does not know; set it to 0 or use a newer library"));
  }
  std::memcpy(&result, given, std::min(struct_size, sizeof(T)));
  result.struct_size = sizeof(T);
  return result;
}

/// `result` for NULL.
template <class T>
T read_optional_struct(const char* who, const char* name, const T* given, T result = {}) {
  return given == nullptr ? result : read_struct(who, name, given, result);
}

/// Fills the caller's struct as far as both go, and what is beyond with 0.
template <class T>
void write_struct(const char* who, const char* name, T* out, T value) {
  value.struct_size = required(who, name, out).struct_size;
  check_struct_size<T>(who, name, value.struct_size);
  auto* bytes = reinterpret_cast<unsigned char*>(out);
  const size_t known = std::min(value.struct_size, sizeof(T));
  std::memcpy(bytes, &value, known);
  std::memset(bytes + known, 0, value.struct_size - known);
}

/// The body of an _init; `struct_size`: what the caller has room for.
template <class T>
treespec_status init_struct(const char* who, const char* name, T* out, size_t struct_size,
                            const T& value) {
  return guarded(who, [&](const char*) {
    T& filled = required(who, name, out);
    check_struct_size<T>(who, name, struct_size);
    filled.struct_size = struct_size;
    write_struct(who, name, out, value);
  });
}

}  // namespace treespec::c
