// SPDX-License-Identifier: Apache-2.0
// The caches of a graph: memory that grows by blocks of rows, bound to the graph, read and written
// by rows.
#pragma once

#include <cstdint>
#include <vector>

#include "treespec/array_view.h"
#include "treespec/exported_model.h"
#include "treespec/graph_runner.h"
#include "treespec/kv_commit.h"

namespace treespec::exported {

/// Throws InvalidArgument for more sequences than an engine takes.
void check_batch(const GraphRunner& runner, const ExportManifest& manifest, int64_t batch);

/// Bytes of a CacheMemory.
class CacheBlock {
 public:
  CacheBlock() = default;
  CacheBlock(CacheMemory& memory, int64_t bytes)
      : memory_(&memory), data_(memory.allocate(bytes)), bytes_(bytes) {}
  CacheBlock(CacheBlock&& other) noexcept { swap(other); }
  CacheBlock& operator=(CacheBlock&& other) noexcept {
    swap(other);
    return *this;
  }
  ~CacheBlock() {
    if (data_ != nullptr) memory_->release(data_);
  }
  char* data() const { return static_cast<char*>(data_); }
  int64_t bytes() const { return bytes_; }

 private:
  void swap(CacheBlock& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  CacheMemory* memory_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

/// `[batch, heads, capacity, width]` for every cache input of a graph.
class KvCache {
 public:
  /// Both are borrowed.
  KvCache(GraphRunner& runner, const ExportManifest& manifest, int64_t batch);

  int64_t capacity() const { return capacity_; }
  /// Forgets the rows of a sequence and has room for at least `rows`, and not much more if no other
  /// sequence has any: what a graph attends to is the whole capacity. Throws InvalidArgument when
  /// an engine has fewer.
  void restart(int64_t sequence, int64_t rows);
  /// The rows of a sequence are no longer needed.
  void release(int64_t sequence) { present_[static_cast<size_t>(sequence)] = false; }
  /// Throws std::runtime_error if the rows of a sequence were lost when memory ran out.
  void check_present(int64_t sequence) const;
  /// Room for at least `rows`, the rows kept.
  void reserve(int64_t rows);
  /// For a run of `num_rows` new rows each of the sequences `first`, ..., `first + count - 1`.
  void bind(int64_t first, int64_t count, int64_t num_rows);
  /// After a run bound so: its new rows `from`, ..., `from + num_rows - 1` of a sequence are cache
  /// rows `to`, ... In-place graphs have them where they were told to write.
  void store(int64_t sequence, int64_t from, int64_t to, int64_t num_rows);
  /// commit_kv of a sequence's rows.
  void commit(int64_t sequence, int64_t base, ArrayView<const int32_t> nodes);

 private:
  struct Buffer {
    const CacheInput* input;
    CacheBlock rows,
        fresh;  // fresh: the output of new_rows graphs, [count, heads, num_rows, width]
  };
  void allocate(int64_t capacity);
  void grow(int64_t capacity);
  int64_t rounded(int64_t rows) const;
  int64_t row_bytes(const Buffer& buffer) const;
  int64_t sequence_bytes(const Buffer& buffer) const;

  GraphRunner& runner_;
  CacheMemory& memory_;
  bool in_place_;
  ElementType type_;
  int64_t batch_;
  int64_t capacity_ = 0;
  std::vector<bool> present_;  // [batch] whether a sequence has rows that are needed
  std::vector<Buffer> buffers_;
  std::vector<KvBuffer> views_;
  int64_t bound_first_ = 0, bound_count_ = 0, bound_rows_ = 0;  // of the last bind
};

}  // namespace treespec::exported
