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
  void operator()(treespec_options* handle) const { treespec_options_free(handle); }
  void operator()(treespec_builder* handle) const { treespec_builder_free(handle); }
  void operator()(treespec_source* handle) const { treespec_source_free(handle); }
  void operator()(treespec_growth* handle) const { treespec_growth_free(handle); }
  void operator()(treespec_tree* handle) const { treespec_tree_free(handle); }
  void operator()(treespec_drafter* handle) const { treespec_drafter_free(handle); }
  void operator()(treespec_decoder* handle) const { treespec_decoder_free(handle); }
  void operator()(treespec_result* handle) const { treespec_result_free(handle); }
};
template <class Handle>
using Owned = std::unique_ptr<Handle, FreeHandle>;

/// The handle that `create(arguments..., &handle)` makes.
template <class Handle, class... Parameters, class... Arguments>
Owned<Handle> make(treespec_status (*create)(Parameters...), Arguments... arguments) {
  Handle* handle = nullptr;
  const treespec_status status = create(arguments..., &handle);
  if (status != TREESPEC_OK)
    fail(__FILE__, __LINE__, std::string("failed: ") + treespec_last_error());
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
T initial(treespec_status (*init)(T*, size_t)) {
  T value;
  CHECK_EQUAL(init(&value, sizeof(T)), TREESPEC_OK);
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
#define CHECK_OK(...)                                                                        \
  do {                                                                                       \
    if ((__VA_ARGS__) != TREESPEC_OK)                                                        \
      ::treespec::test::fail(__FILE__, __LINE__,                                             \
                             #__VA_ARGS__ " failed: " + std::string(treespec_last_error())); \
  } while (false)

/// Fails unless the call fails with this status and a text that contains this one.
#define CHECK_FAILS(status, part, ...)                                                            \
  do {                                                                                            \
    CHECK_EQUAL((__VA_ARGS__), (status));                                                         \
    if (std::string(treespec_last_error()).find(part) == std::string::npos)                       \
      ::treespec::test::fail(__FILE__, __LINE__,                                                  \
                             #__VA_ARGS__ " failed with: " + std::string(treespec_last_error())); \
  } while (false)
