// SPDX-License-Identifier: Apache-2.0
// No exception crosses the border to C: calls turn them into a status, callbacks a status into one.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "treespec/error.h"
#include "treespec/treespec_c.h"

namespace treespec::c {

/// A callback returned a failure.
class CallbackFailed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Keeps the text of the exception that is being handled, and returns its status.
treespec_status report_exception() noexcept;

/// The body of a call; `work` gets its name, for messages.
template <class Work>
treespec_status guarded(const char* who, Work&& work) noexcept {
  try {
    work(who);
    return TREESPEC_OK;
  } catch (...) {
    return report_exception();
  }
}

/// Throws what a callback answered, with the text that it left.
[[noreturn]] void fail_callback(const char* who, int32_t answer);

/// Calls a callback. True when it answered TREESPEC_STOP, which is a failure unless `may_stop`.
template <class... Parameters, class... Arguments>
bool call_back(const char* who, bool may_stop, int32_t (*callback)(Parameters...),
               Arguments... arguments) {
  treespec_set_error("");  // what stands there afterwards is the callback's
  const int32_t answer = callback(arguments...);
  if (answer == TREESPEC_OK) return false;
  if (answer != TREESPEC_STOP || !may_stop) fail_callback(who, answer);
  return true;
}

}  // namespace treespec::c
