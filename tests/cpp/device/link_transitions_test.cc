// SPDX-License-Identifier: Apache-2.0
// device::link_transitions gives the bits of treespec::link_transitions, in every order of threads,
// and best-first trees over its lists are the CPU's.
#include <cstring>
#include <limits>

#include "device/building.h"
#include "treespec/device/candidates.h"

namespace {

using namespace treespec;        // NOLINT
using namespace treespec::test;  // NOLINT

/// Lists of a batch before they are linked; `[batch, 1 + (depth - 1) * num_rows, width]`.
struct Lists {
  int32_t batch, depth, num_rows, width;
  std::vector<int32_t> token, owner;
  std::vector<float> logprob;

  int64_t num_lists() const { return 1 + int64_t{depth - 1} * num_rows; }
  int64_t num_owners() const { return int64_t{depth - 1} * num_rows; }

  /// Owners are tokens of the lists, with repeats, tokens that are in none, and nobody.
  static Lists random(std::mt19937& random, int32_t batch, int32_t depth, int32_t num_rows,
                      int32_t width) {
    Lists out{batch, depth, num_rows, width, {}, {}, {}};
    const auto size = static_cast<size_t>(batch * out.num_lists() * width);
    out.token.resize(size);
    out.logprob.resize(size);
    for (size_t at = 0; at < size; at += static_cast<size_t>(width)) {
      fill_list(random, width, out.token.data() + at, out.logprob.data() + at);
    }
    for (size_t i = 0; i < size; ++i) {  // padding may hold any token
      if (std::isinf(out.logprob[i])) out.token[i] = below(random, 4) - 2;
    }
    for (int64_t i = 0; i < batch * out.num_owners(); ++i) {
      constexpr int32_t kOdd[] = {-1, -2, INT32_MIN, INT32_MAX, 0};
      out.owner.push_back(below(random, 6) == 0 ? kOdd[below(random, 5)]
                                                : below(random, width + 22));
    }
    return out;
  }

  /// Linked by the CPU.
  Tables linked() const {
    Tables out{SourceKind::kTransitions, batch, depth, num_rows, width, {}, {}, {}};
    const auto size = static_cast<size_t>(batch * out.entries());
    out.token.resize(size);
    out.logprob.resize(size);
    out.next.resize(size);
    for (int32_t b = 0; b < batch; ++b) {
      const int64_t from = b * num_lists() * width, to = b * out.entries();
      link_transitions(token.data() + from, logprob.data() + from, owner.data() + b * num_owners(),
                       depth, num_rows, width, out.token.data() + to, out.logprob.data() + to,
                       out.next.data() + to);
    }
    return out;
  }
};

template <class T>
void check_bits(const std::vector<T>& ours, const std::vector<T>& expected) {
  CHECK_EQUAL(ours.size(), expected.size());
  CHECK(std::memcmp(ours.data(), expected.data(), ours.size() * sizeof(T)) == 0);
}

void check_lists(const Lists& lists, int32_t budget) {
  const Tables expected = lists.linked();
  const DeviceArray<int32_t> token(lists.token), owner(lists.owner);
  const DeviceArray<float> logprob(lists.logprob);
  const DeviceArray<int32_t> to_token(expected.token.size()), to_next(expected.token.size());
  const DeviceArray<float> to_logprob(expected.token.size());
  device::link_transitions({}, {lists.width, token.data(), logprob.data()}, owner.data(),
                           {lists.batch, lists.depth, lists.num_rows, lists.width, to_token.data(),
                            to_logprob.data(), to_next.data()});
  check_bits(to_token.to_host(), expected.token);
  check_bits(to_logprob.to_host(), expected.logprob);
  check_bits(to_next.to_host(), expected.next);

  const DeviceTrees trees(lists.batch, budget + 1, budget);
  const DeviceArray<int32_t> budgets(
      std::vector<int32_t>(static_cast<size_t>(lists.batch), budget));
  const DeviceArray<uint32_t> status(no_status(lists.batch));
  const device::ListSource source{
      SourceKind::kTransitions, lists.depth,       lists.num_rows, lists.width,
      to_token.data(),          to_logprob.data(), to_next.data()};
  device::build_best_first({}, source, lists.depth, {budgets.data()}, trees.view(), status.data());
  for (int32_t b = 0; b < lists.batch; ++b) {
    CHECK_EQUAL(status.to_host()[static_cast<size_t>(b)], device::kOk + 0u);
    const auto on_cpu = expected.source(b);
    trees.check_equal_to(build_tree(*make_builder("dtree", {}), "dtree", *on_cpu, budget), b);
  }
}

void equals_the_cpu() {
  std::mt19937 random(31);
  for (int i = 0; i < 300; ++i) {
    set_order(i % num_orders());
    check_lists(Lists::random(random, 1 + below(random, 3), 1 + below(random, 5),
                              1 + below(random, 9), 1 + below(random, 12)),
                1 + below(random, 40));
  }
}

void equals_the_cpu_with_many_rows_and_wide_lists() {
  std::mt19937 random(32);
  constexpr int32_t kSizes[][2] = {{1024, 1}, {1, 1024}, {33, 300}, {257, 16}, {64, 64}, {100, 41}};
  int order = 0;
  for (const auto& size : kSizes) {
    set_order(order++ % num_orders());
    check_lists(Lists::random(random, 2, 3, size[0], size[1]), 60);
  }
}

void wrong_arguments_are_refused() {
  int32_t token = 0;
  float logprob = 0.0f;
  const device::CandidateLists lists{8, &token, &logprob};
  const auto call = [&](int32_t batch, int32_t depth, int32_t rows, int32_t width) {
    device::link_transitions({}, lists, &token,
                             {batch, depth, rows, width, &token, &logprob, &token});
  };
  CHECK_THROWS(InvalidArgument, call(-1, 2, 2, 8));
  CHECK_THROWS(InvalidArgument, call(1 << 16, 2, 2, 8));
  CHECK_THROWS(InvalidArgument, call(1, 0, 2, 8));
  CHECK_THROWS(InvalidArgument, call(1, 2, 0, 8));
  CHECK_THROWS(InvalidArgument, call(1, 2, 1025, 8));
  CHECK_THROWS(InvalidArgument, call(1, 2, 2, 0));
  CHECK_THROWS(InvalidArgument, call(1, 2, 2, 7));
  CHECK_THROWS(InvalidArgument, device::link_transitions({}, lists, nullptr,
                                                         {1, 2, 2, 8, &token, &logprob, &token}));
  CHECK_THROWS(InvalidArgument, device::link_transitions({}, lists, &token, {1, 2, 2, 8}));
}

}  // namespace

int main() {
  if (!has_device()) return kSkipped;
  equals_the_cpu();
  equals_the_cpu_with_many_rows_and_wide_lists();
  wrong_arguments_are_refused();
  return 0;
}
