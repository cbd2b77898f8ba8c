// SPDX-License-Identifier: Apache-2.0
#include "c_api/border.h"

#include <exception>
#include <new>

#include "treespec/version.h"

namespace treespec::c {
namespace {

thread_local std::string last_error;

treespec_status keep(treespec_status status, const char* text) noexcept {
  treespec_set_error(text);
  return status;
}

}  // namespace

treespec_status report_exception() noexcept {
  try {
    throw;
  } catch (const CallbackFailed& error) {
    return keep(TREESPEC_CALLBACK_FAILED, error.what());
  } catch (const InvalidArgument& error) {
    return keep(TREESPEC_INVALID_ARGUMENT, error.what());
  } catch (const Unsupported& error) {
    return keep(TREESPEC_UNSUPPORTED, error.what());
  } catch (const std::bad_alloc&) {
    return keep(TREESPEC_OUT_OF_MEMORY, "out of memory");
  } catch (const std::length_error&) {  // of a container: more than any memory holds
    return keep(TREESPEC_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return keep(TREESPEC_INTERNAL_ERROR, error.what());
  } catch (...) {
    return keep(TREESPEC_INTERNAL_ERROR, "an exception that is no std::exception");
  }
}

void fail_callback(const char* who, int32_t answer) {
  const std::string text = treespec_last_error();
  throw CallbackFailed(
      detail::message(who, ": callback returned ", answer, text.empty() ? "" : ": ", text));
}

}  // namespace treespec::c

uint32_t treespec_abi_version(void) { return TREESPEC_C_ABI_VERSION; }

const char* treespec_version(void) { return treespec::kVersion; }

const char* treespec_last_error(void) { return treespec::c::last_error.c_str(); }

void treespec_set_error(const char* text) {
  try {
    treespec::c::last_error = text != nullptr ? text : "";
  } catch (const std::bad_alloc&) {
    treespec::c::last_error = "out of memory";  // short enough to need none
  }
}
