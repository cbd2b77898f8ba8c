// SPDX-License-Identifier: Apache-2.0
// What a runtime has to implement to run exported models: tensors by name, and memory for caches.
// Everything else (masks, cache rows, drafting) is written once, on top of it.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "treespec/array_view.h"
#include "treespec/kv_commit.h"

namespace treespec {

enum class ElementType : uint8_t { kFloat32, kFloat16, kBFloat16, kInt64, kBool };

/// Bytes of one element.
constexpr int64_t size_of(ElementType type) {
  return type == ElementType::kInt64     ? 8
         : type == ElementType::kFloat32 ? 4
         : type == ElementType::kBool    ? 1
                                         : 2;
}

/// Sizes of up to four axes.
struct Shape {
  static constexpr int kMaxRank = 4;

  Shape(std::initializer_list<int64_t> sizes) : rank(static_cast<int>(sizes.size())) {
    int axis = 0;
    for (const int64_t one : sizes) size[axis++] = one;
  }
  int64_t num_elements() const {
    int64_t product = 1;
    for (int axis = 0; axis < rank; ++axis) product *= size[axis];
    return product;
  }

  int rank;
  int64_t size[kMaxRank] = {};
};

/// What a graph was built for; 0: anything.
struct GraphLimits {
  int64_t cache_rows = 0;  ///< rows of every cache, exactly
  int64_t max_rows = 0;    ///< most rows of a sequence in a forward
  int64_t max_batch = 0;   ///< most sequences of a forward
};

/// Where caches live. Calls take effect in the order of the runner's runs.
class CacheMemory {
 public:
  virtual ~CacheMemory() = default;
  /// Zeroed: what a mask hides is multiplied by 0, and must not be NaN.
  virtual void* allocate(int64_t bytes) = 0;
  virtual void release(void* data) noexcept = 0;
  virtual void clear(void* data, int64_t bytes) = 0;
  /// Copies `count` runs of `bytes`, whose starts are the strides apart; they do not overlap.
  virtual void copy(void* to, int64_t to_stride, const void* from, int64_t from_stride,
                    int64_t bytes, int64_t count) = 0;
  /// commit_kv.
  virtual void commit(ArrayView<const KvBuffer> buffers, int64_t base,
                      ArrayView<const int32_t> nodes) = 0;
};

/// Runs a graph for one owner and holds the memory of its inputs and outputs. One thread at a time.
/// What has been given or bound stays for the runs that follow, until it is given or bound anew.
class GraphRunner {
 public:
  virtual ~GraphRunner() = default;
  virtual GraphLimits limits() const { return {}; }
  virtual CacheMemory& memory() = 0;
  /// How many rows to run for so many: the sizes that an engine is tuned for. Caches have room.
  virtual int64_t padded_rows(int64_t rows) const { return rows; }

  /// Host memory of an input, to be filled before the next run; what it held is lost.
  virtual void* input(const char* name, ElementType type, const Shape& shape) = 0;
  /// Wants an output of that shape. Outputs that nobody wants need not be computed.
  virtual void want(const char* name, ElementType type, const Shape& shape) = 0;
  /// Binds memory of `memory()` as an input or an output; both may be the same.
  virtual void bind_input(const char* name, void* data, ElementType type, const Shape& shape) = 0;
  virtual void bind_output(const char* name, void* data, ElementType type, const Shape& shape) = 0;

  /// Throws std::runtime_error when the runtime refuses or fails.
  virtual void run() = 0;
  /// Host memory of a wanted output, valid until the next run or `want` of that name.
  virtual const void* output(const char* name) const = 0;
};

}  // namespace treespec
