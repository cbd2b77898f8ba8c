// SPDX-License-Identifier: Apache-2.0
#include "treespec/selector.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "shared/selector.hd.h"
#include "shared/simd.h"
#include "treespec/error.h"

namespace treespec {
namespace {

constexpr int32_t kWidest = 1 << 16;  // of a row in the network
constexpr int64_t kWays = 8;          // partial sums of a row: entry t goes to t % 8

/// Partial sums, added pairwise.
double joined(const double* way) {
  return ((way[0] + way[4]) + (way[2] + way[6])) + ((way[1] + way[5]) + (way[3] + way[7]));
}

/// A law padded with zeros to `size`, a multiple of kWays, and its logarithms.
struct Law {
  std::vector<double> prob, log_prob;

  void load(const TargetRow& row, int64_t size);
  double entropy() const;
};

TREESPEC_SIMD void normalise(double* weight, int64_t size, double mass, double* bounded) {
  for (int64_t t = 0; t < size; ++t) {
    weight[t] /= mass;
    bounded[t] = weight[t] > kLeastProbability ? weight[t] : kLeastProbability;
  }
}
TREESPEC_SIMD void logarithms(double* values, int64_t size) {
  for (int64_t t = 0; t < size; ++t) values[t] = shared::log_unit(values[t]);
}

/// Sum of p * (x - y); y null is 0.
TREESPEC_SIMD double mean_gap(const double* p, const double* x, const double* y, int64_t size) {
  double way[kWays] = {};
  for (int64_t t = 0; t < size; t += kWays) {
    for (int64_t i = 0; i < kWays; ++i) {
      way[i] += p[t + i] * (y == nullptr ? x[t + i] : x[t + i] - y[t + i]);
    }
  }
  return joined(way);
}

TREESPEC_SIMD double distance(const double* p, const double* q, int64_t size) {
  double way[kWays] = {};
  for (int64_t t = 0; t < size; t += kWays) {
    for (int64_t i = 0; i < kWays; ++i) way[i] += std::fabs(p[t + i] - q[t + i]);
  }
  return joined(way);
}

void Law::load(const TargetRow& row, int64_t size) {
  TREESPEC_CHECK(row.vocab_size() > 0, "law_features: a row must have tokens, got none");
  prob.assign(static_cast<size_t>(size), 0.0);
  log_prob.resize(static_cast<size_t>(size));
  row.expand(prob.data());
  normalise(prob.data(), size, row.mass(), log_prob.data());
  logarithms(log_prob.data(), size);
}

double Law::entropy() const {
  return -mean_gap(prob.data(), log_prob.data(), nullptr, static_cast<int64_t>(prob.size()));
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
  const int32_t longest = std::max({target.vocab_size(), draft.vocab_size(), root.vocab_size()});
  const int64_t size = (int64_t{longest} + kWays - 1) / kWays * kWays;
  static thread_local Law p, q, r;  // kept: vocabulary rows are too large to map afresh
  p.load(target, size);
  q.load(draft, size);
  r.load(root, size);
  return {p.entropy(),
          q.entropy(),
          r.entropy(),
          mean_gap(p.prob.data(), p.log_prob.data(), q.log_prob.data(), size),
          mean_gap(q.prob.data(), q.log_prob.data(), p.log_prob.data(), size),
          distance(p.prob.data(), q.prob.data(), size)};
}

RootScalars root_scalars(const LawFeatures& laws, int64_t tokens_before,
                         const SamplingParams& sampling) {
  TREESPEC_CHECK(tokens_before >= 1, "root_scalars: tokens_before must be at least 1, got ",
                 tokens_before);
  const auto narrow = [](double value) { return static_cast<float>(value); };
  return {narrow(laws.target_entropy),
          narrow(laws.draft_entropy),
          narrow(laws.root_entropy),
          narrow(laws.target_to_draft),
          narrow(laws.draft_to_target),
          narrow(laws.distance),
          narrow(std::log(static_cast<double>(tokens_before))),
          narrow(sampling.temperature),
          narrow(sampling.top_p)};
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
