// SPDX-License-Identifier: Apache-2.0
// The forward of a causal language model over new rows of one or several sequences: prompts, trees
// and levels of trees differ in the mask alone.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kv_cache.h"
#include "treespec/array_view.h"
#include "treespec/exported_model.h"
#include "treespec/graph_runner.h"

namespace treespec::exported {

/// New rows of one sequence. Everything is borrowed for the call.
struct Segment {
  int64_t sequence = 0;            ///< its place in the batch
  ArrayView<const int32_t> token;  ///< [n], n >= 1
  int64_t prefix = 0;              ///< rows that all of them see, at positions 0 ... prefix - 1
  /// Rows behind the prefix, `[first + n]`, of which the last n are new: the row each continues, -1
  /// for the prefix, and its depth; a row's position is prefix + depth. Both empty: a chain, first
  /// = 0.
  ArrayView<const int32_t> parent, depth;
  bool all_logits = false;  ///< else those of the last row alone

  int64_t size() const { return token.size(); }
  int64_t first() const { return parent.empty() ? 0 : parent.size() - size(); }
  /// Where the new rows go in the cache.
  int64_t write_index() const { return prefix + first(); }
};

/// What a forward says of a segment; valid until the next.
struct SegmentOutput {
  RowsView logits;    ///< [n or 1, V]
  RowsView features;  ///< [n, layers_width], or no rows
};

/// A graph of kind causal_lm with the caches of `batch` sequences. One thread at a time.
class CausalGraph {
 public:
  CausalGraph(std::shared_ptr<const ExportedModel> model, int64_t batch, bool features);

  const ExportManifest& manifest() const { return model_->manifest(); }
  /// Most rows of a segment, or `wanted` if that is less.
  int64_t max_rows(int64_t wanted) const;
  /// Forgets the rows of a sequence, of which about `rows` will be needed.
  void restart(int64_t sequence, int64_t rows);
  void release(int64_t sequence);
  /// Throws InvalidArgument for rows or positions beyond the limits.
  void check(const Segment& segment) const;
  /// One forward over checked segments of different sequences; their new rows are in the caches
  /// after it.
  void run(ArrayView<const Segment> segments, std::vector<SegmentOutput>& outputs);
  /// commit_kv of a sequence's rows.
  void commit(int64_t sequence, int64_t base, ArrayView<const int32_t> nodes) {
    cache_.commit(sequence, base, nodes);
  }

 private:
  struct Frame;
  Frame frame(ArrayView<const Segment> segments);
  void fill_rows(const Frame& frame);
  void fill_masks(const Frame& frame);
  void fill_row(const Segment& segment, int64_t i, int64_t window, bool* row) const;
  int64_t write_index(int64_t sequence, const Segment* segment) const;

  std::shared_ptr<const ExportedModel> model_;
  std::unique_ptr<GraphRunner> runner_;
  KvCache cache_;
  bool in_place_;
  bool features_;
  std::vector<int64_t> used_;                // [batch] rows that an idle sequence may still need
  std::vector<const Segment*> by_sequence_;  // of the running frame
  std::vector<int64_t> logit_rows_;
};

/// One sequence's share of such a graph.
class CausalSequence {
 public:
  virtual ~CausalSequence() = default;
  virtual const ExportManifest& manifest() const = 0;
  virtual int64_t max_rows(int64_t wanted) const = 0;
  /// Forgets all rows; about `rows` will be needed.
  virtual void restart(int64_t rows) = 0;
  /// `segment.sequence` is not read. The output is valid until the next call.
  virtual SegmentOutput run(const Segment& segment) = 0;
  /// commit_kv of its rows.
  virtual void commit(int64_t base, ArrayView<const int32_t> nodes) = 0;
};

/// A sequence with a graph of its own.
std::unique_ptr<CausalSequence> make_sequence(std::shared_ptr<const ExportedModel> model,
                                              bool features);

}  // namespace treespec::exported
