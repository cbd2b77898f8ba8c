// SPDX-License-Identifier: Apache-2.0
// What those who read a calibration in device memory share.
#pragma once

#include <simt.cuh>

#include "checks.h"
#include "shared/scores.hd.h"
#include "treespec/device/scores.h"

namespace treespec::device {

static_assert(sizeof(shared::CalibrationPoint) == 2 * sizeof(double));

TREESPEC_DEVICE const shared::CalibrationPoint* points_of(const Calibration& calibration) {
  return reinterpret_cast<const shared::CalibrationPoint*>(calibration.point);
}

/// Throws InvalidArgument for a calibration without points to read.
inline void check_calibration(const char* who, const Calibration& calibration) {
  TREESPEC_CHECK(calibration.num_points >= 0, who, ": calibration.num_points must be >= 0, got ",
                 calibration.num_points);
  if (calibration.num_points > 0) check_pointer(who, "calibration.point", calibration.point);
}

}  // namespace treespec::device
