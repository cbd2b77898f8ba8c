// SPDX-License-Identifier: Apache-2.0
// Without CUDA every device op is there and says so.
#include "check.h"
#include "treespec/device.h"
#include "treespec/device/candidates.h"
#include "treespec/device/kv_commit.h"
#include "treespec/device/scores.h"
#include "treespec/device/selector.h"
#include "treespec/device/tree_builder.h"
#include "treespec/device/tree_mask.h"
#include "treespec/error.h"

int main() {
  using namespace treespec;          // NOLINT
  using namespace treespec::device;  // NOLINT
  CHECK(!cuda_built());
  CHECK_EQUAL(cuda_device_count(), 0);
  CHECK_THROWS(Unsupported, tree_layout({}, {}, nullptr, {}, nullptr));
  CHECK_THROWS(Unsupported, device::bool_mask({}, {}, {}, nullptr, {}, nullptr, nullptr));
  CHECK_THROWS(Unsupported,
               device::additive_mask({}, {}, {}, nullptr, {}, DType::kFloat32, nullptr, nullptr));
  CHECK_THROWS(Unsupported, device::preorder_intervals({}, {}, nullptr, nullptr, nullptr));
  CHECK_THROWS(Unsupported, device::sequence_ids({}, {}, 1, nullptr, nullptr, nullptr));
  CHECK_THROWS(Unsupported, device::commit_kv({}, {}, {}, nullptr, nullptr));
  CHECK_THROWS(Unsupported, commit_kv_and_advance({}, {}, {}, nullptr, nullptr, 0, nullptr));
  CHECK_THROWS(Unsupported, commit_kv_workspace_bytes(1));
  CHECK_THROWS(Unsupported, device::root_scalars({}, {}, nullptr, 0, nullptr, nullptr));
  CHECK_THROWS(Unsupported, root_scalars_workspace_bytes({}));
  CHECK_THROWS(Unsupported, device::choose_shapes({}, {}, {}, nullptr, nullptr));
  CHECK_THROWS(Unsupported, device::rank_candidates({}, {}, 1.0, nullptr, {}, nullptr));
  CHECK_THROWS(Unsupported, rank_candidates_workspace_bytes(1, 1));
  CHECK_THROWS(Unsupported, device::link_transitions({}, {}, nullptr, {}));
  CHECK_THROWS(Unsupported, device::score_lists({}, {}, {}, {}));
  CHECK_THROWS(Unsupported, build_best_first({}, {}, 1, {}, {}, nullptr));
  CHECK_THROWS(Unsupported, begin_layers({}, {}, {}, {}, nullptr, {}, nullptr));
  CHECK_THROWS(Unsupported, grow_layer({}, {}, {}, {}, nullptr, {}, nullptr));
  CHECK_THROWS(Unsupported, finish_layers({}, {}, nullptr, {}));
  CHECK_THROWS(Unsupported, layers_workspace_bytes(1, 1));
  CHECK_THROWS(Unsupported, begin_shape({}, {}, 1, Proposal::kIid, {}, {}, nullptr, {}, nullptr));
  CHECK_THROWS(Unsupported, grow_shape({}, {}, {}, {}, {}, nullptr, {}, nullptr));
  CHECK_THROWS(Unsupported, finish_shape({}, {}, 1, Proposal::kIid, {}, nullptr, {}, {}));
  CHECK_THROWS(Unsupported, shape_workspace_bytes(1, 1, 1, 1, Proposal::kIid));
  CHECK_THROWS(Unsupported, begin_paths({}, {}, 1, {}, {}, nullptr, {}, nullptr));
  CHECK_THROWS(Unsupported, grow_paths({}, {}, nullptr, {}, {}, nullptr, {}, nullptr));
  CHECK_THROWS(Unsupported, finish_paths({}, 1, {}, nullptr, {}, {}));
  CHECK_THROWS(Unsupported, paths_workspace_bytes(1, 1, 1));
  CHECK_THROWS(Unsupported, begin_slots({}, {}, 1, {}, {}, nullptr, {}, nullptr));
  CHECK_THROWS(Unsupported, grow_slots({}, {}, nullptr, {}, {}, nullptr, {}, nullptr));
  CHECK_THROWS(Unsupported, finish_slots({}, 1, {}, nullptr, {}, {}, nullptr));
  CHECK_THROWS(Unsupported, slots_workspace_bytes(1, 1, 1));
  return 0;
}
