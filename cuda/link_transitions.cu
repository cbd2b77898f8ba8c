// SPDX-License-Identifier: Apache-2.0
// Links the lists of a conditional one-shot drafter: a block takes some entries of a level, sorts
// the owners of the next level in shared memory, and looks its tokens up by halving.
#include <cstdint>
#include <limits>
#include <simt.cuh>

#include "block_sort.cuh"
#include "checks.h"
#include "treespec/device/candidates.h"

namespace treespec::device {
namespace {

struct LinkLevel {
  static constexpr int kThreads = 256;
  static constexpr int32_t kEntries = 16 * kThreads;  // of a level, for each block

  CandidateLists lists;
  const int32_t* owner;
  TransitionLists linked;
  int32_t blocks_per_level;

  static size_t shared_bytes(int32_t num_rows) {
    return static_cast<size_t>(simt::padded_to_sort(num_rows)) * sizeof(uint64_t);
  }

  TREESPEC_DEVICE void operator()() const {
    const int64_t b = simt::block_y();
    const int32_t d = simt::block() / blocks_per_level;
    const int32_t entries = linked.num_rows * linked.width;
    const int32_t begin = simt::block() % blocks_per_level * kEntries;
    const int32_t end = entries - begin > kEntries ? begin + kEntries : entries;
    const auto* owners = reinterpret_cast<const uint64_t*>(simt::shared_memory());
    const bool last = d + 1 == linked.depth;
    if (!last) sort_owners(b, d);
    // Entries of the root's list are the first of depth 0; its other lists are nobody's.
    const int64_t lists_before = d == 0 ? 0 : 1 + int64_t{d - 1} * linked.num_rows;
    const int64_t lists_of_sequence = 1 + int64_t{linked.depth - 1} * linked.num_rows;
    const int64_t from = (b * lists_of_sequence + lists_before) * linked.width;
    const int64_t to = (b * linked.depth + d) * int64_t{entries};
    for (int32_t i = begin + simt::thread(); i < end; i += kThreads) {
      const bool there = d > 0 || i < linked.width;
      const int32_t token = there ? lists.token[from + i] : 0;
      linked.token[to + i] = token;
      linked.logprob[to + i] = there ? lists.logprob[from + i] : kLowest;
      linked.next[to + i] = there && !last ? row_of(token, owners) : -1;
    }
  }

 private:
  static constexpr float kLowest = -std::numeric_limits<float>::infinity();

  /// (owner, row) of the next level, rising; negative owners come last.
  TREESPEC_DEVICE void sort_owners(int64_t b, int32_t d) const {
    auto* words = reinterpret_cast<uint64_t*>(simt::shared_memory());
    const int32_t* of_level = owner + (b * (linked.depth - 1) + d) * linked.num_rows;
    const int32_t padded = simt::padded_to_sort(linked.num_rows);
    for (int32_t r = simt::thread(); r < padded; r += kThreads) {
      words[r] = r < linked.num_rows ? word(of_level[r], r) : UINT64_MAX;
    }
    simt::sort_block<kThreads>(words, padded, [](uint64_t x, uint64_t y) { return x < y; });
  }

  /// The first row of this owner, -1 if there is none.
  TREESPEC_DEVICE int32_t row_of(int32_t token, const uint64_t* owners) const {
    if (token < 0) return -1;
    int32_t low = 0, high = linked.num_rows;  // the first word not below is in [low, high]
    while (low < high) {
      const int32_t middle = low + (high - low) / 2;
      if (owners[middle] < word(token, 0)) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    const bool found = low < linked.num_rows && owners[low] >> 32 == static_cast<uint32_t>(token);
    return found ? static_cast<int32_t>(owners[low] & 0xFFFFFFFFu) : -1;
  }

  TREESPEC_DEVICE static uint64_t word(int32_t owner, int32_t row) {
    return static_cast<uint64_t>(static_cast<uint32_t>(owner)) << 32 | static_cast<uint32_t>(row);
  }
};

}  // namespace

void link_transitions(Stream stream, const CandidateLists& lists, const int32_t* owner,
                      const TransitionLists& linked) {
  constexpr const char* kWho = "link_transitions";
  check_batch(kWho, "linked.batch", linked.batch);
  TREESPEC_CHECK(linked.depth >= 1, kWho, ": linked.depth must be >= 1, got ", linked.depth);
  TREESPEC_CHECK(linked.num_rows >= 1 && linked.num_rows <= kMostTransitionRows, kWho,
                 ": linked.num_rows must be in [1, ", kMostTransitionRows, "], got ",
                 linked.num_rows);
  TREESPEC_CHECK(linked.width >= 1 && linked.width <= kMostCandidates, kWho,
                 ": linked.width must be in [1, ", kMostCandidates, "], got ", linked.width);
  TREESPEC_CHECK(lists.width == linked.width, kWho,
                 ": lists.width must be linked.width = ", linked.width, ", got ", lists.width);
  check_pointer(kWho, "lists.token", lists.token);
  check_pointer(kWho, "lists.logprob", lists.logprob);
  if (linked.depth > 1) check_pointer(kWho, "owner", owner);
  check_pointer(kWho, "linked.token", linked.token);
  check_pointer(kWho, "linked.logprob", linked.logprob);
  check_pointer(kWho, "linked.next", linked.next);
  const int32_t entries = linked.num_rows * linked.width;
  const int32_t blocks = (entries + LinkLevel::kEntries - 1) / LinkLevel::kEntries;
  simt::launch(
      stream,
      {int64_t{linked.depth} * blocks, linked.batch, LinkLevel::shared_bytes(linked.num_rows)},
      LinkLevel{lists, owner, linked, blocks});
}

}  // namespace treespec::device
