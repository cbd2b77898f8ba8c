// SPDX-License-Identifier: Apache-2.0
// All of treespec's C++ API. A round is six steps:
//
//   1 draft   score children of the frontier      decoder.h, drafts.h, source.h, candidates.h
//   2 build   grow the tree within the budget     tree_builder.h, growth_map.h, token_tree.h,
//                                                 selector.h
//   3 mask    who attends to whom, positions      tree_mask.h
//   4 target  one forward over all nodes          decoder.h
//   5 verify  accept a path, sample one more      verifier.h, sampling.h
//   6 commit  keep the accepted KV rows           kv_commit.h
#pragma once

#include "treespec/array_view.h"
#include "treespec/budget_rule.h"
#include "treespec/candidates.h"
#include "treespec/cost_model.h"
#include "treespec/decoder.h"
#include "treespec/device.h"
#include "treespec/drafts.h"
#include "treespec/error.h"
#include "treespec/growth_map.h"
#include "treespec/kv_commit.h"
#include "treespec/planned_builders.h"
#include "treespec/rng.h"
#include "treespec/sampling.h"
#include "treespec/selector.h"
#include "treespec/source.h"
#include "treespec/stats.h"
#include "treespec/stream.h"
#include "treespec/target_row.h"
#include "treespec/token_tree.h"
#include "treespec/tree_builder.h"
#include "treespec/tree_mask.h"
#include "treespec/verifier.h"
#include "treespec/version.h"
