// SPDX-License-Identifier: Apache-2.0
#include "builders/cursors.h"

#include <algorithm>
#include <vector>

#include "builders/sketch.h"

namespace treespec {
namespace {

class CursorGrowth final : public SketchGrowth {
 public:
  CursorGrowth(int32_t num_paths, int32_t trunk, int32_t branch, const RoundKey& key)
      : SketchGrowth(Proposal::kIid, key),
        num_paths_(num_paths),
        trunk_(trunk),
        num_levels_(trunk + branch),
        cursor_{0} {
    start_level();
  }

 protected:
  void take(int64_t i, const CandidateRow& row) override {
    RowLaw& law = law_[static_cast<size_t>(i)];
    law.read(row);
    if (!law.empty()) record_law(layer_[static_cast<size_t>(i)], law);
  }

  void grow(ArrayView<const CandidateRow> rows) override {
    clear_frontier();
    std::vector<int32_t> moved;
    // In the order of the paths, which is the draw order at a node that several of them share.
    for (const int32_t node : cursor_) {
      const auto place =
          static_cast<size_t>(std::find(layer_.begin(), layer_.end(), node) - layer_.begin());
      if (law_[place].empty()) continue;  // a dead end: the path stops
      moved.push_back(draw(node, rows[static_cast<int64_t>(place)], law_[place]));
    }
    cursor_ = std::move(moved);
    ++level_;
    start_level();
  }

 private:
  /// Requests the distinct nodes of the cursors.
  void start_level() {
    if (level_ == num_levels_) return;
    if (level_ == trunk_ && !cursor_.empty()) {
      cursor_.assign(static_cast<size_t>(num_paths_), cursor_.front());
    }
    layer_.clear();
    for (const int32_t node : cursor_) {
      if (std::find(layer_.begin(), layer_.end(), node) == layer_.end()) layer_.push_back(node);
    }
    for (const int32_t node : layer_) request(node);
    law_.resize(std::max(law_.size(), layer_.size()));
  }

  /// One more draw at a node; returns the child, new or drawn before.
  int32_t draw(int32_t node, const CandidateRow& row, const RowLaw& law) {
    const int32_t k =
        law.draw(key_, nodes_[node].slot, static_cast<int32_t>(nodes_[node].draws.size()));
    int32_t child = drawn_child(node, law.token(k));
    if (child < 0) child = add_child(node, row, law.entry(k));
    nodes_[node].draws.push_back(child);
    return child;
  }

  int32_t num_paths_, trunk_, num_levels_;
  int32_t level_ = 0;
  std::vector<int32_t> cursor_;  // node of each path, in path order
  std::vector<int32_t> layer_;   // distinct cursor nodes, as requested
  std::vector<RowLaw> law_;      // of the layer
};

}  // namespace

std::unique_ptr<TreeGrowth> cursor_growth(int32_t num_paths, int32_t trunk, int32_t branch,
                                          const RoundKey& key) {
  return std::make_unique<CursorGrowth>(num_paths, trunk, branch, key);
}

}  // namespace treespec
