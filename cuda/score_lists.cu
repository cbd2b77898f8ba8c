// SPDX-License-Identifier: Apache-2.0
// Rewrites log-probabilities of ranked lists as scores: a block per list, in the arithmetic of
// treespec::Scorer. Distinct log-probabilities may have one score, so that lists are sorted anew.
#include <cstdint>
#include <limits>
#include <simt.cuh>

#include "block_reduce.cuh"
#include "block_sort.cuh"
#include "builders/calibration.cuh"
#include "checks.h"
#include "shared/fixed_point.hd.h"
#include "shared/ranking.hd.h"

namespace treespec::device {
namespace {

struct ScoreLists {
  static constexpr int kThreads = 128;

  ScoreRule rule;
  double inverse_temperature;
  TransitionLists lists, scored;

  struct Item {
    uint64_t word;  // score down, token up
    int32_t place;  // in the list: padding may repeat a token
    int32_t next;
  };
  struct Shared {
    Item item[kMostCandidates];
    uint64_t scratch[kThreads / simt::kWarpSize];
  };

  TREESPEC_DEVICE void operator()() const {
    Shared& s = *reinterpret_cast<Shared*>(simt::shared_memory());
    const int64_t first = int64_t{simt::block()} * lists.width;
    const float top = lists.logprob[first];
    const bool scores = top != kLowest && is_sound(first, top, s);
    const double log_mass = scores ? log_mass_of(first, top, s) : 0.0;
    const int32_t padded = simt::padded_to_sort(lists.width);
    for (int32_t k = simt::thread(); k < padded; k += kThreads) {
      s.item[k] = {UINT64_MAX, INT32_MAX, 0};
      if (k < lists.width) s.item[k] = item_of(first, k, top, log_mass, scores);
    }
    if (scores) {
      simt::sort_block<kThreads>(s.item, padded, [](const Item& x, const Item& y) {
        return x.word != y.word ? x.word < y.word : x.place < y.place;
      });
    }
    for (int32_t k = simt::thread(); k < lists.width; k += kThreads) write(first + k, s.item[k]);
  }

 private:
  static constexpr float kLowest = -std::numeric_limits<float>::infinity();

  /// Whether nothing is above the top, which is a log-probability, and nothing is NaN.
  TREESPEC_DEVICE bool is_sound(int64_t first, float top, Shared& s) const {
    bool sound = top <= shared::kLargestLogprob;
    for (int32_t k = simt::thread(); k < lists.width; k += kThreads) {
      sound = sound && lists.logprob[first + k] <= top;
    }
    return simt::block_reduce<kThreads>(uint64_t{sound}, uint64_t{1}, simt::Min{}, s.scratch) == 1;
  }

  TREESPEC_DEVICE float tempered(float logprob, float top) const {
    return rule.temperature != 1.0 ? shared::tempered(logprob, top, inverse_temperature) : logprob;
  }

  /// Log-probabilities are normalised already, and stay so without a temperature.
  TREESPEC_DEVICE double log_mass_of(int64_t first, float top, Shared& s) const {
    if (rule.temperature == 1.0) return 0.0;
    uint64_t mass = 0;
    for (int32_t k = simt::thread(); k < lists.width; k += kThreads) {
      const auto score = static_cast<double>(tempered(lists.logprob[first + k], top));
      mass += static_cast<uint64_t>(shared::to_raw_fixed(shared::exp_nonpositive(score)));
    }
    mass = simt::block_reduce<kThreads>(mass, uint64_t{0}, simt::Sum{}, s.scratch);
    return shared::log_mass(shared::from_raw_fixed(mass));
  }

  TREESPEC_DEVICE Item item_of(int64_t first, int32_t k, float top, double log_mass,
                               bool scores) const {
    float score = lists.logprob[first + k];
    if (scores) {
      score = static_cast<float>(static_cast<double>(tempered(score, top)) - log_mass);
      const int32_t num_points = rule.calibration.num_points;
      if (num_points > 0) {
        score = shared::calibrated_score(points_of(rule.calibration), num_points, score);
      }
    }
    return {shared::rank_word(score, lists.token[first + k]), k,
            lists.next != nullptr ? lists.next[first + k] : 0};
  }

  TREESPEC_DEVICE void write(int64_t to, const Item& item) const {
    scored.token[to] = shared::token_of_word(item.word);
    scored.logprob[to] = shared::value_of_word(item.word);
    if (scored.next != nullptr) scored.next[to] = item.next;
  }
};

}  // namespace

void score_lists(Stream stream, const ScoreRule& rule, const TransitionLists& lists,
                 const TransitionLists& scored) {
  constexpr const char* kWho = "score_lists";
  check_batch(kWho, "lists.batch", lists.batch);
  TREESPEC_CHECK(lists.depth >= 0 && lists.num_rows >= 1, kWho,
                 ": lists must have depth >= 0 and num_rows >= 1, got ", lists.depth, " and ",
                 lists.num_rows);
  TREESPEC_CHECK(lists.width >= 1 && lists.width <= kMostCandidates, kWho,
                 ": lists.width must be in [1, ", kMostCandidates, "], got ", lists.width);
  TREESPEC_CHECK(scored.batch == lists.batch && scored.depth == lists.depth &&
                     scored.num_rows == lists.num_rows && scored.width == lists.width,
                 kWho, ": scored must have the sizes of lists");
  TREESPEC_CHECK((scored.next == nullptr) == (lists.next == nullptr), kWho,
                 ": next must be given for both lists or for none");
  TREESPEC_CHECK(rule.temperature >= 1e-6 && rule.temperature <= 1e6, kWho,
                 ": temperature must be in [1e-6, 1e6], got ", rule.temperature);
  check_calibration(kWho, rule.calibration);
  const int64_t num_lists = int64_t{lists.batch} * lists.depth * lists.num_rows;
  if (num_lists == 0) return;
  check_pointer(kWho, "lists.token", lists.token);
  check_pointer(kWho, "lists.logprob", lists.logprob);
  check_pointer(kWho, "scored.token", scored.token);
  check_pointer(kWho, "scored.logprob", scored.logprob);
  simt::launch(stream, {num_lists, 1, sizeof(ScoreLists::Shared)},
               ScoreLists{rule, 1.0 / rule.temperature, lists, scored});
}

}  // namespace treespec::device
