// SPDX-License-Identifier: Apache-2.0
// Exceptions of the core and the check macro that words them.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace treespec {

/// An argument breaks a rule; the message is `function: argument must <rule>, got <value>`.
/// Thrown before any state changes. `ValueError` in Python.
class InvalidArgument : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// The build or the machine lacks what was asked for; the message says how to get it.
/// `NotImplementedError` in Python.
class Unsupported : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A CUDA call failed; carries the call, its error name, file and line.
class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace detail {
template <class... Parts>
std::string message(Parts&&... parts) {
  std::ostringstream out;
  (out << ... << std::forward<Parts>(parts));
  return out.str();
}
}  // namespace detail
}  // namespace treespec

/// Throws InvalidArgument with the streamed parts unless `condition` holds.
#define TREESPEC_CHECK(condition, ...)                                             \
  do {                                                                             \
    if (!(condition)) {                                                            \
      throw ::treespec::InvalidArgument(::treespec::detail::message(__VA_ARGS__)); \
    }                                                                              \
  } while (false)
