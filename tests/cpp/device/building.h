// SPDX-License-Identifier: Apache-2.0
// What the tests of builders share: random ranked lists, on the host and on the device, and trees
// of a batch that are compared with the CPU's, bit for bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"
#include "device/device_memory.h"
#include "treespec/device/tree_builder.h"
#include "treespec/error.h"
#include "treespec/tree_builder.h"

namespace treespec::test {

inline int32_t below(std::mt19937& random, int32_t limit) {
  return static_cast<int32_t>(random() % static_cast<uint32_t>(limit));
}

/// One ranked list. Kinds: ordinary, ties, certain tokens, padding, nearly equal (ties that only
/// rounding makes), nothing at all.
inline void fill_list(std::mt19937& random, int32_t width, int32_t* token, float* logprob) {
  std::exponential_distribution<float> falling(1.0f);
  const int32_t kind = below(random, 9);
  const float level = -falling(random);
  for (int32_t k = 0; k < width; ++k) {
    const float x = -falling(random);
    switch (kind) {
      case 0:
        logprob[k] = std::round(x);
        break;
      case 1:
        logprob[k] = k == 0 ? 0.0f : -std::numeric_limits<float>::infinity();
        break;
      case 2:
        logprob[k] = below(random, 3) == 0 ? -std::numeric_limits<float>::infinity() : x;
        break;
      case 3:
        logprob[k] = level + 1e-7f * x;
        break;
      case 4:
        logprob[k] = below(random, 4) == 0 ? 1e-4f : 0.0f;
        break;
      case 5:
        logprob[k] = 0.01f * x;
        break;
      default:
        logprob[k] = 4.0f * x;
    }
  }
  if (below(random, 40) == 0) std::fill_n(logprob, width, -std::numeric_limits<float>::infinity());
  std::vector<int32_t> all(static_cast<size_t>(width) + 20);
  std::iota(all.begin(), all.end(), 0);
  std::shuffle(all.begin(), all.end(), random);
  std::vector<int32_t> order(static_cast<size_t>(width));
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logprob[a] != logprob[b] ? logprob[a] > logprob[b] : all[a] < all[b];
  });
  std::vector<float> sorted;
  for (int32_t k = 0; k < width; ++k) {
    sorted.push_back(logprob[order[k]]);
    token[k] = all[order[k]];
  }
  std::copy(sorted.begin(), sorted.end(), logprob);
}

/// Tables of a batch, `[batch, depth, num_rows, width]`; num_rows is 1 for Marginals.
struct Tables {
  SourceKind kind;
  int32_t batch, depth, num_rows, width;
  std::vector<int32_t> token, next;
  std::vector<float> logprob;

  int64_t entries() const { return int64_t{depth} * num_rows * width; }

  static Tables random(std::mt19937& random, SourceKind kind, int32_t batch, int32_t depth,
                       int32_t num_rows, int32_t width) {
    Tables t{kind, batch, depth, num_rows, width, {}, {}, {}};
    const auto size = static_cast<size_t>(batch * t.entries());
    t.token.resize(size);
    t.logprob.resize(size);
    for (size_t at = 0; at < size; at += static_cast<size_t>(width)) {
      fill_list(random, width, t.token.data() + at, t.logprob.data() + at);
    }
    for (size_t i = 0; i < size; ++i) t.next.push_back(below(random, num_rows + 1) - 1);
    return t;
  }

  std::unique_ptr<CandidateSource> source(int32_t b) const {
    const int64_t at = b * entries();
    if (kind == SourceKind::kMarginals) {
      return std::make_unique<Marginals>(token.data() + at, logprob.data() + at, depth, width);
    }
    return std::make_unique<Transitions>(token.data() + at, logprob.data() + at, next.data() + at,
                                         depth, num_rows, width);
  }
};

/// The same on the device.
class DeviceTables {
 public:
  explicit DeviceTables(const Tables& t) : token_(t.token), next_(t.next), logprob_(t.logprob) {
    view_.kind = t.kind;
    view_.depth = t.depth;
    view_.num_rows = t.num_rows;
    view_.width = t.width;
    view_.token = token_.data();
    view_.logprob = logprob_.data();
    view_.next = t.kind == SourceKind::kMarginals ? nullptr : next_.data();
  }
  const device::ListSource& view() const { return view_; }

  /// Makes the log-probabilities scores.
  void score(const device::ScoreRule& rule, int32_t batch) {
    const bool marginals = view_.kind == SourceKind::kMarginals;
    const device::TransitionLists lists{batch,
                                        view_.depth,
                                        view_.num_rows,
                                        view_.width,
                                        token_.data(),
                                        logprob_.data(),
                                        marginals ? nullptr : next_.data()};
    device::score_lists({}, rule, lists, lists);
  }

 private:
  DeviceArray<int32_t> token_, next_;
  DeviceArray<float> logprob_;
  device::ListSource view_;
};

/// A random calibration, on both sides; often one that admits nothing below its first point.
class DeviceCalibration {
 public:
  DeviceCalibration(std::mt19937& random, int32_t num_points) : point_(points(random, num_points)) {
    view_ = {num_points, point_.data()};
  }
  const device::Calibration& view() const { return view_; }
  OptionTable option() const {
    OptionTable rows;
    const std::vector<double> values = point_.to_host();
    for (size_t i = 0; i < values.size(); i += 2) rows.push_back({values[i], values[i + 1]});
    return rows;
  }

 private:
  static std::vector<double> points(std::mt19937& random, int32_t num_points) {
    std::uniform_real_distribution<double> uniform(0.0, 1.0);
    std::vector<double> values;
    double q = 0.0, a = 0.0;
    for (int32_t i = 0; i < num_points; ++i) {
      q += (1.0 - q) * (0.01 + 0.9 * uniform(random));
      if (i > 0 || below(random, 3) > 0) a += (1.0 - a) * uniform(random);
      values.insert(values.end(), {q, a});
    }
    return values;
  }

  DeviceArray<double> point_;
  device::Calibration view_;
};

/// Random scores: the drafter's own, by a temperature, by a calibration, or by both.
class DeviceScores {
 public:
  explicit DeviceScores(std::mt19937& random)
      : calibration_(random, below(random, 2) == 0 ? 0 : 1 + below(random, 6)) {
    constexpr double kTemperatures[] = {1e-6, 0.1, 0.7, 3.0, 1e6};
    if (below(random, 2) == 0) rule_.temperature = kTemperatures[below(random, 5)];
    rule_.calibration = calibration_.view();
  }
  const device::ScoreRule& rule() const { return rule_; }
  void add_to(BuilderOptions& options) const {
    if (rule_.temperature != 1.0) options["score_temperature"] = rule_.temperature;
    if (rule_.calibration.num_points > 0) options["calibration"] = calibration_.option();
  }

 private:
  DeviceCalibration calibration_;
  device::ScoreRule rule_;
};

/// Trees of a batch, with room for draws.
class DeviceTrees {
 public:
  DeviceTrees(int32_t batch, int32_t max_nodes, int32_t max_draws)
      : nodes_(static_cast<size_t>(batch)),
        token_(size(batch, max_nodes)),
        parent_(size(batch, max_nodes)),
        depth_(size(batch, max_nodes)),
        offset_(size(batch, max_nodes + 1)),
        draw_(size(batch, max_draws)),
        logprob_(size(batch, max_nodes)) {
    view_ = {batch,          max_nodes,     max_draws,       nodes_.data(),  token_.data(),
             parent_.data(), depth_.data(), logprob_.data(), offset_.data(), draw_.data()};
  }
  const device::Trees& view() const { return view_; }

  /// Fails unless tree `b` is `expected`, laws aside.
  void check_equal_to(const TokenTree& expected, int32_t b) const {
    const auto n = static_cast<size_t>(expected.num_nodes());
    CHECK_EQUAL(nodes_.to_host()[static_cast<size_t>(b)], expected.num_nodes());
    check_row(token_.to_host(), b, expected.token, 0);
    check_row(parent_.to_host(), b, expected.parent, -1);
    check_row(depth_.to_host(), b, expected.depth, 0);
    std::vector<float> logprob = logprob_.to_host();
    logprob.erase(logprob.begin(), logprob.begin() + b * view_.max_nodes);
    CHECK(std::memcmp(logprob.data(), expected.path_logprob.data(), 4 * n) == 0);
    const std::vector<int32_t> offset = offset_.to_host(), draw = draw_.to_host();
    for (int32_t i = 0; i <= view_.max_nodes; ++i) {
      const auto at = static_cast<size_t>(std::min<int32_t>(i, expected.num_nodes()));
      CHECK_EQUAL(offset[static_cast<size_t>(b * (view_.max_nodes + 1) + i)],
                  expected.draw_offset[at]);
    }
    for (size_t i = 0; i < expected.draw.size(); ++i) {
      CHECK_EQUAL(draw[static_cast<size_t>(b * view_.max_draws) + i], expected.draw[i]);
    }
  }

 private:
  static size_t size(int32_t batch, int32_t each) { return static_cast<size_t>(batch * each); }
  void check_row(const std::vector<int32_t>& all, int32_t b, const std::vector<int32_t>& expected,
                 int32_t padding) const {
    for (int32_t i = 0; i < view_.max_nodes; ++i) {
      const bool there = i < static_cast<int32_t>(expected.size());
      CHECK_EQUAL(all[static_cast<size_t>(b * view_.max_nodes + i)],
                  there ? expected[static_cast<size_t>(i)] : padding);
    }
  }

  DeviceArray<int32_t> nodes_, token_, parent_, depth_, offset_, draw_;
  DeviceArray<float> logprob_;
  device::Trees view_;
};

/// Frontiers of a batch.
class DeviceFrontier {
 public:
  DeviceFrontier(int32_t batch, int32_t max_nodes)
      : count_(static_cast<size_t>(batch)),
        index_(size(batch, max_nodes)),
        parent_(size(batch, max_nodes)),
        token_(size(batch, max_nodes)),
        depth_(size(batch, max_nodes)),
        state_(size(batch, max_nodes)) {
    view_ = {max_nodes,     count_.data(), index_.data(), parent_.data(),
             token_.data(), depth_.data(), state_.data()};
  }
  const device::Frontier& view() const { return view_; }

  /// Fails unless the frontier of sequence `b` is `expected`.
  void check_equal_to(ArrayView<const FrontierNode> expected, int32_t b) const {
    CHECK_EQUAL(count_.to_host()[static_cast<size_t>(b)], expected.size());
    const auto all = {index_.to_host(), parent_.to_host(), token_.to_host(), depth_.to_host(),
                      state_.to_host()};
    for (int32_t i = 0; i < view_.max_nodes; ++i) {
      const FrontierNode node = i < expected.size() ? expected[i] : FrontierNode{-1, -1, 0, 0, 0};
      const int32_t fields[] = {node.index, node.parent, node.token, node.depth, node.state};
      const int32_t* field = fields;
      for (const auto& values : all) {
        CHECK_EQUAL(values[static_cast<size_t>(b * view_.max_nodes + i)], *field++);
      }
    }
  }

 private:
  static size_t size(int32_t batch, int32_t each) { return static_cast<size_t>(batch * each); }
  DeviceArray<int32_t> count_, index_, parent_, token_, depth_, state_;
  device::Frontier view_;
};

/// Rows of the frontier nodes of a sequence, out of the lists of the batch.
inline std::vector<CandidateRow> rows_of(const Tables& t, int32_t b,
                                         ArrayView<const FrontierNode> frontier) {
  std::vector<CandidateRow> rows;
  for (int64_t i = 0; i < frontier.size(); ++i) {
    const int64_t row = t.kind == SourceKind::kExpander    ? i
                        : t.kind == SourceKind::kMarginals ? frontier[i].depth
                        : frontier[i].depth == 0
                            ? 0
                            : int64_t{frontier[i].depth} * t.num_rows + frontier[i].state;
    const int64_t at = b * t.entries() + row * t.width;
    const bool leaf =
        t.kind == SourceKind::kTransitions && frontier[i].depth > 0 && frontier[i].state < 0;
    if (leaf) {
      rows.push_back({});
      continue;
    }
    rows.push_back({t.token.data() + at, t.logprob.data() + at,
                    t.kind == SourceKind::kMarginals ? nullptr : t.next.data() + at, t.width,
                    true});
  }
  return rows;
}

/// The laws of drawn trees.
class DeviceLaws {
 public:
  DeviceLaws(int32_t batch, int32_t max_nodes, int32_t width)
      : max_nodes_(max_nodes),
        row_(static_cast<size_t>(batch * max_nodes)),
        offset_(static_cast<size_t>(batch * max_nodes + 1)),
        token_(static_cast<size_t>(batch * max_nodes * width)),
        prob_(static_cast<size_t>(batch * max_nodes * width)) {}
  device::LawOutput view() const {
    return {row_.data(), offset_.data(), token_.data(), prob_.data()};
  }

  /// Fails unless every node of sequence `b` has the law that `expected` gives it.
  void check_equal_to(const TokenTree& expected, int32_t b) const {
    const auto row = row_.to_host();
    const auto offset = offset_.to_host();
    const auto token = token_.to_host();
    const auto prob = prob_.to_host();
    const DraftRows& rows = expected.draft_probs;
    for (int32_t i = 0; i < max_nodes_; ++i) {
      const auto at = static_cast<size_t>(b * max_nodes_ + i);
      const int32_t theirs =
          rows.empty() || i >= expected.num_nodes() ? -1 : rows.row_of_node[static_cast<size_t>(i)];
      CHECK_EQUAL(row[at], theirs < 0 ? -1 : static_cast<int32_t>(at));
      if (theirs < 0) {
        CHECK_EQUAL(offset[at], offset[at + 1]);
        continue;
      }
      const int64_t begin = rows.row_offset[static_cast<size_t>(theirs)];
      const int64_t size = rows.row_offset[static_cast<size_t>(theirs) + 1] - begin;
      CHECK_EQUAL(offset[at + 1] - offset[at], size);
      CHECK(std::memcmp(&token[static_cast<size_t>(offset[at])],
                        &rows.token[static_cast<size_t>(begin)],
                        4 * static_cast<size_t>(size)) == 0);
      CHECK(std::memcmp(&prob[static_cast<size_t>(offset[at])],
                        &rows.prob[static_cast<size_t>(begin)],
                        4 * static_cast<size_t>(size)) == 0);
    }
  }

 private:
  int32_t max_nodes_;
  DeviceArray<int32_t> row_;
  DeviceArray<int64_t> offset_;
  DeviceArray<int32_t> token_;
  DeviceArray<float> prob_;
};

inline std::vector<RoundKey> random_keys(std::mt19937& random, int32_t batch) {
  std::vector<RoundKey> keys;
  for (int32_t b = 0; b < batch; ++b) {
    keys.push_back({random(), static_cast<uint32_t>(random()), static_cast<uint32_t>(random())});
  }
  return keys;
}

inline std::vector<uint32_t> no_status(int32_t batch) {
  return std::vector<uint32_t>(static_cast<size_t>(batch), device::kOk);
}

/// Budgets in [0, most], the whole envelope among them.
inline std::vector<int32_t> random_budgets(std::mt19937& random, int32_t batch, int32_t most) {
  std::vector<int32_t> budget;
  for (int32_t b = 0; b < batch; ++b) {
    budget.push_back(below(random, 3) == 0 ? most : below(random, most + 1));
  }
  return budget;
}

}  // namespace treespec::test
