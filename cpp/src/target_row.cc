// SPDX-License-Identifier: Apache-2.0
#include "treespec/target_row.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "row_ops.h"
#include "shared/block_sum.hd.h"
#include "shared/fixed_point.hd.h"
#include "shared/law.hd.h"
#include "shared/math.hd.h"
#include "treespec/error.h"
#include "treespec/rng.h"

namespace treespec {
namespace {

using shared::kBlock;
using shared::kLanes;

// Draw indices of blocks and lanes lie behind those of tokens.
constexpr uint32_t kBlockDraw = 1u << 23;
constexpr uint32_t kLaneDraw = 1u << 22;

template <class T>
constexpr T kImpossible = -std::numeric_limits<T>::infinity();

double unit_of(float score, float top, double scale) {
  return static_cast<double>(shared::exp_unit(score, top, scale));
}
double unit_of(double score, double top, double scale) {
  return shared::exp_unit(score, top, scale);
}

/// Blocks of a row in the arithmetic of its dtype: float64, or float32 for all others.
template <class T>
class Reader;
template <>
class Reader<float> : public row::BlockReader {
 public:
  using BlockReader::BlockReader;
};
template <>
class Reader<double> {
 public:
  Reader(const RowsView& rows, int64_t row)
      : data_(static_cast<const double*>(rows.data) + row * rows.row_stride) {}
  const double* read(int64_t begin, int64_t) const { return data_ + begin; }
  const void* address(int64_t begin) const { return data_ + begin; }

 private:
  const double* data_;
};

/// Walks through ascending tokens block by block.
class Ascending {
 public:
  explicit Ascending(ArrayView<const int32_t> token) : token_(token) {}

  /// Those before `end`, after what was taken before.
  ArrayView<const int32_t> take(int64_t end) {
    const int64_t from = at_;
    while (at_ < token_.size() && token_[at_] < end) ++at_;
    return {token_.data() + from, at_ - from};
  }

 private:
  ArrayView<const int32_t> token_;
  int64_t at_ = 0;
};

template <class T>
struct Scored {
  int32_t token;
  T score;
};

/// What truncation needs to know of the blocks: largest score and weight of the unit.
template <class T>
class Truncator {
 public:
  struct Block {
    T top;
    double scale;
  };

  Truncator(const RowsView& source, int64_t row, const Truncation& rule, std::vector<Block> blocks,
            double mass)
      : source_(source), row_(row), rule_(rule), blocks_(std::move(blocks)), mass_(mass) {
    for (const Block& block : blocks_) top_ = std::max(top_, block.top);
  }

  /// What stays, by ascending token.
  std::vector<Scored<T>> run() {
    const bool few = rule_.top_k > 0 && rule_.top_k < source_.width;
    if (few) keep_top_k();
    if (rule_.top_p < 1.0) keep_top_p(few);
    if (rule_.min_p > 0.0) keep_min_p(few || rule_.top_p < 1.0);
    std::sort(kept_.begin(), kept_.end(),
              [](const Scored<T>& a, const Scored<T>& b) { return a.token < b.token; });
    return std::move(kept_);
  }

 private:
  double weight(const Scored<T>& entry) const {
    const Block& block = blocks_[static_cast<size_t>(entry.token / kBlock)];
    return block.scale * unit_of(entry.score, block.top, 1.0 / rule_.temperature);
  }

  /// Visits the possible tokens for which `hopeful(score)` holds, which must rise with the score.
  template <class Hopeful, class Visit>
  void visit(const Hopeful& hopeful, Visit&& visit) {
    const auto possible = [&](T score) { return score > kImpossible<T> && hopeful(score); };
    Reader<T> reader(source_, row_);
    for (size_t b = 0; b < blocks_.size(); ++b) {
      if (!possible(blocks_[b].top)) continue;
      const int64_t begin = static_cast<int64_t>(b) * kBlock;
      const int64_t size = std::min(kBlock, source_.width - begin);
      const T* block = reader.read(begin, size);
      row::scan_block(block, size, possible, [&](int64_t t) {
        if (possible(block[t])) visit(static_cast<int32_t>(begin + t), block[t]);
      });
    }
  }

  template <class Hopeful>
  void collect(const Hopeful& hopeful) {
    kept_.clear();
    visit(hopeful, [&](int32_t token, T score) { kept_.push_back({token, score}); });
  }

  /// Drops what is below the k-th largest score after division by temperature; its ties stay.
  void keep_top_k() {
    std::vector<T> best;  // a heap with the least in front
    const auto size = static_cast<size_t>(rule_.top_k);
    visit([&](T score) { return best.size() < size || score > best.front(); },
          [&](int32_t, T score) {
            if (best.size() == size) {
              std::pop_heap(best.begin(), best.end(), std::greater<>());
              best.pop_back();
            }
            best.push_back(score);
            std::push_heap(best.begin(), best.end(), std::greater<>());
          });
    const auto temperature = static_cast<T>(rule_.temperature);
    const T least = best.size() < size ? kImpossible<T> : best.front() / temperature;
    collect([&](T score) { return score / temperature >= least; });
  }

  /// Keeps tokens, highest score first (ties by id), until the mass before a token reaches top_p.
  void keep_top_p(bool collected) {
    if (collected) mass_ = shared::from_raw_fixed(held());
    const double enough = rule_.top_p * mass_;
    // Sort only the head of the row: lower the cut until the head holds enough mass.
    constexpr double kStep = 4.0, kLast = 32.0;  // nats; beyond e^-32 nothing is left to find
    for (double depth = kStep; !collected; depth += kStep) {
      const T least = depth > kLast
                          ? kImpossible<T>
                          : static_cast<T>(static_cast<double>(top_) - depth * rule_.temperature);
      collect([&](T score) { return score >= least; });
      collected = depth > kLast || shared::from_raw_fixed(held()) >= enough;
    }
    std::sort(kept_.begin(), kept_.end(), [](const Scored<T>& a, const Scored<T>& b) {
      return a.score != b.score ? a.score > b.score : a.token < b.token;
    });
    uint64_t before = 0;
    size_t count = 0;
    while (count < kept_.size() && (count == 0 || shared::from_raw_fixed(before) < enough)) {
      before += static_cast<uint64_t>(shared::to_raw_fixed(weight(kept_[count++])));
    }
    kept_.resize(count);
  }

  /// Drops what weighs less than min_p times the likeliest token.
  void keep_min_p(bool collected) {
    if (!collected) {
      const double depth = 1.0 - std::log(rule_.min_p);  // one nat more than needed
      const auto least = static_cast<T>(static_cast<double>(top_) - depth * rule_.temperature);
      collect([&](T score) { return score >= least; });
    }
    const auto unlikely = [&](const Scored<T>& entry) { return weight(entry) < rule_.min_p; };
    kept_.erase(std::remove_if(kept_.begin(), kept_.end(), unlikely), kept_.end());
  }

  uint64_t held() const {
    uint64_t sum = 0;
    for (const Scored<T>& entry : kept_) {
      sum += static_cast<uint64_t>(shared::to_raw_fixed(weight(entry)));
    }
    return sum;
  }

  const RowsView& source_;
  int64_t row_;
  const Truncation& rule_;
  std::vector<Block> blocks_;
  double mass_;
  T top_ = kImpossible<T>;
  std::vector<Scored<T>> kept_;
};

}  // namespace

void TargetRow::load_logits(const RowsView& scores, int64_t row, const Truncation& truncation,
                            ArrayView<const int32_t> without) {
  source_ = scores;
  row_ = row;
  kind_ = Kind::kLogits;
  exponent_scale_ = 1.0 / truncation.temperature;
  if (scores.dtype == DType::kFloat64) {
    load_logits_as<double>(truncation, without);
  } else {
    load_logits_as<float>(truncation, without);
  }
}

template <class T>
void TargetRow::load_logits_as(const Truncation& truncation, ArrayView<const int32_t> without) {
  const bool few = truncation.top_k > 0 && truncation.top_k < source_.width;
  const bool truncated = few || truncation.top_p < 1.0 || truncation.min_p > 0.0;
  const bool summed = !truncated || (truncation.top_p < 1.0 && !few);
  block_.clear();
  without_weight_.clear();
  Reader<T> reader(source_, row_);
  Ascending left_out(truncated ? ArrayView<const int32_t>() : without);
  T lane_max[row::kMaxLanes];
  T terms[kBlock];
  for (int64_t begin = 0; begin < source_.width; begin += kBlock) {
    const int64_t size = std::min(kBlock, source_.width - begin);
    const T* block = reader.read(begin, size);
    const T top = row::lane_maxima(block, size, lane_max);
    TREESPEC_CHECK(top < std::numeric_limits<T>::infinity(), "target_logits: row ", row_,
                   " must not contain NaN or +inf");
    const bool possible = top > kImpossible<T>;
    const ArrayView<const int32_t> missing = left_out.take(begin + size);
    take_units(missing, block, begin, size, top, possible);
    double sum = 0.0;
    if (summed && possible && missing.size() < size) {
      if (!missing.empty()) {
        std::copy_n(block, size, terms);
        for (const int32_t token : missing) terms[token - begin] = kImpossible<T>;
      }
      sum = row::exp_sum(missing.empty() ? block : terms, size, top, exponent_scale_,
                         reader.address(begin + size), size_of(source_.dtype));
    }
    block_.push_back({static_cast<double>(top), 0.0, sum});
  }
  weigh_blocks();
  if (truncated) {
    keep<T>(truncation, without);
  } else {
    for (int64_t i = 0; i < without.size(); ++i) {
      without_weight_[static_cast<size_t>(i)] *= block_[without[i] / kBlock].scale;
    }
  }
}

/// Appends the units of some tokens of a block to without_weight_.
template <class T>
void TargetRow::take_units(ArrayView<const int32_t> tokens, const T* block, int64_t begin,
                           int64_t size, T top, bool possible) {
  constexpr int64_t kMany = 64;  // from here on the whole block is quicker
  if (!possible) {
    without_weight_.insert(without_weight_.end(), static_cast<size_t>(tokens.size()), 0.0);
  } else if (tokens.size() < kMany) {
    for (const int32_t token : tokens) {
      without_weight_.push_back(unit_of(block[token - begin], top, exponent_scale_));
    }
  } else {
    double unit[kBlock];
    row::exp_units(block, size, top, exponent_scale_, unit);
    for (const int32_t token : tokens) without_weight_.push_back(unit[token - begin]);
  }
}

void TargetRow::weigh_blocks() {
  const double row_top = top();
  TREESPEC_CHECK(row_top > kImpossible<double>, "target_logits: row ", row_,
                 " must allow at least one token, every logit is -inf");
  for (Block& block : block_) {
    block.scale = block.top == kImpossible<double>
                      ? 0.0
                      : shared::exp_nonpositive((block.top - row_top) * exponent_scale_);
  }
}

/// The largest score.
double TargetRow::top() const {
  double top = kImpossible<double>;
  for (const Block& block : block_) top = std::max(top, block.top);
  return top;
}

template <class T>
void TargetRow::keep(const Truncation& truncation, ArrayView<const int32_t> without) {
  std::vector<typename Truncator<T>::Block> blocks;
  for (const Block& block : block_) blocks.push_back({static_cast<T>(block.top), block.scale});
  Truncator<T> truncator(source_, row_, truncation, std::move(blocks), mass());
  kept_token_.clear();
  kept_unit_.clear();
  for (const Scored<T>& entry : truncator.run()) {
    kept_token_.push_back(entry.token);
    kept_unit_.push_back(
        unit_of(entry.score, static_cast<T>(block_[entry.token / kBlock].top), exponent_scale_));
  }
  kind_ = Kind::kKept;
  sum_kept<T>(without);
}

/// The lanes of exp_sum, zeros not visited.
template <class T>
void TargetRow::sum_kept(ArrayView<const int32_t> without) {
  for (Block& block : block_) block.sum = 0.0;
  size_t at = 0;
  while (at < kept_token_.size()) {
    const int64_t b = kept_token_[at] / kBlock;
    T lane[kLanes] = {};
    for (; at < kept_token_.size() && kept_token_[at] / kBlock == b; ++at) {
      if (std::binary_search(without.begin(), without.end(), kept_token_[at])) continue;
      lane[kept_token_[at] % kLanes] += static_cast<T>(kept_unit_[at]);
    }
    double wide[kLanes];
    std::copy_n(lane, kLanes, wide);
    block_[b].sum = shared::lane_tree(wide);
  }
  without_weight_.clear();
  for (const int32_t token : without) without_weight_.push_back(weight(token));
}

void TargetRow::load_weights(const RowsView& weights, int64_t row,
                             ArrayView<const int32_t> without) {
  source_ = weights;
  row_ = row;
  kind_ = Kind::kWeights;
  block_.assign(static_cast<size_t>(shared::num_blocks(weights.width)), {0.0, 1.0, 0.0});
  without_weight_.clear();
  Ascending left_out(without);
  double buffer[kBlock], terms[kBlock];
  for (int64_t b = 0; b < num_blocks(); ++b) {
    const ArrayView<const double> unit = units(b, buffer).unit;
    std::copy(unit.begin(), unit.end(), terms);
    for (const int32_t token : left_out.take((b + 1) * kBlock)) {
      without_weight_.push_back(terms[token - b * kBlock]);
      terms[token - b * kBlock] = 0.0;
    }
    block_[b].sum = row::lane_sum(terms, unit.size());
  }
}

void TargetRow::load_one_hot(int32_t token, int32_t vocab_size, ArrayView<const int32_t> without) {
  source_ = {nullptr, DType::kFloat64, 1, vocab_size, vocab_size};
  kind_ = Kind::kKept;
  block_.assign(static_cast<size_t>(shared::num_blocks(vocab_size)), {0.0, 1.0, 0.0});
  kept_token_ = {token};
  kept_unit_ = {1.0};
  sum_kept<double>(without);
}

double TargetRow::mass() const {
  double sum = 0.0;
  for (int64_t b = 0; b < num_blocks(); ++b) sum += block_mass(b);
  return sum;
}

double TargetRow::weight(int32_t token) const {
  const Block& block = block_[token / kBlock];
  return block.scale > 0.0 ? block.scale * unit(token) : 0.0;
}

double TargetRow::unit(int32_t token) const {
  if (kind_ == Kind::kKept) {
    const auto at = std::lower_bound(kept_token_.begin(), kept_token_.end(), token);
    const bool kept = at != kept_token_.end() && *at == token;
    return kept ? kept_unit_[static_cast<size_t>(at - kept_token_.begin())] : 0.0;
  }
  const double value = score(token);
  const double top = block_[token / kBlock].top;
  if (kind_ == Kind::kWeights) return value;
  if (source_.dtype == DType::kFloat64) return unit_of(value, top, exponent_scale_);
  return unit_of(static_cast<float>(value), static_cast<float>(top), exponent_scale_);
}

/// What the row was loaded from has of a token.
double TargetRow::score(int32_t token) const {
  const int64_t at = row_ * source_.row_stride + token;
  if (source_.dtype == DType::kFloat64) return static_cast<const double*>(source_.data)[at];
  float value = 0.0f;
  row::to_float(source_.data, source_.dtype, at, 1, &value);
  return static_cast<double>(value);
}

TargetRow::Units TargetRow::units(int64_t block, double* buffer) const {
  const Block& sums = block_[block];
  const int64_t begin = block * kBlock;
  const int64_t size = std::min(kBlock, source_.width - begin);
  Units out;
  out.scale = sums.scale;
  out.first = static_cast<int32_t>(begin);
  out.unit = {buffer, size};
  if (kind_ == Kind::kKept) {
    const auto from = std::lower_bound(kept_token_.begin(), kept_token_.end(), begin);
    const auto to = std::lower_bound(from, kept_token_.end(), begin + size);
    const auto at = from - kept_token_.begin();
    out.token = kept_token_.data() + at;
    out.unit = {kept_unit_.data() + at, to - from};
  } else if (sums.scale == 0.0) {
    std::fill_n(buffer, size, 0.0);
  } else if (source_.dtype == DType::kFloat64) {
    const double* values = Reader<double>(source_, row_).read(begin, size);
    if (kind_ == Kind::kWeights) {
      out.unit = {values, size};
    } else {
      row::exp_units(values, size, sums.top, exponent_scale_, buffer);
    }
  } else {
    Reader<float> reader(source_, row_);
    const float* values = reader.read(begin, size);
    if (kind_ == Kind::kWeights) {
      std::copy_n(values, size, buffer);
    } else {
      row::exp_units(values, size, static_cast<float>(sums.top), exponent_scale_, buffer);
    }
  }
  return out;
}

void TargetRow::expand(double* weights) const {
  double buffer[kBlock];
  if (kind_ == Kind::kKept) std::fill_n(weights, vocab_size(), 0.0);
  for (int64_t b = 0; b < num_blocks(); ++b) {
    const Units block = units(b, buffer);
    for (int64_t i = 0; i < block.unit.size(); ++i) {
      weights[block.token_of(i)] = block.scale * block.unit[i];
    }
  }
}

void TargetRow::law(int64_t block, double mass, double* prob, double* log_prob) const {
  if (kind_ == Kind::kLogits && block_[block].scale > 0.0) {
    return source_.dtype == DType::kFloat64 ? law_of_logits<double>(block, mass, prob, log_prob)
                                            : law_of_logits<float>(block, mass, prob, log_prob);
  }
  double buffer[kBlock];
  const Units units = this->units(block, buffer);
  const auto normaliser = shared::Normaliser::of(mass, top(), exponent_scale_);
  const bool scored = kind_ != Kind::kWeights && source_.data != nullptr;
  const int64_t begin = block * kBlock;
  const int64_t size = std::min(kBlock, source_.width - begin);
  std::fill_n(prob, size, shared::LawPoint{}.prob);
  std::fill_n(log_prob, size, shared::LawPoint{}.log_prob);
  for (int64_t i = 0; i < units.unit.size(); ++i) {
    if (!(units.unit[i] > 0.0)) continue;
    const int32_t token = units.token_of(i);
    const double weight = units.scale * units.unit[i];
    const shared::LawPoint point = scored ? normaliser.point(weight, score(token))
                                          : shared::point_of(weight * normaliser.inverse_mass);
    prob[token - begin] = point.prob;
    log_prob[token - begin] = point.log_prob;
  }
}

template <class T>
void TargetRow::law_of_logits(int64_t block, double mass, double* prob, double* log_prob) const {
  const int64_t begin = block * kBlock;
  const int64_t size = std::min(kBlock, source_.width - begin);
  Reader<T> reader(source_, row_);
  row::law_points(reader.read(begin, size), size, static_cast<T>(block_[block].top),
                  block_[block].scale, shared::Normaliser::of(mass, top(), exponent_scale_), prob,
                  log_prob);
}

namespace {

/// Masses of the lanes of a block, `[kLanes]`.
std::vector<double> lane_masses(const TargetRow::Units& units) {
  std::vector<double> mass(kLanes, 0.0);
  if (units.token == nullptr) {
    row::lane_sums(units.unit.data(), units.unit.size(), mass.data());
    return mass;
  }
  for (int64_t i = 0; i < units.unit.size(); ++i) {
    mass[static_cast<size_t>(units.token[i] % kLanes)] += units.unit[i];
  }
  return mass;
}

}  // namespace

int32_t sample_at_position(const TargetRow& row, uint64_t seed, uint32_t sequence_id,
                           uint32_t position) {
  const RoundKey key{seed, sequence_id, position};
  const auto winner = [&](const std::vector<double>& weight, const int32_t* token, uint32_t first) {
    const auto size = static_cast<int64_t>(weight.size());
    return row::race({weight.data(), size, token, first}, key, Purpose::kPosition, 0, 1);
  };
  std::vector<double> mass;
  for (int64_t b = 0; b < row.num_blocks(); ++b) mass.push_back(row.block_mass(b));
  const std::vector<int32_t> block = winner(mass, nullptr, kBlockDraw);
  TREESPEC_CHECK(!block.empty(), "sample_at_position: weights must have a positive entry");

  double buffer[kBlock];
  const TargetRow::Units units = row.units(block.front(), buffer);
  const int32_t lane = winner(lane_masses(units), nullptr, kLaneDraw).front();

  std::vector<double> weight;
  std::vector<int32_t> token;
  const int64_t stride = units.token == nullptr ? kLanes : 1;
  for (int64_t i = stride > 1 ? lane : 0; i < units.unit.size(); i += stride) {
    if (units.token_of(i) % kLanes != lane) continue;
    weight.push_back(units.unit[i]);
    token.push_back(units.token_of(i));
  }
  return token[static_cast<size_t>(winner(weight, token.data(), 0).front())];
}

}  // namespace treespec
