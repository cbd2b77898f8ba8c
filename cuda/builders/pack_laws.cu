// SPDX-License-Identifier: Apache-2.0
#include <simt.cuh>

#include "block_reduce.cuh"
#include "builders/pack_laws.cuh"

namespace treespec::device {
namespace {

/// Turns sizes of rows into their offsets, a block for all of them.
struct SumSizes {
  static constexpr int kThreads = 512;
  int64_t num_rows;
  int64_t* row_offset;

  TREESPEC_DEVICE void operator()() const {
    auto* scratch = reinterpret_cast<uint64_t*>(simt::shared_memory());
    uint64_t count = 0;
    for (int64_t first = 0; first < num_rows; first += kThreads) {
      const int64_t r = first + simt::thread();
      const uint64_t size = r < num_rows ? static_cast<uint64_t>(row_offset[r + 1]) : 0;
      const auto sum = simt::block_prefix_sum<kThreads>(size, scratch);
      if (r < num_rows) row_offset[r + 1] = static_cast<int64_t>(count + sum.before + size);
      count += sum.total;
    }
    if (simt::thread() == 0) row_offset[0] = 0;
  }
};

/// A node per block.
struct CopyLaw {
  static constexpr int kThreads = 128;
  LawStore store;
  int32_t max_nodes;
  LawOutput law;

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block_y();
    const int64_t row = int64_t{b} * max_nodes + simt::block();
    const int64_t begin = law.row_offset[row], size = law.row_offset[row + 1] - begin;
    if (size == 0) return;
    const char* memory = static_cast<const char*>(store.memory) + store.bytes_each * b;
    const int64_t node = reinterpret_cast<const int32_t*>(memory + store.node_of_id)[simt::block()];
    const auto* token = reinterpret_cast<const int32_t*>(memory + store.token) + node * store.width;
    const auto* prob = reinterpret_cast<const float*>(memory + store.prob) + node * store.width;
    for (int64_t i = simt::thread(); i < size; i += kThreads) {
      law.token[begin + i] = token[i];
      law.prob[begin + i] = prob[i];
    }
  }
};

}  // namespace

void pack_laws(Stream stream, const LawStore& store, const Trees& trees, const LawOutput& law) {
  constexpr size_t kScratchBytes = 128;
  simt::launch(stream, {trees.batch > 0 ? 1 : 0, 1, kScratchBytes},
               SumSizes{int64_t{trees.batch} * trees.max_nodes, law.row_offset});
  simt::launch(stream, {trees.max_nodes, trees.batch}, CopyLaw{store, trees.max_nodes, law});
}

}  // namespace treespec::device
