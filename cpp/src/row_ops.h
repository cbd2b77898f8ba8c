// SPDX-License-Identifier: Apache-2.0
// Vectorised passes over one vocabulary row; the only loops of length V in the core.
#pragma once

#include <cstdint>
#include <vector>

#include "shared/block_sum.hd.h"
#include "shared/law.hd.h"
#include "shared/math.hd.h"
#include "treespec/array_view.h"
#include "treespec/rng.h"

namespace treespec::row {

/// weights[t] = exp(score[t] - max), max over the row; returns max. -inf gives 0.
double exp_row(const float* score, int64_t size, double* weights);

/// Sum of floor(value * 2^60); values in [0, 8).
uint64_t fixed_sum(const double* values, int64_t size);
/// Sum of floor(value * 2^44); values up to 2^19.
uint64_t raw_fixed_sum(const double* values, int64_t size);
/// values *= factor.
void scale(double* values, int64_t size, double factor);
/// values = float32(values / mass), kept in double.
void normalise(double* values, int64_t size, double mass);
/// target[t] = max(target[t] * target_scale - draft[t] * draft_scale, 0); returns its fixed_sum.
uint64_t residual(double* target, const double* draft, int64_t size, double target_scale,
                  double draft_scale);

/// target[t] = max(p - gamma * min(p / rho, q), 0) with p, q scaled; returns its fixed_sum.
uint64_t subtract_overlap(double* target, const double* draft, int64_t size, double target_scale,
                          double draft_scale, double gamma, double rho);
/// fixed_sum of min(p / rho, q) with p, q scaled.
uint64_t overlap(const double* target, const double* draft, int64_t size, double target_scale,
                 double draft_scale, double rho);

/// Largest value of the row; -inf for an empty one. NaN is not seen: see all_at_most.
float max(const float* values, int64_t size);
double max(const double* values, int64_t size);
/// Whether every value is <= limit; false when there is a NaN.
bool all_at_most(const float* values, int64_t size, float limit);

/// Entries first ... first + size of a row of any dtype, as float32.
void to_float(const void* data, DType dtype, int64_t first, int64_t size, float* out);
/// Reads a row of any dtype as float32 blocks.
class BlockReader {
 public:
  static constexpr int64_t kBlock = shared::kBlock;

  BlockReader(const RowsView& rows, int64_t row) : rows_(rows), first_(row * rows.row_stride) {
    if (rows.dtype != DType::kFloat32) copy_.resize(static_cast<size_t>(kBlock));
  }
  /// Entries begin ... begin + size, at most kBlock; valid until the next call.
  const float* read(int64_t begin, int64_t size) {
    if (rows_.dtype == DType::kFloat32) return static_cast<const float*>(address(begin));
    to_float(rows_.data, rows_.dtype, first_ + begin, size, copy_.data());
    return copy_.data();
  }
  /// Where entry `begin` lies, in the row's own dtype.
  const void* address(int64_t begin) const {
    return static_cast<const char*>(rows_.data) + (first_ + begin) * size_of(rows_.dtype);
  }

 private:
  const RowsView& rows_;
  int64_t first_;
  std::vector<float> copy_;
};

/// Maxima of every kMaxLanes-th value: lane i of a block holds i, i + kMaxLanes, ...; -inf for an
/// empty lane. Returns the largest, or NaN when the block has one.
constexpr int64_t kMaxLanes = 128;
float lane_maxima(const float* block, int64_t size, float* lane_max);
double lane_maxima(const double* block, int64_t size, double* lane_max);
/// Visits the places of a block whose values may be of interest; `hopeful(v)` must also hold for
/// every value above v. Lanes whose best is not hopeful are passed over, so that a row of which
/// little matters costs one read. The visits come in no particular order.
template <class T, class Hopeful, class Visit>
void scan_block(const T* block, int64_t size, Hopeful&& hopeful, Visit&& visit) {
  T lane_max[kMaxLanes];
  if (!hopeful(lane_maxima(block, size, lane_max))) return;
  for (int64_t lane = 0; lane < kMaxLanes; ++lane) {
    if (!hopeful(lane_max[lane])) continue;
    for (int64_t t = lane; t < size; t += kMaxLanes) visit(t);
  }
}
/// The same for a whole row.
template <class Hopeful, class Visit>
void scan(const float* values, int64_t size, Hopeful&& hopeful, Visit&& visit) {
  for (int64_t begin = 0; begin < size; begin += shared::kBlock) {
    const int64_t block = size - begin < shared::kBlock ? size - begin : shared::kBlock;
    scan_block(values + begin, block, hopeful, [&](int64_t t) { visit(begin + t); });
  }
}
/// Places of the values >= least, ascending; returns how many. `places`: room for `size`.
int32_t at_least(const float* values, int32_t size, float least, int32_t* places);
int64_t count_at_least(const float* values, int64_t size, float least);

/// Sum over a block of exp(scale * (x - top)), scale > 0, as shared/block_sum.hd.h has it.
/// Prefetches `size * item_bytes` bytes from `next`, where the block that follows will come from.
double exp_sum(const float* block, int64_t size, float top, double scale, const void* next,
               int64_t item_bytes);
double exp_sum(const double* block, int64_t size, double top, double scale, const void* next,
               int64_t item_bytes);
/// unit[t] = shared::exp_unit(block[t], top, scale).
void exp_units(const float* block, int64_t size, float top, double scale, double* unit);
void exp_units(const double* block, int64_t size, double top, double scale, double* unit);
/// The law of a block of logits: points of `scale` * exp_units.
void law_points(const float* block, int64_t size, float top, double scale,
                const shared::Normaliser& normaliser, double* prob, double* log_prob);
void law_points(const double* block, int64_t size, double top, double scale,
                const shared::Normaliser& normaliser, double* prob, double* log_prob);
/// Lane sums of a block of float64 values, and their sum by the same partition.
void lane_sums(const double* block, int64_t size, double* lane);
double lane_sum(const double* block, int64_t size);

/// A weighted exponential race: entries of the `count` smallest -ln(U_i) / weight_i in ascending
/// order (ties by entry), fewer when fewer weights are positive. U_i = (random53 + 1) * 2^-53 of
/// the counter (token, purpose, node_slot, key). `token`: of entry i; null: first + i.
struct Race {
  const double* weight;
  int64_t size;
  const int32_t* token;
  uint32_t first;
};
std::vector<int32_t> race(const Race& entries, const RoundKey& key, Purpose purpose,
                          uint32_t node_slot, int32_t count);

}  // namespace treespec::row
