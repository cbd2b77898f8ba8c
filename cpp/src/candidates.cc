// SPDX-License-Identifier: Apache-2.0
#include "treespec/candidates.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "row_ops.h"
#include "shared/block_sum.hd.h"
#include "shared/ranking.hd.h"
#include "shared/simd.h"
#include "treespec/error.h"

namespace treespec {
namespace {

using shared::kBlock;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

/// The best entries of a row. Takes what may be among them and cuts back when it has many; the
/// least value of interest rises quickly, so that most lanes are passed over.
class Leaders {
 public:
  explicit Leaders(int64_t width) : width_(width) {}

  void clear() {
    value_.clear();
    token_.clear();
    least_ = std::numeric_limits<float>::lowest();
    limit_ = 2 * width_;
    fresh_ = true;
  }

  /// `lane_max`: of row::lane_maxima.
  void offer(const float* block, int64_t size, int64_t first_token, const float* lane_max) {
    if (fresh_ && width_ <= row::kMaxLanes) raise_to_lanes(lane_max);
    fresh_ = false;
    int32_t lanes[row::kMaxLanes];
    const int32_t num_lanes = row::at_least(lane_max, row::kMaxLanes, least_, lanes);
    for (int32_t i = 0; i < num_lanes; ++i) {
      for (int64_t t = lanes[i]; t < size; t += row::kMaxLanes) {
        if (!(block[t] >= least_)) continue;
        value_.push_back(block[t]);
        token_.push_back(static_cast<int32_t>(first_token + t));
      }
    }
    if (count() > limit_) cut();
  }

  /// At most `width` entries as rank_word, best first.
  std::vector<uint64_t> take() const {
    std::vector<uint64_t> best;
    for (size_t i = 0; i < value_.size(); ++i) {
      best.push_back(shared::rank_word(value_[i], token_[i]));
    }
    const auto kept = std::min(static_cast<std::ptrdiff_t>(width_), best.end() - best.begin());
    std::partial_sort(best.begin(), best.begin() + kept, best.end());
    best.erase(best.begin() + kept, best.end());
    return best;
  }

 private:
  int64_t count() const { return static_cast<int64_t>(value_.size()); }

  /// `width` lanes hold as many entries of at least their worst maximum.
  void raise_to_lanes(const float* lane_max) {
    float sorted[row::kMaxLanes];
    std::copy_n(lane_max, row::kMaxLanes, sorted);
    std::nth_element(sorted, sorted + width_ - 1, sorted + row::kMaxLanes, std::greater<>());
    least_ = std::max(least_, sorted[width_ - 1]);
  }

  /// Raises the least value of interest by bisection, which is cheaper than sorting, until not many
  /// more than `width` entries are left. Ties stay: take() decides them.
  void cut() {
    float low = *std::min_element(value_.begin(), value_.end());  // at least `width` reach it
    float high = row::max(value_.data(), count());
    for (int step = 0; step < 24; ++step) {
      const float middle = low + (high - low) * 0.5f;
      const int64_t above = row::count_at_least(value_.data(), count(), middle);
      (above >= width_ ? low : high) = middle;
      if (above >= width_ && above <= width_ + width_ / 4) break;
    }
    least_ = low;
    size_t kept = 0;
    for (size_t i = 0; i < value_.size(); ++i) {
      value_[kept] = value_[i];
      token_[kept] = token_[i];
      kept += value_[i] >= low;
    }
    value_.resize(kept);
    token_.resize(kept);
    limit_ = 2 * std::max(width_, count());
  }

  int64_t width_, limit_ = 0;
  float least_ = 0.0f;
  bool fresh_ = true;
  std::vector<float> value_;
  std::vector<int32_t> token_;
};

/// Statistics of the blocks of a row.
struct BlockSums {
  std::vector<float> top;   // largest logit
  std::vector<double> sum;  // of exp(scale * (x - top))

  void clear() {
    top.clear();
    sum.clear();
  }
  float row_top() const {
    float best = kLowest;
    for (const float value : top) best = value > best ? value : best;
    return best;
  }
  /// ln of the sum over the row of exp(scale * (x - row_top)).
  double log_mass(double scale) const {
    const float best = row_top();
    double mass = 0.0;
    for (size_t b = 0; b < top.size(); ++b) {
      mass += shared::block_mass(top[b], sum[b], best, scale);
    }
    return shared::log_mass(mass);
  }
};

/// Sums the blocks of row `r`; `visit(block, size, begin, lane_max)` sees each of them.
template <class Visit>
void sum_row(const char* who, const RowsView& logits, int64_t r, double scale, BlockSums& sums,
             Visit&& visit) {
  sums.clear();
  float lane_max[row::kMaxLanes];
  row::BlockReader reader(logits, r);
  for (int64_t begin = 0; begin < logits.width; begin += kBlock) {
    const int64_t size = std::min(kBlock, logits.width - begin);
    const float* block = reader.read(begin, size);
    const float top = row::lane_maxima(block, size, lane_max);
    TREESPEC_CHECK(top < std::numeric_limits<float>::infinity(), who,
                   ": logits must not contain NaN or +inf, row ", r, " does");
    sums.top.push_back(top);
    sums.sum.push_back(top == kLowest
                           ? 0.0
                           : row::exp_sum(block, size, top, scale, reader.address(begin + size),
                                          size_of(logits.dtype)));
    visit(block, size, begin, lane_max);
  }
  TREESPEC_CHECK(sums.row_top() != kLowest, who, ": logits must have a finite entry in row ", r);
}

void check_temperature(const char* who, double temperature) {
  TREESPEC_CHECK(temperature >= 1e-6 && temperature <= 1e6, who,
                 ": temperature must be in [1e-6, 1e6], got ", temperature);
}

TREESPEC_SIMD void block_logprobs(const float* block, int64_t size, float top, double scale,
                                  double log_mass, float* logprob) {
  for (int64_t t = 0; t < size; ++t) {
    logprob[t] = shared::candidate_logprob(block[t], top, scale, log_mass);
  }
}

}  // namespace

void log_probs(const RowsView& logits, double temperature, float* logprob) {
  check_temperature("log_probs", temperature);
  const double scale = 1.0 / temperature;
  BlockSums sums;
  for (int64_t r = 0; r < logits.num_rows; ++r) {
    sum_row("log_probs", logits, r, scale, sums, [](auto&&...) {});
    const float top = sums.row_top();
    const double log_mass = sums.log_mass(scale);
    row::BlockReader reader(logits, r);
    for (int64_t begin = 0; begin < logits.width; begin += kBlock) {
      const int64_t size = std::min(kBlock, logits.width - begin);
      block_logprobs(reader.read(begin, size), size, top, scale, log_mass,
                     logprob + r * logits.width + begin);
    }
  }
}

void rank_candidates(const RowsView& logits, int32_t width, double temperature, int32_t* token,
                     float* logprob) {
  TREESPEC_CHECK(width >= 1, "rank_candidates: width must be >= 1, got ", width);
  check_temperature("rank_candidates", temperature);
  const double scale = 1.0 / temperature;
  Leaders leaders(std::min<int64_t>(width, logits.width));
  BlockSums sums;
  for (int64_t r = 0; r < logits.num_rows; ++r) {
    leaders.clear();
    sum_row("rank_candidates", logits, r, scale, sums,
            [&](const float* block, int64_t size, int64_t begin, const float* lane_max) {
              leaders.offer(block, size, begin, lane_max);
            });
    const float top = sums.row_top();
    const double log_mass = sums.log_mass(scale);
    std::vector<uint64_t> ranked = leaders.take();
    for (uint64_t& word : ranked) {
      const float logit = shared::value_of_word(word);
      word = shared::rank_word(shared::candidate_logprob(logit, top, scale, log_mass),
                               shared::token_of_word(word));
    }
    std::sort(ranked.begin(), ranked.end());  // rounding may have made new ties
    for (int64_t k = 0; k < width; ++k) {
      const bool given = k < static_cast<int64_t>(ranked.size());
      const uint64_t word = given ? ranked[static_cast<size_t>(k)] : 0;
      token[r * width + k] = shared::token_of_word(word);
      logprob[r * width + k] = given ? shared::value_of_word(word) : kLowest;
    }
  }
}

}  // namespace treespec
