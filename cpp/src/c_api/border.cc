// SPDX-License-Identifier: Apache-2.0
#include "c_api/border.h"

#include <exception>
#include <new>

#include "treespec/version.h"

namespace treespec::c {
namespace {

thread_local std::string last_error;

ts_status keep(ts_status status, const char* text) noexcept {
  ts_set_error(text);
  return status;
}

}  // namespace

ts_status report_exception() noexcept {
  try {
    throw;
  } catch (const CallbackFailed& error) {
    return keep(TS_CALLBACK_FAILED, error.what());
  } catch (const InvalidArgument& error) {
    return keep(TS_INVALID_ARGUMENT, error.what());
  } catch (const Unsupported& error) {
    return keep(TS_UNSUPPORTED, error.what());
  } catch (const std::bad_alloc&) {
    return keep(TS_OUT_OF_MEMORY, "out of memory");
  } catch (const std::length_error&) {  // of a container: more than any memory holds
    return keep(TS_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return keep(TS_INTERNAL_ERROR, error.what());
  } catch (...) {
    return keep(TS_INTERNAL_ERROR, "an exception that is no std::exception");
  }
}

void fail_callback(const char* who, int32_t answer) {
  const std::string text = ts_last_error();
  throw CallbackFailed(
      detail::message(who, ": callback returned ", answer, text.empty() ? "" : ": ", text));
}

}  // namespace treespec::c

uint32_t ts_abi_version(void) { return TREESPEC_C_ABI_VERSION; }

const char* ts_version(void) { return treespec::kVersion; }

const char* ts_last_error(void) { return treespec::c::last_error.c_str(); }

void ts_set_error(const char* text) {
  try {
    treespec::c::last_error = text != nullptr ? text : "";
  } catch (const std::bad_alloc&) {
    treespec::c::last_error = "out of memory";  // short enough to need none
  }
}
