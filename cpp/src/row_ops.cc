// SPDX-License-Identifier: Apache-2.0
#include "row_ops.h"

#include <algorithm>
#include <limits>

#include "shared/block_sum.hd.h"
#include "shared/fixed_point.hd.h"
#include "shared/half.hd.h"
#include "shared/math.hd.h"
#include "shared/simd.h"

namespace treespec::row {
namespace {

constexpr int64_t kRaceBlock = 256;
constexpr double kSlack = 1.0 + 1e-9;  // covers every rounding of the bound of a race

TREESPEC_SIMD void exp_shifted(const float* score, int64_t size, double top, double* weights) {
  for (int64_t t = 0; t < size; ++t) {
    weights[t] = shared::exp_nonpositive(static_cast<double>(score[t]) - top);
  }
}

/// Running maxima side by side: a single one is a chain of dependent steps, four times slower.
template <class T>
TREESPEC_INLINE T max_of(const T* values, int64_t size) {
  constexpr int64_t kLanes = 64;
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  T lane[kLanes];
  for (T& top : lane) top = kLowest;
  int64_t t = 0;
  for (; t + kLanes <= size; t += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i)
      lane[i] = values[t + i] > lane[i] ? values[t + i] : lane[i];
  }
  T top = kLowest;
  for (const T value : lane) top = value > top ? value : top;
  for (; t < size; ++t) top = values[t] > top ? values[t] : top;
  return top;
}

/// random53 of `size` consecutive draw indices from `first`.
TREESPEC_SIMD void random_block(const RoundKey& key, Purpose purpose, uint32_t node_slot,
                                uint32_t first, int64_t size, uint64_t* out) {
  const uint32_t base = first | static_cast<uint32_t>(purpose) << 24;
  for (int64_t i = 0; i < size; ++i) {
    const auto w = philox<uint64_t>(base + static_cast<uint32_t>(i), node_slot, key.position,
                                    key.sequence_id, key.seed);
    out[i] = (w.word[1] << 32 | w.word[0]) >> 11;
  }
}

/// 1 - U, up to its last bit: a lower bound of -ln(U).
TREESPEC_HD double distance_to_one(uint64_t random) {
  return static_cast<double>((uint64_t{1} << 53) - 1 - random) * kTwoToMinus53;
}

/// Marks the entries that may still arrive before `worst` and returns how many; 0 weights never do.
TREESPEC_SIMD int64_t mark_hopeful(const double* weights, const uint64_t* random, int64_t size,
                                   double worst, uint8_t* hopeful) {
  int64_t count = 0;
  for (int64_t i = 0; i < size; ++i) {
    const bool may_win =
        (weights[i] > 0.0) & (distance_to_one(random[i]) <= worst * weights[i] * kSlack);
    hopeful[i] = may_win;
    count += may_win;
  }
  return count;
}

TREESPEC_SIMD int64_t count_positive(const double* weights, int64_t size) {
  int64_t count = 0;
  for (int64_t t = 0; t < size; ++t) count += weights[t] > 0.0;
  return count;
}

/// The leaders of a race: the best `count` so far, a heap with the last of them in front.
class Leaders {
 public:
  explicit Leaders(int32_t count) : count_(static_cast<size_t>(count)) {}

  void offer(int64_t entry, double weight, uint64_t random) {
    // -ln(U) >= 1 - U, so this entry cannot win and the logarithm is not needed.
    if (distance_to_one(random) > worst_ * weight * kSlack) return;
    const double u = static_cast<double>(random + 1) * kTwoToMinus53;
    const Arrival arrival{-shared::log_unit(u) / weight, static_cast<int32_t>(entry)};
    if (!(arrival.time < worst_)) return;
    if (best_.size() == count_) {
      std::pop_heap(best_.begin(), best_.end());
      best_.pop_back();
    }
    best_.push_back(arrival);
    std::push_heap(best_.begin(), best_.end());
    if (best_.size() == count_) worst_ = best_.front().time;
  }

  /// Later arrivals change nothing.
  double worst() const { return worst_; }

  std::vector<int32_t> entries() {
    std::sort_heap(best_.begin(), best_.end());
    std::vector<int32_t> out;
    for (const Arrival& arrival : best_) out.push_back(arrival.entry);
    return out;
  }

 private:
  struct Arrival {
    double time;
    int32_t entry;
    bool operator<(const Arrival& other) const {
      return time != other.time ? time < other.time : entry < other.entry;
    }
  };
  size_t count_;
  double worst_ = std::numeric_limits<double>::infinity();
  std::vector<Arrival> best_;
};

}  // namespace

double exp_row(const float* score, int64_t size, double* weights) {
  const auto top = static_cast<double>(max(score, size));
  exp_shifted(score, size, top, weights);
  return top;
}

TREESPEC_SIMD uint64_t fixed_sum(const double* values, int64_t size) {
  int64_t total = 0;
  for (int64_t t = 0; t < size; ++t) total += shared::to_fixed(values[t]);
  return static_cast<uint64_t>(total);
}

TREESPEC_SIMD uint64_t raw_fixed_sum(const double* values, int64_t size) {
  int64_t total = 0;
  for (int64_t t = 0; t < size; ++t) total += shared::to_raw_fixed(values[t]);
  return static_cast<uint64_t>(total);
}

TREESPEC_SIMD void scale(double* values, int64_t size, double factor) {
  for (int64_t t = 0; t < size; ++t) values[t] *= factor;
}

TREESPEC_SIMD void normalise(double* values, int64_t size, double mass) {
  for (int64_t t = 0; t < size; ++t) values[t] = static_cast<float>(values[t] / mass);
}

TREESPEC_SIMD uint64_t residual(double* target, const double* draft, int64_t size,
                                double target_scale, double draft_scale) {
  int64_t total = 0;
  for (int64_t t = 0; t < size; ++t) {
    const double difference = target[t] * target_scale - draft[t] * draft_scale;
    target[t] = difference > 0.0 ? difference : 0.0;
    total += shared::to_fixed(target[t]);
  }
  return static_cast<uint64_t>(total);
}

TREESPEC_SIMD uint64_t subtract_overlap(double* target, const double* draft, int64_t size,
                                        double target_scale, double draft_scale, double gamma,
                                        double rho) {
  int64_t total = 0;
  for (int64_t t = 0; t < size; ++t) {
    const double p = target[t] * target_scale, q = draft[t] * draft_scale;
    const double shared_mass = p / rho < q ? p / rho : q;
    const double left = p - gamma * shared_mass;
    target[t] = left > 0.0 ? left : 0.0;
    total += shared::to_fixed(target[t]);
  }
  return static_cast<uint64_t>(total);
}

TREESPEC_SIMD uint64_t overlap(const double* target, const double* draft, int64_t size,
                               double target_scale, double draft_scale, double rho) {
  int64_t total = 0;
  for (int64_t t = 0; t < size; ++t) {
    const double p = target[t] * target_scale, q = draft[t] * draft_scale;
    total += shared::to_fixed(p / rho < q ? p / rho : q);
  }
  return static_cast<uint64_t>(total);
}

TREESPEC_SIMD float max(const float* values, int64_t size) { return max_of(values, size); }
TREESPEC_SIMD double max(const double* values, int64_t size) { return max_of(values, size); }

TREESPEC_SIMD bool all_at_most(const float* values, int64_t size, float limit) {
  int32_t bad = 0;
  for (int64_t t = 0; t < size; ++t) bad |= !(values[t] <= limit);
  return bad == 0;
}

namespace {

template <class From, class Convert>
TREESPEC_INLINE void convert_row(const From* data, int64_t size, float* out, Convert convert) {
  for (int64_t t = 0; t < size; ++t) out[t] = convert(data[t]);
}

TREESPEC_SIMD void from_double(const double* data, int64_t size, float* out) {
  convert_row(data, size, out, [](double x) { return static_cast<float>(x); });
}
TREESPEC_SIMD void from_float16(const uint16_t* data, int64_t size, float* out) {
  // shared::float16_to_float in masks: its branches keep a loop from being vectorised.
  convert_row(data, size, out, [](uint16_t half) {
    const uint32_t bits = half;
    const uint32_t infinite = (bits & 0x7C00u) == 0x7C00u ? 0x7F800000u : 0u;
    const uint32_t subnormal = (bits & 0x7C00u) == 0u ? ~0u : 0u;
    const uint32_t normal = (((bits & 0x7FFFu) << 13) + (112u << 23)) | infinite;
    const float small = shared::bits_to_float((113u << 23) | (bits & 0x3FFu) << 13) - 0x1p-14f;
    return shared::bits_to_float((bits & 0x8000u) << 16 | (normal & ~subnormal) |
                                 (shared::float_to_bits(small) & subnormal));
  });
}
TREESPEC_SIMD void from_bfloat16(const uint16_t* data, int64_t size, float* out) {
  convert_row(data, size, out, shared::bfloat16_to_float);
}

}  // namespace

void to_float(const void* data, DType dtype, int64_t first, int64_t size, float* out) {
  switch (dtype) {
    case DType::kFloat32:
      std::copy_n(static_cast<const float*>(data) + first, size, out);
      return;
    case DType::kFloat64:
      return from_double(static_cast<const double*>(data) + first, size, out);
    case DType::kFloat16:
      return from_float16(static_cast<const uint16_t*>(data) + first, size, out);
    case DType::kBFloat16:
      return from_bfloat16(static_cast<const uint16_t*>(data) + first, size, out);
  }
}

namespace {

/// Bits without the sign: NaN has the largest.
TREESPEC_INLINE uint32_t magnitude_of(float x) { return shared::float_to_bits(x) & 0x7FFFFFFFu; }
TREESPEC_INLINE uint64_t magnitude_of(double x) {
  return static_cast<uint64_t>(shared::double_to_bits(x)) & 0x7FFFFFFFFFFFFFFFu;
}

template <class T>
TREESPEC_INLINE T lane_maxima_of(const T* block, int64_t size, T* lane_max) {
  using Bits = decltype(magnitude_of(T{}));
  T lane[kMaxLanes];  // local: it cannot alias the block
  Bits magnitude[kMaxLanes] = {};
  for (T& top : lane) top = -std::numeric_limits<T>::infinity();
  const auto look = [&](int64_t i, T x) {
    const Bits bits = magnitude_of(x);
    lane[i] = x > lane[i] ? x : lane[i];
    magnitude[i] = bits > magnitude[i] ? bits : magnitude[i];
  };
  int64_t t = 0;
  for (; t + kMaxLanes <= size; t += kMaxLanes) {
    for (int64_t i = 0; i < kMaxLanes; ++i) look(i, block[t + i]);
  }
  for (int64_t i = 0; t + i < size; ++i) look(i, block[t + i]);
  std::copy_n(lane, kMaxLanes, lane_max);
  const Bits infinity = magnitude_of(std::numeric_limits<T>::infinity());
  const bool sound = *std::max_element(magnitude, magnitude + kMaxLanes) <= infinity;
  return sound ? max_of(lane, kMaxLanes) : std::numeric_limits<T>::quiet_NaN();
}

}  // namespace

TREESPEC_SIMD float lane_maxima(const float* block, int64_t size, float* lane_max) {
  return lane_maxima_of(block, size, lane_max);
}
TREESPEC_SIMD double lane_maxima(const double* block, int64_t size, double* lane_max) {
  return lane_maxima_of(block, size, lane_max);
}

int32_t at_least(const float* values, int32_t size, float least, int32_t* places) {
  int32_t count = 0;
  for (int32_t i = 0; i < size; ++i) {
    places[count] = i;  // kept when it counts: no branch to mispredict
    count += values[i] >= least;
  }
  return count;
}

TREESPEC_SIMD int64_t count_at_least(const float* values, int64_t size, float least) {
  int32_t count = 0;
  for (int64_t t = 0; t < size; ++t) count += values[t] >= least;
  return count;
}

namespace {

constexpr int64_t kGroup = 64;  // lanes summed side by side: what fits the registers

}  // namespace

TREESPEC_SIMD double exp_sum(const float* block, int64_t size, float top, double scale,
                             const void* next, int64_t item_bytes) {
  constexpr int64_t kLanes = shared::kLanes;
  const int64_t whole = size / kLanes * kLanes;
  double lane[kLanes];
  for (int64_t group = 0; group < kLanes; group += kGroup) {
    float sum[kGroup] = {};
    int64_t t = group;
    for (; t < whole; t += kLanes) {
      // Fetch the block that follows while the arithmetic units are busy with this one.
      const char* lines = static_cast<const char*>(next) + t * item_bytes;
      for (int64_t i = 0; i < kGroup * item_bytes; i += 64) __builtin_prefetch(lines + i);
      for (int64_t i = 0; i < kGroup; ++i) sum[i] += shared::exp_unit(block[t + i], top, scale);
    }
    for (int64_t i = 0; i < kGroup && t + i < size; ++i) {
      sum[i] += shared::exp_unit(block[t + i], top, scale);
    }
    for (int64_t i = 0; i < kGroup; ++i) lane[group + i] = static_cast<double>(sum[i]);
  }
  return shared::lane_tree(lane);
}

double exp_sum(const double* block, int64_t size, double top, double scale, const void*, int64_t) {
  double unit[shared::kBlock];
  exp_units(block, size, top, scale, unit);
  return lane_sum(unit, size);
}

TREESPEC_SIMD void exp_units(const float* block, int64_t size, float top, double scale,
                             double* unit) {
  for (int64_t t = 0; t < size; ++t) {
    unit[t] = static_cast<double>(shared::exp_unit(block[t], top, scale));
  }
}

TREESPEC_SIMD void exp_units(const double* block, int64_t size, double top, double scale,
                             double* unit) {
  for (int64_t t = 0; t < size; ++t) unit[t] = shared::exp_unit(block[t], top, scale);
}

namespace {

template <class T>
TREESPEC_INLINE void law_points_of(const T* block, int64_t size, T top, double scale,
                                   const shared::Normaliser& normaliser, double* prob,
                                   double* log_prob) {
  const shared::Normaliser by = normaliser;  // local: it cannot alias what is written
  for (int64_t t = 0; t < size; ++t) {
    const auto unit = static_cast<double>(shared::exp_unit(block[t], top, by.inverse_temperature));
    const shared::LawPoint point = by.point(scale * unit, static_cast<double>(block[t]));
    prob[t] = point.prob;
    log_prob[t] = point.log_prob;
  }
}

}  // namespace

TREESPEC_SIMD void law_points(const float* block, int64_t size, float top, double scale,
                              const shared::Normaliser& normaliser, double* prob,
                              double* log_prob) {
  law_points_of(block, size, top, scale, normaliser, prob, log_prob);
}
TREESPEC_SIMD void law_points(const double* block, int64_t size, double top, double scale,
                              const shared::Normaliser& normaliser, double* prob,
                              double* log_prob) {
  law_points_of(block, size, top, scale, normaliser, prob, log_prob);
}

TREESPEC_SIMD void lane_sums(const double* block, int64_t size, double* lane) {
  double sum[shared::kLanes] = {};  // local: it cannot alias the block
  for (int64_t begin = 0; begin < size; begin += shared::kLanes) {
    const int64_t count = std::min(shared::kLanes, size - begin);
    for (int64_t i = 0; i < count; ++i) sum[i] += block[begin + i];
  }
  std::copy_n(sum, shared::kLanes, lane);
}

double lane_sum(const double* block, int64_t size) {
  double lane[shared::kLanes];
  lane_sums(block, size, lane);
  return shared::lane_tree(lane);
}

std::vector<int32_t> race(const Race& entries, const RoundKey& key, Purpose purpose,
                          uint32_t node_slot, int32_t count) {
  const auto [weights, size, token, first] = entries;
  Leaders leaders(count);
  uint64_t random[kRaceBlock];
  uint8_t hopeful[kRaceBlock];
  for (int64_t begin = 0; begin < size; begin += kRaceBlock) {
    const int64_t end = std::min(size, begin + kRaceBlock);
    const int64_t positive = count_positive(weights + begin, end - begin);
    // A truncated row has few positive weights per block: draw only theirs.
    const bool dense = token == nullptr && positive > kRaceBlock / 8;
    if (dense) {
      random_block(key, purpose, node_slot, first + static_cast<uint32_t>(begin), end - begin,
                   random);
      const int64_t left =
          mark_hopeful(weights + begin, random, end - begin, leaders.worst(), hopeful);
      for (int64_t t = begin; left > 0 && t < end; ++t) {
        if (hopeful[t - begin] != 0) leaders.offer(t, weights[t], random[t - begin]);
      }
      continue;
    }
    for (int64_t t = begin; positive > 0 && t < end; ++t) {
      if (!(weights[t] > 0.0)) continue;
      const uint32_t id =
          token != nullptr ? static_cast<uint32_t>(token[t]) : first + static_cast<uint32_t>(t);
      leaders.offer(t, weights[t], random53(key, purpose, node_slot, id));
    }
  }
  return leaders.entries();
}

}  // namespace treespec::row
