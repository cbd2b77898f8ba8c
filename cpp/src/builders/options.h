// SPDX-License-Identifier: Apache-2.0
// Reads a builder's options by name; what was not read is refused with the list of what was.
#pragma once

#include <algorithm>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "treespec/error.h"
#include "treespec/tree_builder.h"

namespace treespec {

/// Construct, read every option the builder knows, then `finish()`.
class OptionReader {
 public:
  OptionReader(std::string_view builder, const BuilderOptions& options)
      : builder_(builder), options_(options) {}

  /// An integer in [low, INT32_MAX].
  int32_t integer(std::string_view name, int32_t fallback, int64_t low) {
    const OptionValue* value = find(name);
    if (value == nullptr) return fallback;
    const auto* number = std::get_if<int64_t>(value);
    TREESPEC_CHECK(number != nullptr && *number >= low && *number <= INT32_MAX, builder_, ": ",
                   name, " must be an integer >= ", low, ", got ", text(*value));
    return static_cast<int32_t>(*number);
  }

  /// A number in [low, high], low excluded when `open`.
  double number(std::string_view name, double fallback, double low, bool open = false,
                double high = 1e300) {
    const OptionValue* value = find(name);
    if (value == nullptr) return fallback;
    double result = low - 1.0;
    if (const auto* real = std::get_if<double>(value)) result = *real;
    if (const auto* whole = std::get_if<int64_t>(value)) result = static_cast<double>(*whole);
    TREESPEC_CHECK((open ? result > low : result >= low) && result <= high, builder_, ": ", name,
                   " must be a number ", open ? "> " : ">= ", low,
                   high < 1e300 ? detail::message(" and <= ", high) : "", ", got ", text(*value));
    return result;
  }

  /// A non-empty list of integers >= low.
  std::vector<int32_t> integers(std::string_view name, std::vector<int32_t> fallback, int64_t low) {
    const OptionValue* value = find(name);
    if (value == nullptr) return fallback;
    const auto* list = std::get_if<std::vector<int64_t>>(value);
    const bool sound = list != nullptr && !list->empty() &&
                       std::all_of(list->begin(), list->end(),
                                   [low](int64_t k) { return k >= low && k <= INT32_MAX; });
    TREESPEC_CHECK(sound, builder_, ": ", name, " must be a non-empty list of integers >= ", low,
                   ", got ", text(*value));
    return {list->begin(), list->end()};
  }

  /// Rows of numbers in [low, high]; a plain list of integers is one row. Empty when not given.
  OptionTable table(std::string_view name, double low, double high) {
    const OptionValue* value = find(name);
    if (value == nullptr) return {};
    OptionTable rows;
    if (const auto* list = std::get_if<std::vector<int64_t>>(value)) {
      rows.emplace_back(list->begin(), list->end());
    } else if (const auto* given = std::get_if<OptionTable>(value)) {
      rows = *given;
    }
    bool sound = !rows.empty();
    for (const auto& row : rows) {
      sound = sound && !row.empty() &&
              std::all_of(row.begin(), row.end(), [&](double x) { return x >= low && x <= high; });
    }
    TREESPEC_CHECK(sound, builder_, ": ", name, " must be rows of numbers in [", low, ", ", high,
                   "], got ", text(*value));
    return rows;
  }

  /// One of the words in `allowed`, as its place there.
  size_t word(std::string_view name, const std::vector<std::string_view>& allowed) {
    const OptionValue* value = find(name);
    if (value == nullptr) return 0;
    const auto* given = std::get_if<std::string>(value);
    const auto at = std::find(allowed.begin(), allowed.end(),
                              given != nullptr ? std::string_view(*given) : std::string_view());
    TREESPEC_CHECK(given != nullptr && at != allowed.end(), builder_, ": ", name,
                   " must be one of ", joined(allowed), ", got ", text(*value));
    return static_cast<size_t>(at - allowed.begin());
  }

  /// One of the proposal modes in `allowed`.
  Proposal proposal(std::string_view name, Proposal fallback,
                    const std::vector<Proposal>& allowed) {
    const OptionValue* value = find(name);
    if (value == nullptr) return fallback;
    const auto* word = std::get_if<std::string>(value);
    TREESPEC_CHECK(word != nullptr, builder_, ": ", name, " must be a string, got ", text(*value));
    const Proposal mode = parse_proposal(*word);
    std::vector<std::string_view> names;
    for (const Proposal one : allowed) names.push_back(proposal_name(one));
    TREESPEC_CHECK(std::find(allowed.begin(), allowed.end(), mode) != allowed.end(), builder_, ": ",
                   name, " must be one of ", joined(names), ", got ", *word);
    return mode;
  }

  bool given(std::string_view name) const { return options_.find(name) != options_.end(); }

  /// Refuses options nobody read.
  void finish() const {
    for (const auto& [name, value] : options_) {
      TREESPEC_CHECK(known_.count(name) > 0, builder_, ": option must be one of ",
                     joined({known_.begin(), known_.end()}), "; got ", name);
    }
  }

 private:
  const OptionValue* find(std::string_view name) {
    known_.emplace(name);
    const auto at = options_.find(name);
    return at == options_.end() ? nullptr : &at->second;
  }

  static std::string joined(const std::vector<std::string_view>& names) {
    std::string all;
    for (const auto& name : names) all.append(all.empty() ? "" : ", ").append(name);
    return all;
  }

  template <class List>
  static std::string list_text(const List& list) {
    std::string all;
    for (const auto& item : list) all += (all.empty() ? "[" : ", ") + text_of(item);
    return all.empty() ? "[]" : all + "]";
  }
  template <class Number>
  static std::string text_of(const Number& number) {
    return detail::message(number);
  }
  static std::string text_of(const std::vector<double>& row) { return list_text(row); }

  static std::string text(const OptionValue& value) {
    if (const auto* whole = std::get_if<int64_t>(&value)) return detail::message(*whole);
    if (const auto* real = std::get_if<double>(&value)) return detail::message(*real);
    if (const auto* word = std::get_if<std::string>(&value))
      return detail::message('"', *word, '"');
    if (const auto* table = std::get_if<OptionTable>(&value)) return list_text(*table);
    return list_text(std::get<std::vector<int64_t>>(value));
  }

  std::string_view builder_;
  const BuilderOptions& options_;
  std::set<std::string, std::less<>> known_;
};

}  // namespace treespec
