// SPDX-License-Identifier: Apache-2.0
// Which (K, L1, L2) tree a round should draft: what is known of the last position, and a small
// network that scores every shape. Source: "Dynamic delayed tree expansion", 2026, arXiv
// 2602.16994, section 5.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "treespec/array_view.h"
#include "treespec/sampling.h"
#include "treespec/target_row.h"

namespace treespec {

/// The laws of the last position in six numbers, in nats but for the distance. `target` and `draft`
/// are the laws after the token before the root, the one that the root was drawn from and the
/// drafter's; `root` is the drafter's after the root. All are known before the round draws.
struct LawFeatures {
  double target_entropy = 0.0;
  double draft_entropy = 0.0;
  double root_entropy = 0.0;
  double target_to_draft = 0.0;  ///< KL(target || draft)
  double draft_to_target = 0.0;  ///< KL(draft || target)
  double distance = 0.0;         ///< sum of |target - draft|, in [0, 2]
};

/// Probabilities below this count as this in logarithms: the features stay finite where one law
/// lacks a token of the other.
constexpr double kLeastProbability = 1e-9;

/// Rows must be loaded and without left-out tokens; vocabularies may differ in length, what a row
/// lacks is impossible. Sums in float64 by the partition of shared/block_sum.hd.h, with the same
/// bits on CPU and GPU; logarithms of rows of logits come from the logits. Throws InvalidArgument
/// for an empty row.
LawFeatures law_features(const TargetRow& target, const TargetRow& draft, const TargetRow& root);

/// What a selector reads beside hidden states: the laws in the order above, the logarithm of the
/// number of tokens before the root, temperature and top-p of the target's law.
using RootScalars = std::array<float, 9>;
/// Throws InvalidArgument unless a token is before the root.
RootScalars root_scalars(const LawFeatures& laws, int64_t tokens_before,
                         const SamplingParams& sampling);

/// A trunk of `trunk` draws, then `num_paths` branches of `branch` draws: options of the builder
/// "delayed".
struct DelayedShape {
  int32_t num_paths = 1;
  int32_t trunk = 0;
  int32_t branch = 0;

  /// Most drafted nodes; fewer where draws coincide.
  int32_t num_nodes() const { return trunk + num_paths * branch; }
  int32_t depth() const { return trunk + branch; }
};

/// Sizes of the network. Hidden states are projected to a common width and layer-normalised, one
/// after the other; behind them come the scalars, standardised; then layers with GELU between them.
/// The last layer has an output for every shape.
struct SelectorSizes {
  static constexpr int32_t kMostStates = 3;
  static constexpr int32_t kMostLayers = 4;

  int32_t num_states = 0;
  int32_t state_width[kMostStates] = {};
  int32_t projection_width = 0;  ///< of every state; 0 without states
  int32_t num_scalars = 0;
  int32_t num_layers = 0;
  int32_t layer_width[kMostLayers] = {};

  /// Inputs of the first layer.
  int32_t joined_width() const { return num_states * projection_width + num_scalars; }
  int32_t num_outputs() const { return num_layers > 0 ? layer_width[num_layers - 1] : 0; }
  /// Length of the parameters: for each state weight [width, P], bias, scale, shift [P]; mean and
  /// 1 / deviation [scalars]; for each layer weight [inputs, outputs], bias [outputs]. Weights are
  /// input-major.
  int64_t num_parameters() const;
};

/// Throws InvalidArgument that names the size, the rule and the value.
void check_selector(const SelectorSizes& sizes);

/// Chooses shapes. Immutable, so that threads may share one. Arithmetic is float32 in a fixed order
/// (sums over a state in float64), the same on CPU and GPU.
class DelayedSelector {
 public:
  /// `parameters`: as num_parameters() says, finite. Throws InvalidArgument when sizes, parameters
  /// and shapes do not fit one another.
  DelayedSelector(const SelectorSizes& sizes, std::vector<float> parameters,
                  std::vector<DelayedShape> shapes);

  const SelectorSizes& sizes() const { return sizes_; }
  const std::vector<float>& parameters() const { return parameters_; }
  const std::vector<DelayedShape>& shapes() const { return shapes_; }

  /// Scores `[num_shapes]`. `states`: num_states rows, row i of state_width[i] float32; `scalars`:
  /// [num_scalars] as measured, not yet standardised. Lengths are the caller's to keep.
  void score(const float* const* states, const float* scalars, float* out) const;
  /// The place of the best score among shapes of at most `node_budget` nodes and `max_depth`
  /// levels, the first among equals. Throws InvalidArgument when none fits or a score is NaN.
  int32_t choose(const float* const* states, const float* scalars, int32_t node_budget,
                 int32_t max_depth) const;

 private:
  SelectorSizes sizes_;
  std::vector<float> parameters_;
  std::vector<DelayedShape> shapes_;
};

}  // namespace treespec
