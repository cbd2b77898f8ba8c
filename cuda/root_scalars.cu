// SPDX-License-Identifier: Apache-2.0
// What a selector reads of three laws per sequence. The rows are read as verification reads those
// of roots, truncation included; then a thread holds a lane of a block of the vocabulary.
#include <algorithm>
#include <limits>
#include <tuple>

#include "checks.h"
#include "shared/law.hd.h"
#include "treespec/device/selector.h"
#include "verify/row_pair.cuh"

namespace treespec::device {
namespace {

constexpr int kLaws = 3;  // target, draft, root

/// A row of every sequence, and what becomes of it.
struct LawRows {
  RowsView rows;
  const Sampling* sampling;
  ScoreChanges changes;
  const uint32_t* use_table;
  RowSums sums;

  TREESPEC_HD int32_t size() const { return static_cast<int32_t>(rows.width); }
  TREESPEC_HD int32_t num_blocks() const {
    return static_cast<int32_t>(shared::num_blocks(rows.width));
  }
};

struct RootRows {
  LawRows law[kLaws];
  Trees roots;
};

/// A law of a root.
class Law {
 public:
  /// False: the row is no law, and the context knows why.
  TREESPEC_DEVICE bool load(WalkContext& context) {
    size_ = context.rows.size;
    rows_ = DevicePair(context, nullptr, nullptr);
    if (context.sampling.temperature == 0.0) {
      certain_ = rows_.argmax(0);
      return certain_ >= 0;
    }
    if (!rows_.load(0, false)) return false;
    normaliser_ = rows_.normaliser();
    return true;
  }

  TREESPEC_DEVICE shared::LawPoint point(int32_t token) const {
    if (certain_ >= 0) return token == certain_ ? shared::LawPoint{1.0, 0.0} : shared::LawPoint{};
    return token < size_ ? rows_.point(token, normaliser_) : shared::LawPoint{};
  }

 private:
  DevicePair rows_;
  shared::Normaliser normaliser_ = {};
  int32_t size_ = 0;
  int32_t certain_ = -1;  // the only token, at temperature 0
};

/// One block of threads per sequence.
struct ReadLaws {
  static constexpr int kThreads = WalkContext::kThreads;
  static constexpr int kLanes = shared::kLanes;
  static constexpr int kGroups = kThreads / kLanes;  // of a thread for each lane
  static constexpr int kWarpsOfGroup = kLanes / simt::kWarpSize;

  struct Shared {
    WalkContext::Shared context;
    BlockWeights weights[kLaws];
    LawFeatures sum[kMostBlocks][kWarpsOfGroup];  // of the lanes of a warp
  };

  RootRows rows;
  const int32_t* tokens_before;
  float* scalars;
  uint32_t* status;

  TREESPEC_DEVICE void operator()() const {
    auto& s = *reinterpret_cast<Shared*>(simt::shared_memory());
    const int32_t b = simt::block();
    WalkContext context[kLaws] = {context_of(0, s), context_of(1, s), context_of(2, s)};
    Law law[kLaws];
    uint32_t problem = tokens_before[b] >= 1 ? kOk : kOutOfBounds;
    for (int i = 0; problem == kOk && i < kLaws; ++i) {
      law[i].load(context[i]);
      problem |= context[i].problem;
    }
    float* out = scalars + int64_t{b} * kNumScalars;
    if (problem != kOk) return fail(problem, out);
    sum_blocks(law, s);
    simt::sync_block();
    if (simt::thread() != 0) return;
    const Sampling& sampling = rows.law[0].sampling[b];
    shared::write_root_scalars(total(s), tokens_before[b], sampling.temperature, sampling.top_p,
                               out);
  }

 private:
  static constexpr int kNumScalars = std::tuple_size<RootScalars>::value;

  TREESPEC_DEVICE WalkContext context_of(int i, Shared& s) const {
    const LawRows& own = rows.law[i];
    const int32_t b = simt::block();
    const double temperature = own.sampling[b].temperature;
    return {LogitReader{own.rows, own.size(), own.num_blocks()},
            own.sums,
            DraftLaw{},
            &s.context,
            &s.weights[i],
            b,
            temperature > 0.0 ? 1.0 / temperature : 1.0,
            own.sampling[b],
            own.changes,
            own.use_table,
            rows.roots,
            b};
  }

  TREESPEC_DEVICE void fail(uint32_t problem, float* out) const {
    if (simt::thread() < kNumScalars) {
      out[simt::thread()] = std::numeric_limits<float>::quiet_NaN();
    }
    if (simt::thread() == 0) report(status, simt::block(), problem);
  }

  /// Every group of threads takes blocks in turn; the upper levels of a lane_tree are left.
  TREESPEC_DEVICE void sum_blocks(const Law* law, Shared& s) const {
    const int lane = simt::thread() % kLanes;
    const int32_t size = rows.law[0].size();
    for (int b = simt::thread() / kLanes; b < rows.law[0].num_blocks(); b += kGroups) {
      LawFeatures sum;
      for (int step = 0; step < kSteps; ++step) {
        const int32_t t = b * static_cast<int32_t>(kBlock) + step * kLanes + lane;
        if (t >= size) break;
        sum = shared::sum_of(sum,
                             shared::law_terms(law[0].point(t), law[1].point(t), law[2].point(t)));
      }
      sum = warp_tree(sum);
      if (simt::lane() == 0) s.sum[b][lane / simt::kWarpSize] = sum;
    }
  }

  /// Sums of neighbours, of neighbouring pairs, and so on, field by field: a shuffle has 32 bytes.
  TREESPEC_DEVICE static LawFeatures warp_tree(LawFeatures sum) {
    for (int distance = 1; distance < simt::kWarpSize; distance *= 2) {
      sum = shared::sum_of(sum, {simt::shuffle_xor(sum.target_entropy, distance),
                                 simt::shuffle_xor(sum.draft_entropy, distance),
                                 simt::shuffle_xor(sum.root_entropy, distance),
                                 simt::shuffle_xor(sum.target_to_draft, distance),
                                 simt::shuffle_xor(sum.draft_to_target, distance),
                                 simt::shuffle_xor(sum.distance, distance)});
    }
    return sum;
  }

  TREESPEC_DEVICE LawFeatures total(Shared& s) const {
    LawFeatures sum;
    for (int32_t b = 0; b < rows.law[0].num_blocks(); ++b) {
      for (int width = kWarpsOfGroup / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) {
          s.sum[b][i] = shared::sum_of(s.sum[b][2 * i], s.sum[b][2 * i + 1]);
        }
      }
      sum = shared::sum_of(sum, s.sum[b][0]);
    }
    return sum;
  }
};

/// Without the ids that the target does not have.
RowsView bounded(RowsView rows, int64_t vocab_size) {
  rows.width = std::min(rows.width, vocab_size);
  return rows;
}

size_t sums_bytes(const RowsView& rows) {
  return RowSums::bytes(rows.num_rows, shared::num_blocks(rows.width));
}

void check(const RootLaws& laws) {
  constexpr const char* kWho = "root_scalars";
  const int64_t batch = laws.target.num_rows;
  check_batch(kWho, "rows of target", static_cast<int32_t>(std::min<int64_t>(batch, INT32_MAX)));
  check_logits(kWho, laws.target);
  for (const RowsView* rows : {&laws.draft, &laws.root}) {
    check_logits(kWho, bounded(*rows, kMostVocab));
    TREESPEC_CHECK(rows->num_rows == batch, kWho, ": draft and root must have the target's ", batch,
                   " rows, got ", rows->num_rows);
  }
  if (batch == 0) return;
  check_pointer(kWho, "sampling", laws.sampling);
  check_pointer(kWho, "draft_sampling", laws.draft_sampling);
  check_pointer(kWho, "tokens_before", laws.tokens_before);
}

}  // namespace

size_t root_scalars_workspace_bytes(const RootLaws& laws) {
  check(laws);
  const int64_t vocab_size = laws.target.width;
  return sums_bytes(laws.target) + sums_bytes(bounded(laws.draft, vocab_size)) +
         sums_bytes(bounded(laws.root, vocab_size)) +
         use_table_bytes(laws.changes, static_cast<int32_t>(laws.target.num_rows), vocab_size);
}

void root_scalars(Stream stream, const RootLaws& laws, void* workspace, size_t workspace_bytes,
                  float* scalars, uint32_t* status) {
  constexpr const char* kWho = "root_scalars";
  check_workspace(kWho, workspace, workspace_bytes, root_scalars_workspace_bytes(laws));
  const auto batch = static_cast<int32_t>(laws.target.num_rows);
  if (batch == 0) return;
  check_pointer(kWho, "scalars", scalars);
  check_pointer(kWho, "status", status);
  RootRows rows = {{{laws.target, laws.sampling, laws.changes, nullptr, {}},
                    {laws.draft, laws.draft_sampling, {}, nullptr, {}},
                    {laws.root, laws.draft_sampling, {}, nullptr, {}}},
                   {}};
  auto* memory = static_cast<char*>(workspace);
  for (LawRows& own : rows.law) {
    own.rows = bounded(own.rows, laws.target.width);
    own.sums = RowSums::at(memory, batch, own.num_blocks());
    memory += sums_bytes(own.rows);
  }
  rows.law[0].use_table = count_history(stream, laws.changes, batch, rows.law[0].size(), memory);
  // A root for each sequence. No path leads to it, so that its token and parent are not read; a
  // sequence without a token before has no node, and its rows are not read.
  rows.roots.batch = batch;
  rows.roots.max_nodes = 1;
  rows.roots.num_nodes = const_cast<int32_t*>(laws.tokens_before);
  rows.roots.token = rows.roots.parent = rows.roots.num_nodes;
  for (const LawRows& own : rows.law) {
    sum_rows(stream,
             {own.rows, rows.roots, DraftLaw{}, {own.sampling, false}, own.changes, own.use_table},
             own.sums);
  }
  simt::launch(stream, {batch, 1, sizeof(ReadLaws::Shared)},
               ReadLaws{rows, laws.tokens_before, scalars, status});
}

}  // namespace treespec::device
