// SPDX-License-Identifier: Apache-2.0
#include "treespec/selector.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "shared/block_sum.hd.h"
#include "shared/law.hd.h"
#include "shared/selector.hd.h"
#include "shared/simd.h"
#include "treespec/error.h"

namespace treespec {
namespace {

constexpr int32_t kWidest = 1 << 16;  // of a row in the network

/// The law of a row in one block of the vocabulary; padded to whole lanes by impossible tokens,
/// which add nothing to any sum.
struct LawBlock {
  double prob[shared::kBlock], log_prob[shared::kBlock];

  void load(const TargetRow& row, double mass, int64_t block) {
    const int64_t left = row.vocab_size() - block * shared::kBlock;
    const int64_t size = std::clamp(left, int64_t{0}, shared::kBlock);
    if (size > 0) row.law(block, mass, prob, log_prob);
    std::fill(prob + size, prob + shared::kBlock, shared::LawPoint{}.prob);
    std::fill(log_prob + size, log_prob + shared::kBlock, shared::LawPoint{}.log_prob);
  }
  shared::LawPoint operator[](int64_t i) const { return {prob[i], log_prob[i]}; }
};

/// The terms of a block, summed; `size` is a multiple of the lanes.
TREESPEC_SIMD LawFeatures block_features(const LawBlock& p, const LawBlock& q, const LawBlock& r,
                                         int64_t size) {
  constexpr int64_t kLanes = shared::kLanes;
  double lane[6][kLanes] = {};
  for (int64_t begin = 0; begin < size; begin += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) {
      const int64_t t = begin + i;
      const LawFeatures terms = shared::law_terms(p[t], q[t], r[t]);
      lane[0][i] += terms.target_entropy;
      lane[1][i] += terms.draft_entropy;
      lane[2][i] += terms.root_entropy;
      lane[3][i] += terms.target_to_draft;
      lane[4][i] += terms.draft_to_target;
      lane[5][i] += terms.distance;
    }
  }
  return {shared::lane_tree(lane[0]), shared::lane_tree(lane[1]), shared::lane_tree(lane[2]),
          shared::lane_tree(lane[3]), shared::lane_tree(lane[4]), shared::lane_tree(lane[5])};
}

/// out[j] = bias[j] + sum over i of x[i] * weight[i, j], i ascending.
TREESPEC_SIMD void linear(const float* x, int32_t inputs, int32_t outputs, const float* weight,
                          const float* bias, float* out) {
  for (int32_t j = 0; j < outputs; ++j) out[j] = bias[j];
  for (int32_t i = 0; i < inputs; ++i) {
    const float* row = weight + int64_t{i} * outputs;
    const float value = x[i];
    for (int32_t j = 0; j < outputs; ++j) out[j] += value * row[j];
  }
}

/// Hands out the parameters in order.
class Parameters {
 public:
  explicit Parameters(const float* next) : next_(next) {}
  const float* take(int64_t count) {
    const float* taken = next_;
    next_ += count;
    return taken;
  }

 private:
  const float* next_;
};

}  // namespace

LawFeatures law_features(const TargetRow& target, const TargetRow& draft, const TargetRow& root) {
  for (const TargetRow* row : {&target, &draft, &root}) {
    TREESPEC_CHECK(row->vocab_size() > 0, "law_features: a row must have tokens, got none");
  }
  static thread_local LawBlock p, q, r;  // too large for the stacks of some threads
  const double masses[] = {target.mass(), draft.mass(), root.mass()};
  const int64_t longest = std::max({target.vocab_size(), draft.vocab_size(), root.vocab_size()});
  LawFeatures sum;
  for (int64_t block = 0; block < shared::num_blocks(longest); ++block) {
    p.load(target, masses[0], block);
    q.load(draft, masses[1], block);
    r.load(root, masses[2], block);
    const int64_t size = std::min(shared::kBlock, longest - block * shared::kBlock);
    const int64_t whole_lanes = (size + shared::kLanes - 1) / shared::kLanes * shared::kLanes;
    sum = shared::sum_of(sum, block_features(p, q, r, whole_lanes));
  }
  return sum;
}

RootScalars root_scalars(const LawFeatures& laws, int64_t tokens_before,
                         const SamplingParams& sampling) {
  TREESPEC_CHECK(tokens_before >= 1, "root_scalars: tokens_before must be at least 1, got ",
                 tokens_before);
  RootScalars out;
  shared::write_root_scalars(laws, tokens_before, sampling.temperature, sampling.top_p, out.data());
  return out;
}

int64_t SelectorSizes::num_parameters() const {
  int64_t count = 2 * int64_t{num_scalars};
  for (int32_t s = 0; s < num_states; ++s) {
    count += (int64_t{state_width[s]} + 3) * projection_width;
  }
  int64_t inputs = joined_width();
  for (int32_t l = 0; l < num_layers; ++l) {
    count += (inputs + 1) * layer_width[l];
    inputs = layer_width[l];
  }
  return count;
}

void check_selector(const SelectorSizes& sizes) {
  const auto check_width = [](const char* name, int32_t width, int32_t least) {
    TREESPEC_CHECK(width >= least && width <= kWidest, "DelayedSelector: ", name, " must be in [",
                   least, ", ", kWidest, "], got ", width);
  };
  TREESPEC_CHECK(sizes.num_states >= 0 && sizes.num_states <= SelectorSizes::kMostStates,
                 "DelayedSelector: num_states must be in [0, ", SelectorSizes::kMostStates,
                 "], got ", sizes.num_states);
  TREESPEC_CHECK(sizes.num_layers >= 1 && sizes.num_layers <= SelectorSizes::kMostLayers,
                 "DelayedSelector: num_layers must be in [1, ", SelectorSizes::kMostLayers,
                 "], got ", sizes.num_layers);
  check_width("num_scalars", sizes.num_scalars, 0);
  check_width("projection_width", sizes.projection_width, sizes.num_states > 0 ? 1 : 0);
  for (int32_t s = 0; s < sizes.num_states; ++s) {
    check_width("state_width", sizes.state_width[s], 1);
  }
  for (int32_t l = 0; l < sizes.num_layers; ++l) {
    check_width("layer_width", sizes.layer_width[l], 1);
  }
}

DelayedSelector::DelayedSelector(const SelectorSizes& sizes, std::vector<float> parameters,
                                 std::vector<DelayedShape> shapes)
    : sizes_(sizes), parameters_(std::move(parameters)), shapes_(std::move(shapes)) {
  check_selector(sizes_);
  TREESPEC_CHECK(static_cast<int64_t>(parameters_.size()) == sizes_.num_parameters(),
                 "DelayedSelector: parameters must be ", sizes_.num_parameters(), " numbers, got ",
                 parameters_.size());
  TREESPEC_CHECK(
      std::all_of(parameters_.begin(), parameters_.end(), [](float x) { return std::isfinite(x); }),
      "DelayedSelector: parameters must be finite");
  TREESPEC_CHECK(static_cast<int64_t>(shapes_.size()) == sizes_.num_outputs(),
                 "DelayedSelector: shapes must be ", sizes_.num_outputs(),
                 ", one for each output, got ", shapes_.size());
  constexpr int32_t kMost = 1 << 10;  // of each number, so that their products stay small
  for (const DelayedShape& shape : shapes_) {
    TREESPEC_CHECK(shape.num_paths >= 1 && shape.num_paths <= kMost && shape.trunk >= 0 &&
                       shape.trunk <= kMost && shape.branch >= 0 && shape.branch <= kMost,
                   "DelayedSelector: a shape must have num_paths in [1, ", kMost,
                   "], trunk and branch in [0, ", kMost, "], got (", shape.num_paths, ", ",
                   shape.trunk, ", ", shape.branch, ")");
  }
}

void DelayedSelector::score(const float* const* states, const float* scalars, float* out) const {
  const int32_t width = sizes_.projection_width;
  std::vector<float> x(static_cast<size_t>(sizes_.joined_width())), y;
  Parameters parameters(parameters_.data());
  for (int32_t s = 0; s < sizes_.num_states; ++s) {
    const float* weight = parameters.take(int64_t{sizes_.state_width[s]} * width);
    const float* bias = parameters.take(width);
    const float* scale = parameters.take(width);
    const float* shift = parameters.take(width);
    float* own = x.data() + int64_t{s} * width;
    linear(states[s], sizes_.state_width[s], width, weight, bias, own);
    const shared::Moments of = shared::moments(own, width);
    for (int32_t i = 0; i < width; ++i) own[i] = shared::normalised(own[i], of, scale[i], shift[i]);
  }
  const float* mean = parameters.take(sizes_.num_scalars);
  const float* inverse_deviation = parameters.take(sizes_.num_scalars);
  for (int32_t i = 0; i < sizes_.num_scalars; ++i) {
    x[static_cast<size_t>(sizes_.num_states * width + i)] =
        shared::standardised(scalars[i], mean[i], inverse_deviation[i]);
  }
  for (int32_t l = 0; l < sizes_.num_layers; ++l) {
    const auto inputs = static_cast<int32_t>(x.size());
    const int32_t outputs = sizes_.layer_width[l];
    const float* weight = parameters.take(int64_t{inputs} * outputs);
    const float* bias = parameters.take(outputs);
    if (l + 1 == sizes_.num_layers) return linear(x.data(), inputs, outputs, weight, bias, out);
    y.resize(static_cast<size_t>(outputs));
    linear(x.data(), inputs, outputs, weight, bias, y.data());
    for (float& value : y) value = shared::gelu(value);
    std::swap(x, y);
  }
}

int32_t DelayedSelector::choose(const float* const* states, const float* scalars,
                                int32_t node_budget, int32_t max_depth) const {
  std::vector<float> scores(shapes_.size());
  score(states, scalars, scores.data());
  int32_t best = -1;
  for (int32_t a = 0; a < static_cast<int32_t>(shapes_.size()); ++a) {
    const DelayedShape& shape = shapes_[static_cast<size_t>(a)];
    if (shape.num_nodes() > node_budget || shape.depth() > max_depth) continue;
    const float own = scores[static_cast<size_t>(a)];
    TREESPEC_CHECK(!std::isnan(own),
                   "DelayedSelector: a score must be a number, got NaN; are the "
                   "states and scalars finite?");
    if (best < 0 || own > scores[static_cast<size_t>(best)]) best = a;
  }
  TREESPEC_CHECK(best >= 0, "DelayedSelector: node_budget and max_depth must admit a shape, got ",
                 node_budget, " and ", max_depth);
  return best;
}

}  // namespace treespec
