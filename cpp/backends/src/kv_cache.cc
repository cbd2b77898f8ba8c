// SPDX-License-Identifier: Apache-2.0
#include "kv_cache.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "element_type.h"
#include "treespec/error.h"

namespace treespec::exported {
namespace {

// Growing copies every row once a block, which the forwards in between read a hundred times.
constexpr int64_t kBlockRows = 128;

}  // namespace

void check_batch(const GraphRunner& runner, const ExportManifest& manifest, int64_t batch) {
  const int64_t limit = runner.limits().max_batch;
  TREESPEC_CHECK(limit == 0 || batch <= limit,
                 "ExportedModel: texts at a time must be at most the ", limit,
                 " that the engine of '", manifest.folder, "' was built for, got ", batch);
}

KvCache::KvCache(GraphRunner& runner, const ExportManifest& manifest, int64_t batch)
    : runner_(runner),
      memory_(runner.memory()),
      in_place_(manifest.cache_style == CacheStyle::kInPlace),
      type_(element_type(manifest.dtype)),
      batch_(batch),
      present_(static_cast<size_t>(batch), false) {
  for (const CacheInput& input : manifest.cache) buffers_.push_back({&input, {}, {}});
  views_.resize(buffers_.size());
}

int64_t KvCache::row_bytes(const Buffer& buffer) const {
  return buffer.input->width * size_of(type_);
}

int64_t KvCache::sequence_bytes(const Buffer& buffer) const {
  return buffer.input->heads * capacity_ * row_bytes(buffer);
}

int64_t KvCache::rounded(int64_t rows) const {
  const int64_t fixed = runner_.limits().cache_rows;
  TREESPEC_CHECK(fixed == 0 || rows <= fixed, "KvCache: rows must be at most the engine's ", fixed,
                 ", got ", rows);
  return fixed > 0 ? fixed : (rows + kBlockRows - 1) / kBlockRows * kBlockRows;
}

void KvCache::restart(int64_t sequence, int64_t rows) {
  release(sequence);
  const bool alone = std::find(present_.begin(), present_.end(), true) == present_.end();
  if (alone) {
    allocate(rounded(rows));
  } else {
    reserve(rows);
    for (const Buffer& buffer : buffers_) {
      memory_.clear(buffer.rows.data() + sequence * sequence_bytes(buffer), sequence_bytes(buffer));
    }
  }
  present_[static_cast<size_t>(sequence)] = true;
}

void KvCache::check_present(int64_t sequence) const {
  if (present_[static_cast<size_t>(sequence)]) return;
  throw std::runtime_error(
      "KvCache: the rows of the sequence were lost when memory ran out; start a new one");
}

/// Zeroed rows for all sequences: what the last text left may be infinite, and must not be, hidden
/// or not.
void KvCache::allocate(int64_t capacity) {
  capacity_ = bound_count_ = 0;
  for (Buffer& buffer : buffers_) {
    const int64_t bytes = batch_ * buffer.input->heads * capacity * row_bytes(buffer);
    if (buffer.rows.bytes() < bytes) {
      buffer.rows = {};  // before the new one is there: never both
      buffer.rows = CacheBlock(memory_, bytes);
    } else {
      memory_.clear(buffer.rows.data(), bytes);
    }
  }
  capacity_ = capacity;
}

void KvCache::reserve(int64_t rows) {
  if (rows > capacity_) grow(rounded(rows));
}

/// One buffer after the other, so that no more than one of them is there twice.
void KvCache::grow(int64_t capacity) {
  std::vector<bool> present(present_.size(), false);
  present.swap(present_);  // nobody's rows are there if memory runs out
  const int64_t old = std::exchange(capacity_, 0);
  bound_count_ = 0;
  for (Buffer& buffer : buffers_) {
    const int64_t slices = batch_ * buffer.input->heads, bytes = row_bytes(buffer);
    CacheBlock larger(memory_, slices * capacity * bytes);
    memory_.copy(larger.data(), capacity * bytes, buffer.rows.data(), old * bytes, old * bytes,
                 slices);
    buffer.rows = std::move(larger);
  }
  capacity_ = capacity;
  present.swap(present_);
}

void KvCache::bind(int64_t first, int64_t count, int64_t num_rows) {
  const bool moved = first != bound_first_ || count != bound_count_;
  const bool resized = moved || num_rows != bound_rows_;
  bound_count_ = 0;  // neither one nor the other if memory runs out on the way
  for (Buffer& buffer : buffers_) {
    const auto& [name, output, heads, width] = *buffer.input;
    char* rows = buffer.rows.data() + first * sequence_bytes(buffer);
    const Shape shape{count, heads, capacity_, width};
    if (moved) runner_.bind_input(name.c_str(), rows, type_, shape);
    if (in_place_) {
      if (moved) runner_.bind_output(output.c_str(), rows, type_, shape);
    } else if (resized) {
      const Shape fresh{count, heads, num_rows, width};
      const int64_t bytes = fresh.num_elements() * size_of(type_);
      if (buffer.fresh.bytes() < bytes) buffer.fresh = CacheBlock(memory_, bytes);
      runner_.bind_output(output.c_str(), buffer.fresh.data(), type_, fresh);
    }
  }
  bound_first_ = first, bound_count_ = count, bound_rows_ = num_rows;
}

void KvCache::store(int64_t sequence, int64_t from, int64_t to, int64_t num_rows) {
  if (in_place_) return;
  for (Buffer& buffer : buffers_) {
    const int64_t bytes = row_bytes(buffer), heads = buffer.input->heads;
    const int64_t first = (sequence - bound_first_) * heads * bound_rows_ + from;
    memory_.copy(buffer.rows.data() + sequence * sequence_bytes(buffer) + to * bytes,
                 capacity_ * bytes, buffer.fresh.data() + first * bytes, bound_rows_ * bytes,
                 num_rows * bytes, heads);
  }
}

void KvCache::commit(int64_t sequence, int64_t base, ArrayView<const int32_t> nodes) {
  for (size_t i = 0; i < buffers_.size(); ++i) {
    const Buffer& buffer = buffers_[i];
    const int64_t bytes = row_bytes(buffer);
    views_[i] = {buffer.rows.data() + sequence * sequence_bytes(buffer),
                 buffer.input->heads,
                 capacity_ * bytes,
                 bytes,
                 bytes,
                 capacity_};
  }
  memory_.commit(views_, base, nodes);
}

}  // namespace treespec::exported
