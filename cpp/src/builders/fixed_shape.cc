// SPDX-License-Identifier: Apache-2.0
// Fills a shape with the most likely tokens or with draws from the draft law.
// Source: Miao et al., "SpecInfer", 2023, arXiv 2305.09781 (i.i.d. draws with multiplicity); Chen
// et al., "Sequoia", 2024, arXiv 2402.12374 (growth maps, draws without replacement); Sun et al.,
// "SpecHub", 2024, arXiv 2411.05289, and Hu et al., 2025, arXiv 2502.18779 (top tokens, one draw).
#include "builders/fixed_shape.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "builders/row_law.h"
#include "builders/sketch.h"

namespace treespec {
namespace {

class LevelShape final : public TreeShape {
 public:
  explicit LevelShape(std::vector<int32_t> widths) : widths_(std::move(widths)) {}
  int32_t num_children(int32_t place) const override {
    return static_cast<size_t>(place) < widths_.size() ? widths_[place] : 0;
  }
  int32_t child(int32_t place, int32_t) const override { return place + 1; }

 private:
  std::vector<int32_t> widths_;
};

class MapShape final : public TreeShape {
 public:
  explicit MapShape(const GrowthMap& map)
      : first_(static_cast<size_t>(map.num_nodes()) + 2), child_(map.parent.size()) {
    for (const int32_t parent : map.parent) ++first_[parent + 1];
    for (size_t i = 1; i < first_.size(); ++i) first_[i] += first_[i - 1];
    std::vector<int32_t> next = first_;
    for (int32_t i = 0; i < map.num_nodes(); ++i) child_[next[map.parent[i]]++] = i + 1;
  }
  int32_t num_children(int32_t place) const override { return first_[place + 1] - first_[place]; }
  int32_t child(int32_t place, int32_t rank) const override { return child_[first_[place] + rank]; }

 private:
  std::vector<int32_t> first_;  // [place]: where its children begin in child_
  std::vector<int32_t> child_;
};

class FixedShapeGrowth final : public SketchGrowth {
 public:
  FixedShapeGrowth(std::shared_ptr<const TreeShape> shape, Proposal proposal, const RoundKey& key)
      : SketchGrowth(proposal, key), shape_(std::move(shape)) {
    open_level({0});
  }

 protected:
  void take(int64_t i, const CandidateRow& row) override {
    fill(level_[static_cast<size_t>(i)], row);
  }
  void grow(ArrayView<const CandidateRow> rows) override;
  std::vector<int32_t> order() const override;

 private:
  bool before(int32_t a, int32_t b) const { return place_[a] < place_[b]; }
  /// Asks for the rows of those nodes that want children, by place.
  void open_level(std::vector<int32_t> nodes);
  void fill(int32_t node, const CandidateRow& row);
  /// Entries of the row that become children of `node`, in draw order with multiplicity.
  std::vector<int32_t> choose(int32_t node, const CandidateRow& row, int32_t width);
  std::vector<int32_t> drawn(int32_t node, int32_t width) const;
  std::vector<int32_t> top_and_one(int32_t node, const CandidateRow& row, int32_t width) const;

  std::shared_ptr<const TreeShape> shape_;
  std::vector<int32_t> place_{0};  // per node
  std::vector<int32_t> level_;     // nodes of the frontier
  int32_t first_new_ = 0;          // the first node born since the level was opened
  RowLaw law_;
};

void FixedShapeGrowth::open_level(std::vector<int32_t> nodes) {
  std::stable_sort(nodes.begin(), nodes.end(),
                   [this](int32_t a, int32_t b) { return before(a, b); });
  level_.clear();
  first_new_ = static_cast<int32_t>(nodes_.size());
  for (const int32_t node : nodes) {
    if (shape_->num_children(place_[node]) == 0) continue;
    request(node);
    level_.push_back(node);
  }
}

void FixedShapeGrowth::grow(ArrayView<const CandidateRow>) {
  clear_frontier();
  std::vector<int32_t> born(nodes_.size() - static_cast<size_t>(first_new_));
  std::iota(born.begin(), born.end(), first_new_);
  open_level(std::move(born));
}

void FixedShapeGrowth::fill(int32_t node, const CandidateRow& row) {
  const int32_t place = place_[node];
  int32_t rank = 0;
  for (const int32_t entry : choose(node, row, shape_->num_children(place))) {
    int32_t child = drawn_child(node, row.token_of(entry));
    if (child < 0) {
      child = add_child(node, row, entry);
      place_.push_back(shape_->child(place, rank));
    }
    nodes_[node].draws.push_back(child);
    ++rank;
  }
}

std::vector<int32_t> FixedShapeGrowth::choose(int32_t node, const CandidateRow& row,
                                              int32_t width) {
  if (proposal_ == Proposal::kDeterministic) return most_likely(row, width);
  law_.read(row);
  if (law_.empty()) return {};  // nothing to draw from
  record_law(node, law_);
  return proposal_ == Proposal::kTopPlusOne ? top_and_one(node, row, width) : drawn(node, width);
}

std::vector<int32_t> FixedShapeGrowth::drawn(int32_t node, int32_t width) const {
  const uint32_t slot = nodes_[node].slot;
  std::vector<int32_t> chosen;
  if (proposal_ == Proposal::kWithoutReplacement) {
    chosen = law_.race(law_.probs(), key_, slot, width);
  } else {
    for (int32_t j = 0; j < width; ++j) chosen.push_back(law_.draw(key_, slot, j));
  }
  for (int32_t& k : chosen) k = law_.entry(k);
  return chosen;
}

std::vector<int32_t> FixedShapeGrowth::top_and_one(int32_t node, const CandidateRow& row,
                                                   int32_t width) const {
  std::vector<int32_t> chosen;
  std::vector<double> rest = law_.probs();
  for (const int32_t entry : most_likely(row, width - 1)) {
    double& prob = rest[law_.place_of(row.token_of(entry))];
    // A probability too small for float32 is not in the recorded law, so that no verifier knows it.
    if (prob > 0.0) chosen.push_back(entry);
    prob = 0.0;
  }
  for (const int32_t k : law_.race(rest, key_, nodes_[node].slot, 1)) {
    chosen.push_back(law_.entry(k));
  }
  return chosen;
}

std::vector<int32_t> FixedShapeGrowth::order() const {
  std::vector<int32_t> all = SketchGrowth::order();
  std::stable_sort(all.begin(), all.end(), [this](int32_t a, int32_t b) { return before(a, b); });
  return all;
}

}  // namespace

std::shared_ptr<const TreeShape> level_shape(std::vector<int32_t> widths) {
  return std::make_shared<LevelShape>(std::move(widths));
}

std::shared_ptr<const TreeShape> map_shape(const GrowthMap& map) {
  return std::make_shared<MapShape>(map);
}

std::unique_ptr<TreeGrowth> fixed_shape_growth(std::shared_ptr<const TreeShape> shape,
                                               Proposal proposal, const RoundKey& key) {
  return std::make_unique<FixedShapeGrowth>(std::move(shape), proposal, key);
}

}  // namespace treespec
