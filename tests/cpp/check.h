// SPDX-License-Identifier: Apache-2.0
// The whole test framework: a test is a program; CHECK prints what failed and ends it with code 1.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>

namespace treespec::test {

[[noreturn]] inline void fail(const char* file, int line, const std::string& text) {
  std::fprintf(stderr, "%s:%d: %s\n", file, line, text.c_str());
  std::exit(1);
}

template <class Left, class Right>
void check_equal(const Left& left, const Right& right, const char* what, const char* file,
                 int line) {
  if (left == right) return;
  std::ostringstream text;
  text << "CHECK_EQUAL(" << what << ") failed: " << left << " and " << right;
  fail(file, line, text.str());
}

}  // namespace treespec::test

/// Fails unless the condition holds; active in every build type.
#define CHECK(...)                                                                  \
  do {                                                                              \
    if (!(__VA_ARGS__))                                                             \
      ::treespec::test::fail(__FILE__, __LINE__, "CHECK(" #__VA_ARGS__ ") failed"); \
  } while (false)

/// Fails unless both are equal, and prints both.
#define CHECK_EQUAL(left, right) \
  ::treespec::test::check_equal((left), (right), #left ", " #right, __FILE__, __LINE__)

/// Fails unless the statement throws `Exception`.
#define CHECK_THROWS(Exception, ...)                                                         \
  do {                                                                                       \
    bool thrown = false;                                                                     \
    try {                                                                                    \
      __VA_ARGS__;                                                                           \
    } catch (const Exception&) {                                                             \
      thrown = true;                                                                         \
    }                                                                                        \
    if (!thrown)                                                                             \
      ::treespec::test::fail(__FILE__, __LINE__, #__VA_ARGS__ " did not throw " #Exception); \
  } while (false)
