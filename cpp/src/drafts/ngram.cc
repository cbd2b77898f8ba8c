// SPDX-License-Identifier: Apache-2.0
// NgramIndex and NgramDraft: prompt lookup as a tree.
#include <algorithm>
#include <cmath>

#include "drafts/growth.h"
#include "treespec/drafts.h"
#include "treespec/error.h"

namespace treespec {
namespace {

constexpr size_t kFirstSlots = 64;
constexpr int32_t kLongestNgram = 16;
constexpr double kRecencyUnit = 100.0;  // tokens of age that multiply a hit's weight by `recency`

uint64_t hash_tokens(const int32_t* token, int32_t n) {
  uint64_t h = 0x9E3779B97F4A7C15u;
  for (int32_t i = 0; i < n; ++i) {
    h = (h ^ static_cast<uint32_t>(token[i])) * 0xFF51AFD7ED558CCDu;
    h ^= h >> 32;
  }
  return h;
}

}  // namespace

NgramIndex::NgramIndex(const NgramOptions& options) : options_(options) {
  TREESPEC_CHECK(options.min_ngram >= 1, "NgramIndex: min_ngram must be at least 1, got ",
                 options.min_ngram);
  TREESPEC_CHECK(options.max_ngram >= options.min_ngram && options.max_ngram <= kLongestNgram,
                 "NgramIndex: max_ngram must be in [min_ngram, ", kLongestNgram, "], got ",
                 options.max_ngram);
  TREESPEC_CHECK(options.kappa >= 0.0 && std::isfinite(options.kappa),
                 "NgramIndex: kappa must be finite and at least 0, got ", options.kappa);
  TREESPEC_CHECK(options.max_hits >= 1, "NgramIndex: max_hits must be at least 1, got ",
                 options.max_hits);
  TREESPEC_CHECK(options.recency > 0.0 && options.recency <= 1.0,
                 "NgramIndex: recency must be in (0, 1], got ", options.recency);
  clear();
}

void NgramIndex::clear() {
  text_.clear();
  tables_.assign(static_cast<size_t>(options_.max_ngram - options_.min_ngram + 1), {});
  for (Table& table : tables_) table.slot.assign(kFirstSlots, -1);
}

/// Slot of the n-gram that ends at `end`, or the free slot where it belongs.
size_t NgramIndex::find_slot(const Table& table, int32_t n, int32_t end) const {
  const int32_t* wanted = text_.data() + end + 1 - n;
  const size_t mask = table.slot.size() - 1;
  size_t slot = hash_tokens(wanted, n) & mask;
  while (table.slot[slot] >= 0 &&
         !std::equal(wanted, wanted + n, text_.data() + table.slot[slot] + 1 - n)) {
    slot = (slot + 1) & mask;
  }
  return slot;
}

void NgramIndex::grow(Table& table, int32_t n) const {
  Table larger;
  larger.slot.assign(table.slot.size() * 2, -1);
  for (const int32_t end : table.slot) {
    if (end >= 0) larger.slot[find_slot(larger, n, end)] = end;
  }
  table.slot = std::move(larger.slot);
}

void NgramIndex::append(ArrayView<const int32_t> token_ids) {
  drafts::check_append("NgramIndex::append", size(), token_ids);
  for (const int32_t token : token_ids) {
    text_.push_back(token);
    const auto end = static_cast<int32_t>(text_.size()) - 1;
    for (int32_t n = options_.min_ngram; n <= options_.max_ngram; ++n) {
      Table& table = tables_[static_cast<size_t>(n - options_.min_ngram)];
      table.previous.push_back(-1);
      if (end + 1 < n) continue;
      const size_t slot = find_slot(table, n, end);
      table.previous.back() = table.slot[slot];
      if (table.slot[slot] < 0) ++table.used;
      table.slot[slot] = end;
      if (2 * static_cast<size_t>(table.used) > table.slot.size()) grow(table, n);
    }
  }
}

/// Ends of the earlier occurrences of the longest n-gram that has any, latest first.
std::vector<int32_t> NgramIndex::latest_hits() const {
  std::vector<int32_t> hits;
  for (int32_t n = options_.max_ngram; n >= options_.min_ngram && hits.empty(); --n) {
    if (size() < n) continue;
    const auto& previous = tables_[static_cast<size_t>(n - options_.min_ngram)].previous;
    for (int32_t end = previous.back();
         end >= 0 && static_cast<int32_t>(hits.size()) < options_.max_hits;
         end = previous[static_cast<size_t>(end)]) {
      hits.push_back(end);
    }
  }
  return hits;
}

ScoredTrie NgramIndex::draft(int32_t max_depth, int32_t node_budget) const {
  drafts::check_request("NgramIndex::draft", max_depth, node_budget);
  ScoredTrie trie;
  std::vector<int32_t> hits = text_.empty() ? std::vector<int32_t>{} : latest_hits();
  if (hits.empty()) return trie;
  const auto last = static_cast<int32_t>(size()) - 1;

  // A node is the run of hits that continue through it; expanding a node sorts its run by the next
  // token, so that every child is a run again.
  struct Hit {
    int32_t token, end;
    double weight;
  };
  std::vector<Hit> runs;
  for (const int32_t end : hits) {
    const double age = static_cast<double>(last - end) / kRecencyUnit;
    runs.push_back({0, end, options_.recency == 1.0 ? 1.0 : std::pow(options_.recency, age)});
  }
  struct Run {
    size_t begin, end;
    double weight;
  };
  const auto children = [&](const Run& run, int32_t depth, auto emit) {
    for (size_t i = run.begin; i < run.end; ++i) {
      const int32_t period = last - runs[i].end;
      runs[i].token = text_[static_cast<size_t>(runs[i].end + 1 + depth % period)];
    }
    std::sort(runs.begin() + static_cast<ptrdiff_t>(run.begin),
              runs.begin() + static_cast<ptrdiff_t>(run.end), [](const Hit& a, const Hit& b) {
                return a.token != b.token ? a.token < b.token : a.end > b.end;
              });
    for (size_t i = run.begin; i < run.end;) {
      Run child{i, i, 0.0};
      for (; i < run.end && runs[i].token == runs[child.begin].token; ++i) {
        child.weight += runs[i].weight;
      }
      child.end = i;
      emit(runs[child.begin].token, child.weight / (run.weight + options_.kappa), child);
    }
  };
  Run all{0, runs.size(), 0.0};
  for (const Hit& hit : runs) all.weight += hit.weight;
  drafts::grow_trie(all, max_depth, node_budget, 0.0, children, trie);
  return trie;
}

}  // namespace treespec
