// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <simt.cuh>

#include "checks.h"
#include "tree.cuh"
#include "treespec/device/kv_commit.h"

namespace treespec::device {
namespace {

/// Where a row lies, whatever the buffer.
struct Row {
  int32_t page;
  int32_t in_page;
};

/// What a thread moves of each row: 16 bytes.
constexpr int64_t kColumnBytes = 16;

template <class T>
TREESPEC_DEVICE T load(const char* from) {
  return *reinterpret_cast<const T*>(from);
}
template <>
TREESPEC_DEVICE simt::Words4 load(const char* from) {
  return simt::load_16_bytes(from);
}
template <class T>
TREESPEC_DEVICE void store(char* to, const T& value) {
  *reinterpret_cast<T*>(to) = value;
}
TREESPEC_DEVICE void store(char* to, const simt::Words4& value) { simt::store_16_bytes(to, value); }

/// The rows of a path, by its depths.
struct Moves {
  const Row* from;
  const Row* to;
  int32_t begin;  ///< rows above stay where they are
  int32_t end;

  /// Moves sizeof(T) bytes of every row; `data` is their place in row 0 of page 0. Ids ascend along
  /// a path, hence nodes[d] >= d: row d is read as a source before it is written, and is the source
  /// of no later row. A thread that walks down its own bytes thus needs no other's barrier.
  template <class T>
  TREESPEC_DEVICE void apply(const KvBuffer& buffer, char* data) const {
    constexpr int32_t kInFlight = 8;  // loads before the first store; reading early is safe
    for (int32_t first = begin; first < end; first += kInFlight) {
      T value[kInFlight] = {};
      for (int32_t k = 0; k < kInFlight; ++k) {
        if (first + k < end) value[k] = load<T>(data + offset(buffer, from[first + k]));
      }
      for (int32_t k = 0; k < kInFlight; ++k) {
        if (first + k < end) store(data + offset(buffer, to[first + k]), value[k]);
      }
    }
  }

  TREESPEC_DEVICE static int64_t offset(const KvBuffer& buffer, const Row& row) {
    return row.page * buffer.page_stride + row.in_page * buffer.row_stride;
  }
};

/// Grid x: buffers, and blocks of a buffer; y: the batch.
struct MoveRows {
  static constexpr int kThreads = 128;
  KvCache cache;
  AcceptedPaths paths;
  const int32_t* prefix_length;
  int32_t* advanced;   // prefix_length again if it shall grow, else null
  uint32_t* arrivals;  // [batch], blocks that have read it
  uint32_t* status;
  int32_t blocks_of_buffer;

  static size_t shared_bytes(int32_t max_depth) {
    return 2 * (static_cast<size_t>(max_depth) + 1) * sizeof(Row) + sizeof(uint32_t);
  }

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block_y();
    auto* from = reinterpret_cast<Row*>(simt::shared_memory());
    Row* to = from + paths.max_depth + 1;
    auto* problem = reinterpret_cast<uint32_t*>(to + paths.max_depth + 1);
    // Read now, so that it arrives with the lengths and not after them.
    const KvBuffer buffer = cache.buffers[simt::block() / blocks_of_buffer];
    const int32_t base = prefix_length[b];
    const int32_t length = find_rows(b, base, from, to, problem);
    int32_t begin = 0;
    while (begin < length && from[begin].page == to[begin].page &&
           from[begin].in_page == to[begin].in_page) {
      ++begin;
    }
    if (begin < length) move(buffer, Moves{from, to, begin, length});
    if (advanced != nullptr && simt::thread() == 0) advance(b, base + length);
  }

 private:
  /// Fills `from` and `to` for the path of sequence `b`; returns its length, 0 if it must not move.
  TREESPEC_DEVICE int32_t find_rows(int b, int32_t base, Row* from, Row* to,
                                    uint32_t* problem) const {
    const int32_t* nodes = paths.nodes + int64_t{b} * (paths.max_depth + 1);
    const int32_t accepted = paths.num_accepted[b];
    const bool in_range = accepted >= -1 && accepted <= paths.max_depth;
    const int32_t length = in_range ? accepted + 1 : 0;
    if (simt::thread() == 0) *problem = kOk;
    simt::sync_block();
    if (simt::thread() == 0) {  // one thread reads the status: another block may be writing it
      simt::atomic_or(problem, status[b] | (in_range ? kOk : kOutOfBounds));
    }
    for (int32_t d = simt::thread(); d <= paths.max_depth; d += kThreads) {
      const int32_t node = nodes[d];  // all that are there: the loads need not wait for the length
      const int32_t previous = d == 0 ? -1 : nodes[d - 1];
      if (d >= length) break;
      if (node <= previous) simt::atomic_or(problem, uint32_t{kBadTree});
      const bool found =
          find_row(b, int64_t{base} + node, from + d) && find_row(b, int64_t{base} + d, to + d);
      if (!found) simt::atomic_or(problem, uint32_t{kOutOfBounds});
    }
    simt::sync_block();
    if (*problem == kOk) return length;
    if (simt::thread() == 0) report(status, b, *problem);
    return 0;
  }

  /// False if the cache has no such row.
  TREESPEC_DEVICE bool find_row(int b, int64_t row, Row* out) const {
    if (row < 0 || row >= int64_t{cache.page_size} * cache.max_pages) return false;
    const int64_t page_of_sequence = row / cache.page_size;
    out->page = cache.block_table == nullptr
                    ? b
                    : cache.block_table[int64_t{b} * cache.max_pages + page_of_sequence];
    out->in_page = static_cast<int32_t>(row % cache.page_size);
    return out->page >= 0 && out->page < cache.num_pages;
  }

  TREESPEC_DEVICE void move(const KvBuffer& buffer, const Moves& moves) const {
    const int64_t ragged = static_cast<int64_t>(reinterpret_cast<uintptr_t>(buffer.data)) |
                           buffer.page_stride | buffer.outer_stride | buffer.row_stride |
                           buffer.row_bytes;
    const int64_t columns = (buffer.row_bytes + kColumnBytes - 1) / kColumnBytes;
    const int64_t step = int64_t{blocks_of_buffer} * kThreads;
    int64_t i = simt::block() % blocks_of_buffer * kThreads + simt::thread();
    for (; i < buffer.outer * columns; i += step) {
      const int64_t column = i % columns * kColumnBytes;
      char* data = static_cast<char*>(buffer.data) + i / columns * buffer.outer_stride + column;
      const int64_t left = buffer.row_bytes - column;
      const int64_t bytes = left < kColumnBytes ? left : kColumnBytes;
      if (ragged % 16 == 0) {
        moves.apply<simt::Words4>(buffer, data);
      } else if (ragged % 4 == 0) {
        for (int64_t k = 0; k < bytes; k += 4) moves.apply<uint32_t>(buffer, data + k);
      } else {
        for (int64_t k = 0; k < bytes; ++k) moves.apply<uint8_t>(buffer, data + k);
      }
    }
  }

  /// The last block of the sequence writes, when all others have read the length.
  TREESPEC_DEVICE void advance(int b, int32_t length) const {
    simt::fence();
    const auto others = static_cast<uint32_t>(simt::num_blocks() - 1);
    if (simt::atomic_add(arrivals + b, 1u) != others) return;
    advanced[b] = length;
    arrivals[b] = 0;
  }
};

void launch_commit(const char* who, Stream stream, const KvCache& cache, const AcceptedPaths& paths,
                   const int32_t* prefix_length, int32_t* advanced, uint32_t* arrivals,
                   uint32_t* status) {
  // A path is not longer than a tree, and its rows' places fit shared memory.
  TREESPEC_CHECK(paths.max_depth >= 0 && paths.max_depth < kMaxNodes, who,
                 ": paths.max_depth must be in [0, ", kMaxNodes, "), got ", paths.max_depth);
  check_batch(who, "paths.batch", paths.batch);
  TREESPEC_CHECK(cache.num_buffers >= 1, who, ": cache.num_buffers must be >= 1, got ",
                 cache.num_buffers);
  TREESPEC_CHECK(cache.max_outer >= 1, who, ": cache.max_outer must be >= 1, got ",
                 cache.max_outer);
  TREESPEC_CHECK(cache.max_row_bytes >= 1, who, ": cache.max_row_bytes must be >= 1, got ",
                 cache.max_row_bytes);
  TREESPEC_CHECK(cache.page_size >= 1, who, ": cache.page_size must be >= 1, got ",
                 cache.page_size);
  TREESPEC_CHECK(cache.max_pages >= 1, who, ": cache.max_pages must be >= 1, got ",
                 cache.max_pages);
  TREESPEC_CHECK(cache.block_table != nullptr || cache.max_pages == 1, who,
                 ": cache.max_pages must be 1 without a block table, got ", cache.max_pages);
  check_pointer(who, "cache.buffers", cache.buffers);
  check_pointer(who, "paths.nodes", paths.nodes);
  check_pointer(who, "paths.num_accepted", paths.num_accepted);
  check_pointer(who, "prefix_length", prefix_length);
  check_pointer(who, "status", status);

  constexpr int64_t kMaxBlocksOfBuffer = 1024;
  const int64_t columns = (cache.max_row_bytes + kColumnBytes - 1) / kColumnBytes;
  const int64_t blocks = (cache.max_outer * columns + MoveRows::kThreads - 1) / MoveRows::kThreads;
  const auto blocks_of_buffer = static_cast<int32_t>(std::min(blocks, kMaxBlocksOfBuffer));
  simt::launch(stream,
               {int64_t{cache.num_buffers} * blocks_of_buffer, paths.batch,
                MoveRows::shared_bytes(paths.max_depth)},
               MoveRows{cache, paths, prefix_length, advanced, arrivals, status, blocks_of_buffer});
}

}  // namespace

void commit_kv(Stream stream, const KvCache& cache, const AcceptedPaths& paths,
               const int32_t* prefix_length, uint32_t* status) {
  launch_commit("commit_kv", stream, cache, paths, prefix_length, nullptr, nullptr, status);
}

size_t commit_kv_workspace_bytes(int32_t batch) {
  return static_cast<size_t>(batch) * sizeof(uint32_t);
}

void commit_kv_and_advance(Stream stream, const KvCache& cache, const AcceptedPaths& paths,
                           int32_t* prefix_length, void* workspace, size_t workspace_bytes,
                           uint32_t* status) {
  constexpr const char* kWho = "commit_kv_and_advance";
  check_batch(kWho, "paths.batch", paths.batch);
  check_workspace(kWho, workspace, workspace_bytes, commit_kv_workspace_bytes(paths.batch));
  launch_commit(kWho, stream, cache, paths, prefix_length, prefix_length,
                static_cast<uint32_t*>(workspace), status);
}

}  // namespace treespec::device
