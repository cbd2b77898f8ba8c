// SPDX-License-Identifier: Apache-2.0
// From log-probabilities to the scores that rank nodes, on the device.
#pragma once

#include <cstdint>

#include "treespec/device/candidates.h"
#include "treespec/stream.h"

namespace treespec::device {

/// A calibration in device memory, as the builders' option: how often a token is accepted by its
/// draft probability, piecewise linear from (0, 0), flat after the last point. Points as the option
/// wants them; others give wrong scores.
struct Calibration {
  int32_t num_points = 0;         ///< 0: a token is accepted with its draft probability
  const double* point = nullptr;  ///< [num_points, 2]: draft probability, acceptance
};

/// The options `score_temperature` and `calibration` of deterministic builders.
struct ScoreRule {
  double temperature = 1.0;  ///< in [1e-6, 1e6]
  Calibration calibration;   ///< applied after the temperature
};

/// Lists whose log-probabilities are the scores of `rule`, ranked by these, in one launch: what a
/// builder makes of them is what the CPU's with these options makes of `lists`. Sizes of both are
/// equal; `next` of both is null for lists without. Both may be the same arrays. A list that breaks
/// the rules of ListSource is handed on as it is, for the builder that reads it to report.
/// InvalidArgument: sizes or temperature out of range.
void score_lists(Stream stream, const ScoreRule& rule, const TransitionLists& lists,
                 const TransitionLists& scored);

}  // namespace treespec::device
