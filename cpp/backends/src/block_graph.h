// SPDX-License-Identifier: Apache-2.0
// The forward of a DFlash drafter: features of newly committed positions in, ranked lists of every
// depth of a block out.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kv_cache.h"
#include "treespec/array_view.h"
#include "treespec/exported_model.h"
#include "treespec/graph_runner.h"

namespace treespec::exported {

/// A block of one sequence. Everything is borrowed for the call.
struct BlockRequest {
  int64_t sequence = 0;            ///< its place in the batch
  int64_t length = 0;              ///< context rows in the cache, at positions 0 ... length - 1
  const void* features = nullptr;  ///< [num_features, layers_width], of the positions from length
  int64_t num_features = 0;        ///< >= 1
  int32_t root = 0;                ///< token at position length + num_features
};

/// The lists of a block; valid until the next run. See BlockShape.
struct BlockOutput {
  const int64_t* token = nullptr;  ///< [rows, K]
  const float* logprob = nullptr;  ///< [rows, K]
  const int64_t* owner = nullptr;  ///< [D - 1, R], of transitions
};

/// Lists of a block: one a depth, or the root's and R for every further depth.
int64_t num_lists(const BlockShape& block);

/// A graph of kind dflash with the caches of `batch` sequences. One thread at a time.
class BlockGraph {
 public:
  BlockGraph(std::shared_ptr<const ExportedModel> model, int64_t batch);

  const ExportManifest& manifest() const { return model_->manifest(); }
  /// Most features of a run, or `wanted` if that is less.
  int64_t max_rows(int64_t wanted) const;
  /// Forgets the rows of a sequence, of which about `rows` will be needed.
  void restart(int64_t sequence, int64_t rows);
  void release(int64_t sequence);
  /// Throws InvalidArgument for positions beyond the limit.
  void check(const BlockRequest& request) const;
  /// One run over checked blocks of different sequences. After it the features have rows in the
  /// cache, from `length` on; running again writes them again.
  void run(ArrayView<const BlockRequest> requests, double temperature,
           std::vector<BlockOutput>& outputs);

 private:
  struct Frame;
  Frame frame(ArrayView<const BlockRequest> requests);
  void fill_rows(const Frame& frame, double temperature);
  void fill_masks(const Frame& frame);
  int64_t length(const Frame& frame, int64_t b) const;

  std::shared_ptr<const ExportedModel> model_;
  const BlockShape& block_;
  std::unique_ptr<GraphRunner> runner_;
  KvCache cache_;
  bool in_place_;
  std::vector<int64_t> used_;                     // [batch] context rows of idle sequences
  std::vector<const BlockRequest*> by_sequence_;  // of the running frame
};

/// One sequence's share of such a graph.
class BlockSequence {
 public:
  virtual ~BlockSequence() = default;
  virtual const ExportManifest& manifest() const = 0;
  virtual int64_t max_rows(int64_t wanted) const = 0;
  /// Forgets all rows; about `rows` will be needed.
  virtual void restart(int64_t rows) = 0;
  /// `request.sequence` is not read. The output is valid until the next call.
  virtual BlockOutput run(const BlockRequest& request, double temperature) = 0;
};

/// A sequence with a graph of its own.
std::unique_ptr<BlockSequence> make_block_sequence(std::shared_ptr<const ExportedModel> model);

}  // namespace treespec::exported
