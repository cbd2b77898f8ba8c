// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "builders/options.h"
#include "builders/scores.h"
#include "shared/ranking.hd.h"
#include "treespec/tree_builder.h"

namespace treespec {
namespace {

/// An entry of a list, in the order of cuda/score_lists.cu.
struct Item {
  uint64_t word;  // score down, token up
  int32_t place;  // in the list: padding may repeat a token
};

/// Whether nothing is above the top, which is a log-probability, and nothing is NaN.
bool is_sound(const float* logprob, int32_t width) {
  return logprob[0] <= shared::kLargestLogprob &&
         std::all_of(logprob, logprob + width, [&](float value) { return value <= logprob[0]; });
}

/// The entries of a list by their scores; as they are where there is nothing to score.
std::vector<Item> ranked_items(Scorer& scorer, const int32_t* token, const float* logprob,
                               int32_t width) {
  constexpr float kImpossible = -std::numeric_limits<float>::infinity();
  const bool scores = logprob[0] != kImpossible && is_sound(logprob, width);
  const float* score =
      scores ? scorer.scored({token, logprob, nullptr, width, true}).logprob : logprob;
  std::vector<Item> items;
  for (int32_t k = 0; k < width; ++k) items.push_back({shared::rank_word(score[k], token[k]), k});
  if (scores) {
    std::sort(items.begin(), items.end(), [](const Item& x, const Item& y) {
      return x.word != y.word ? x.word < y.word : x.place < y.place;
    });
  }
  return items;
}

}  // namespace

void score_lists(const BuilderOptions& options, const int32_t* token, const float* logprob,
                 const int32_t* next, int64_t num_lists, int32_t width, int32_t* scored_token,
                 float* scored_logprob, int32_t* scored_next) {
  TREESPEC_CHECK(num_lists >= 0 && width >= 1, "score_lists: lists must be of width >= 1, got ",
                 num_lists, " of ", width);
  OptionReader reader("score_lists", options);
  Scorer scorer(read_score_options("score_lists", reader));
  reader.finish();
  for (int64_t first = 0; first < num_lists * width; first += width) {
    int64_t to = first;
    for (const Item& item : ranked_items(scorer, token + first, logprob + first, width)) {
      scored_token[to] = shared::token_of_word(item.word);
      scored_logprob[to] = shared::value_of_word(item.word);
      if (next != nullptr) scored_next[to] = next[first + item.place];
      ++to;
    }
  }
}

}  // namespace treespec
