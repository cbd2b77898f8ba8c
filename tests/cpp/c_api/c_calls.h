// SPDX-License-Identifier: Apache-2.0
// Calls of the C API from C++ tests: handles that free themselves, failures that show their text.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "check.h"
#include "treespec/treespec_c.h"

namespace treespec::test {

struct FreeHandle {
  void operator()(ts_options* handle) const { ts_options_free(handle); }
  void operator()(ts_builder* handle) const { ts_builder_free(handle); }
  void operator()(ts_source* handle) const { ts_source_free(handle); }
  void operator()(ts_growth* handle) const { ts_growth_free(handle); }
  void operator()(ts_tree* handle) const { ts_tree_free(handle); }
  void operator()(ts_drafter* handle) const { ts_drafter_free(handle); }
  void operator()(ts_decoder* handle) const { ts_decoder_free(handle); }
  void operator()(ts_result* handle) const { ts_result_free(handle); }
};
template <class Handle>
using Owned = std::unique_ptr<Handle, FreeHandle>;

/// The handle that `create(arguments..., &handle)` makes.
template <class Handle, class... Parameters, class... Arguments>
Owned<Handle> make(ts_status (*create)(Parameters...), Arguments... arguments) {
  Handle* handle = nullptr;
  const ts_status status = create(arguments..., &handle);
  if (status != TS_OK) fail(__FILE__, __LINE__, std::string("failed: ") + ts_last_error());
  CHECK(handle != nullptr);
  return Owned<Handle>(handle);
}

/// A struct with its size set and all else 0.
template <class T>
T sized() {
  T value{};
  value.struct_size = sizeof(T);
  return value;
}

/// A struct as its _init leaves it.
template <class T>
T initial(ts_status (*init)(T*, size_t)) {
  T value;
  CHECK_EQUAL(init(&value, sizeof(T)), TS_OK);
  return value;
}

/// The text that the core throws.
template <class Exception, class Work>
std::string thrown_text(Work&& work) {
  try {
    work();
  } catch (const Exception& error) {
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace treespec::test

/// Fails with the library's text unless the call succeeds.
#define CHECK_OK(...)                                                                  \
  do {                                                                                 \
    if ((__VA_ARGS__) != TS_OK)                                                        \
      ::treespec::test::fail(__FILE__, __LINE__,                                       \
                             #__VA_ARGS__ " failed: " + std::string(ts_last_error())); \
  } while (false)

/// Fails unless the call fails with this status and a text that contains this one.
#define CHECK_FAILS(status, part, ...)                                                      \
  do {                                                                                      \
    CHECK_EQUAL((__VA_ARGS__), (status));                                                   \
    if (std::string(ts_last_error()).find(part) == std::string::npos)                       \
      ::treespec::test::fail(__FILE__, __LINE__,                                            \
                             #__VA_ARGS__ " failed with: " + std::string(ts_last_error())); \
  } while (false)
