// SPDX-License-Identifier: Apache-2.0
// Trees, masks, KV commits and random numbers, through the public headers alone.
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "treespec/error.h"
#include "treespec/kv_commit.h"
#include "treespec/rng.h"
#include "treespec/stats.h"
#include "treespec/token_tree.h"
#include "treespec/tree_mask.h"

namespace {

using namespace treespec;  // NOLINT
using Ints = std::vector<int32_t>;

/// A random deterministic tree; siblings get distinct tokens.
TokenTree random_tree(std::mt19937& random, int32_t num_nodes) {
  TokenTree tree = root_tree(7);
  std::vector<int32_t> num_children(static_cast<size_t>(num_nodes), 0);
  for (int32_t i = 1; i < num_nodes; ++i) {
    const auto parent = static_cast<int32_t>(random() % static_cast<uint32_t>(i));
    tree.parent.push_back(parent);
    tree.token.push_back(num_children[parent]++);
    tree.path_logprob.push_back(tree.path_logprob[parent] - 1.0f);
  }
  tree.depth.clear();
  tree.draw_offset.clear();
  tree.draw.clear();
  complete_tree(tree);
  return tree;
}

bool is_ancestor_or_self(const TokenTree& tree, int32_t ancestor, int32_t node) {
  while (node > ancestor) node = tree.parent[node];
  return node == ancestor;
}

void a_completed_tree_is_sound_and_a_broken_one_is_not() {
  std::mt19937 random(1);
  for (const int32_t size : {1, 2, 33, 70}) {
    const TokenTree tree = random_tree(random, size);
    CHECK(check_tree(tree).empty());
    for (int32_t i = 1; i < size; ++i) {
      CHECK_EQUAL(tree.depth[i], tree.depth[tree.parent[i]] + 1);
      CHECK_EQUAL(tree.find_child(tree.parent[i], tree.token[i]), i);
    }
    CHECK_EQUAL(tree.find_child(0, 12345), -1);
  }
  TokenTree broken = random_tree(random, 9);
  broken.parent[3] = 5;
  CHECK(!check_tree(broken).empty());
  complete_tree(broken);
  CHECK(!check_tree(broken).empty());
  CHECK_THROWS(InvalidArgument, require_sound("core_test", broken));
  for (const Proposal proposal : {Proposal::kDeterministic, Proposal::kIid,
                                  Proposal::kWithoutReplacement, Proposal::kTopPlusOne}) {
    CHECK(parse_proposal(proposal_name(proposal)) == proposal);
  }
  CHECK_THROWS(InvalidArgument, parse_proposal("no_such_mode"));
}

void every_mask_format_says_the_same() {
  std::mt19937 random(2);
  constexpr int32_t kPrefix = 5;
  for (const int32_t size : {1, 2, 32, 33, 65}) {
    const TokenTree tree = random_tree(random, size);
    const int32_t words = (size + 31) / 32;
    const std::vector<uint32_t> bits = ancestor_mask(tree.parent);
    CHECK_EQUAL(bits.size(), static_cast<size_t>(size * words));
    const Intervals intervals = preorder_intervals(tree.parent);
    std::vector<uint8_t> visible(static_cast<size_t>(size * (kPrefix + size)), 9);
    bool_mask(tree.parent, tree.depth, 0, kPrefix, 0, visible.data());
    std::vector<float> added(visible.size(), 9.0f);
    additive_mask(tree.parent, tree.depth, 0, kPrefix, 0, DType::kFloat32, added.data());
    for (int32_t i = 0; i < size; ++i) {
      for (int32_t j = -kPrefix; j < size; ++j) {
        const bool expected = j < 0 || (j <= i && is_ancestor_or_self(tree, j, i));
        const size_t at = static_cast<size_t>(i * (kPrefix + size) + kPrefix + j);
        CHECK_EQUAL(visible[at], expected ? 1 : 0);
        CHECK(expected ? added[at] == 0.0f : added[at] < -1e38f);
        if (j < 0) continue;
        CHECK_EQUAL((bits[i * words + j / 32] >> (j % 32) & 1u) != 0, expected);
        const int32_t rank = intervals.rank[i];
        CHECK_EQUAL(intervals.rank[j] <= rank && rank < intervals.end[j], expected);
      }
    }
    const Ints positions = tree_positions(tree.depth, kPrefix);
    for (int32_t i = 0; i < size; ++i) CHECK_EQUAL(positions[i], kPrefix + tree.depth[i]);
  }
}

void committed_rows_move_bit_for_bit() {
  constexpr int64_t kHeads = 3, kRows = 12, kRowBytes = 10, kRowStride = 16;
  std::vector<uint8_t> memory(kHeads * kRows * kRowStride);
  for (size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<uint8_t>(i * 31 + i / 251);
  const std::vector<uint8_t> before = memory;
  KvBuffer buffer{memory.data(), kHeads, kRows * kRowStride, kRowStride, kRowBytes, kRows};
  const Ints nodes{0, 2, 3, 7};
  constexpr int64_t kBase = 4;
  commit_kv({&buffer, 1}, kBase, nodes);
  for (int64_t head = 0; head < kHeads; ++head) {
    for (int64_t row = 0; row < kRows; ++row) {
      const bool moved = row >= kBase && row < kBase + static_cast<int64_t>(nodes.size());
      const int64_t from = moved ? kBase + nodes[row - kBase] : row;
      const uint8_t* now = memory.data() + (head * kRows + row) * kRowStride;
      const uint8_t* was = before.data() + (head * kRows + from) * kRowStride;
      CHECK(std::memcmp(now, was, kRowBytes) == 0);
      const uint8_t* gap = before.data() + (head * kRows + row) * kRowStride;
      CHECK(std::memcmp(now + kRowBytes, gap + kRowBytes, kRowStride - kRowBytes) == 0);
    }
  }
  const std::vector<uint8_t> after = memory;
  CHECK_THROWS(InvalidArgument, commit_kv({&buffer, 1}, kBase, Ints{0, 3, 2}));
  CHECK_THROWS(InvalidArgument, commit_kv({&buffer, 1}, kBase, Ints{0, 8}));
  CHECK(memory == after);
}

void philox_gives_the_published_answers() {
  // Known answers of the Random123 distribution for philox4x32, 10 rounds.
  const auto equals = [](const PhiloxWords& words, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    return words.word[0] == a && words.word[1] == b && words.word[2] == c && words.word[3] == d;
  };
  CHECK(equals(philox(0, 0, 0, 0, 0), 0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  CHECK(equals(philox(~0u, ~0u, ~0u, ~0u, ~uint64_t{0}), 0x408f276du, 0x41c83b0eu, 0xa20bc7c6u,
               0x6d5451fdu));
  CHECK(equals(philox(0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u, 0x299f31d0a4093822u),
               0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u));
}

void uniforms_stay_below_one_and_purposes_differ() {
  double sum = 0.0;
  constexpr int kDraws = 20000;
  for (uint32_t i = 0; i < kDraws; ++i) {
    const RoundKey key{5, 6, i};
    const double u = uniform(key, Purpose::kAccept, 1, 2);
    CHECK(u >= 0.0 && u < 1.0);
    CHECK(u != uniform(key, Purpose::kSample, 1, 2));
    sum += u;
  }
  CHECK(sum / kDraws > 0.49 && sum / kDraws < 0.51);
  CHECK(child_slot(0, 1) != child_slot(0, 2));
}

void statistics_add_up() {
  Stats a, b;
  a.rounds = 2;
  a.emitted_tokens = 5;
  a.accepted_by_depth = {2, 1};
  b.rounds = 2;
  b.emitted_tokens = 3;
  b.accepted_by_depth = {1, 0, 4};
  b.seconds[static_cast<int>(Step::kTarget)] = 0.5;
  a += b;
  CHECK_EQUAL(a.block_efficiency(), 2.0);
  CHECK((a.accepted_by_depth == std::vector<int64_t>{3, 1, 4}));
  CHECK_EQUAL(a.tokens_per_second(), 16.0);
  CHECK_EQUAL(Stats().block_efficiency() + Stats().tokens_per_second(), 0.0);
  CHECK_EQUAL(std::string(step_name(Step::kVerify)), "verify");
}

}  // namespace

int main() {
  a_completed_tree_is_sound_and_a_broken_one_is_not();
  every_mask_format_says_the_same();
  committed_rows_move_bit_for_bit();
  philox_gives_the_published_answers();
  uniforms_stay_below_one_and_purposes_differ();
  statistics_add_up();
  return 0;
}
