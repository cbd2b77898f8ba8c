// SPDX-License-Identifier: Apache-2.0
// The canonical decomposition: a tournament selects one of the draws, and the winner is tested
// against the exact law of winners. Which of two tokens wins is chosen so that this law follows the
// target as far as it can: among the few tokens that need mass most by the optimum of a small
// linear program (a flow), elsewhere by a fixed preference. Source: Khisti et al., "Multi-Draft
// Speculative Sampling: Canonical Decomposition and Theoretical Limits", 2024, arXiv 2410.18234,
// sections 4 and 5 (truncated linear program). Draws consumed: select (node, m) for merge m between
// different tokens of the program, accept (node, 0), sample (node) after a rejection.
//
// What has the length of the support belongs to a `Tournament`, made from the rows of a node:
//   size()          tokens of the support, which go by their place there
//   at(place)       its Masses
//   rank()          orders the places, see Contender, by the law of the winner so far
//   ranked(i)       the i-th of them
//   later(first)    sums over those ranked first, first + 1, ...
//   settle(...)     the law of the winner after a merge: given for the first few, won_from_later
//                   for those after them, each with the sums over what is behind it
//   law()           as `replace_draft` of the rows takes it
//   least(bound)    the least of bound(0), ..., bound(kProgramSets - 1)
#pragma once

#include <limits>

#include "shared/fixed_point.hd.h"
#include "shared/ranking.hd.h"
#include "verifiers/step.hd.h"

namespace treespec {

constexpr int32_t kProgramSize = 5;  // tokens among which the program decides
constexpr uint32_t kProgramSets = 1u << kProgramSize;

/// Probabilities of a token: of the target, of a fresh draw, and of the winner so far.
struct Masses {
  double target, draft, winner;
};

/// Sums of the last two, in fixed point: no order of the terms is better than another.
struct LaterMasses {
  uint64_t draft = 0, winner = 0;

  TREESPEC_RULE void add(const Masses& token) {
    draft += static_cast<uint64_t>(shared::to_fixed(token.draft));
    winner += static_cast<uint64_t>(shared::to_fixed(token.winner));
  }
};

/// What a token wins against itself and against later ones that it always beats.
TREESPEC_RULE double won_from_later(const Masses& token, const LaterMasses& later) {
  return token.winner * token.draft + token.winner * shared::from_fixed(later.draft) +
         shared::from_fixed(later.winner) * token.draft;
}

/// A token as a merge ranks it: first the one that misses most of its target mass when it wins
/// against itself alone, last what is never drawn; ties: lower place.
struct Contender {
  uint64_t missing;  // falling_bits
  int32_t place;
  int32_t padding = 0;

  TREESPEC_RULE static Contender of(const Masses& token, int32_t place) {
    const double missing = token.draft > 0.0 ? token.target - token.winner * token.draft
                                             : -std::numeric_limits<double>::infinity();
    return {shared::falling_bits(missing), place};
  }
  TREESPEC_RULE bool before(const Contender& other) const {
    return missing != other.missing ? missing < other.missing : place < other.place;
  }
};

/// The program: splits pair masses so that sum of min(wanted, received) is as large as it can be.
/// Of its solutions this is the one that gives the first pair's earlier token as much as the
/// optimum allows, then the second pair's, and so on: unique, and continuous in the numbers.
///
/// By max-flow min-cut a split serves a value iff every set of tokens T does: what T wants, and the
/// mass that can go elsewhere, is at least the value. With 5 tokens these are 32 sums.
struct Program {
  int32_t size = 0;
  double wanted[kProgramSize] = {};
  /// Mass of the pair {i, j} that i wins. Before: entry i < j is all of it.
  double owned[kProgramSize][kProgramSize] = {};

  template <class Tournament>
  TREESPEC_RULE void solve(const Tournament& tournament) {
    const double value = tournament.least([&](uint32_t set) { return served(set); });
    for (int32_t i = 0; i < size; ++i) {
      for (int32_t j = i + 1; j < size; ++j) split(tournament, i, j, value);
    }
  }

 private:
  TREESPEC_RULE static bool holds(uint32_t set, int32_t token) { return (set >> token & 1u) != 0; }

  template <class Tournament>
  TREESPEC_RULE void split(const Tournament& tournament, int32_t i, int32_t j, double value) {
    const double mass = owned[i][j];
    settled_[i][j] = true;
    const double most = tournament.least([&](uint32_t set) {
      return holds(set, i) && !holds(set, j) ? served(set) + mass - value : mass;
    });
    owned[i][j] = most < mass ? (most > 0.0 ? most : 0.0) : mass;
    owned[j][i] = mass - owned[i][j];
    given_[i] += owned[i][j];
    given_[j] += owned[j][i];
  }

  /// The cut of a set of tokens: what they want, and all mass that need not go to them. Members
  /// from `size` on do not count.
  TREESPEC_RULE double served(uint32_t set) const {
    double sum = 0.0;
    for (int32_t i = 0; i < size; ++i) {
      sum += holds(set, i) ? wanted[i] : given_[i];
      for (int32_t j = i + 1; j < size; ++j) {
        if (!settled_[i][j] && !(holds(set, i) && holds(set, j))) sum += owned[i][j];
      }
    }
    return sum;
  }

  double given_[kProgramSize] = {};  // by the pairs that are settled
  bool settled_[kProgramSize][kProgramSize] = {};
};

/// One merge of the tournament: the winner so far against a fresh draw.
template <class Tournament>
class Merge {
 public:
  TREESPEC_RULE explicit Merge(Tournament& tournament) : tournament_(tournament) {
    tournament.rank();
    Masses token[kProgramSize];
    int32_t& size = program_.size;
    for (; size < kProgramSize && size < tournament.size(); ++size) {
      place_[size] = tournament.ranked(size);
      token[size] = tournament.at(place_[size]);
      if (!(token[size].draft > 0.0)) break;
    }
    const LaterMasses later = tournament.later(size);
    for (int32_t i = 0; i < size; ++i) {
      law_[i] = won_from_later(token[i], later);
      const double wanted = token[i].target - law_[i];
      program_.wanted[i] = wanted > 0.0 ? wanted : 0.0;
      for (int32_t j = i + 1; j < size; ++j) {
        program_.owned[i][j] = token[i].winner * token[j].draft + token[j].winner * token[i].draft;
      }
    }
    program_.solve(tournament);
    for (int32_t i = 0; i < size; ++i) {
      for (int32_t j = 0; j < size; ++j) law_[i] += program_.owned[i][j];
    }
  }

  /// Probability that the winner so far, at place `x`, stays against the fresh draw at `y`.
  TREESPEC_RULE double stays(int32_t x, int32_t y) const {
    if (x == y) return 1.0;
    const int32_t i = find(x), j = find(y);
    if (i < 0 || j < 0) {
      const Contender at_x = Contender::of(tournament_.at(x), x);
      return at_x.before(Contender::of(tournament_.at(y), y)) ? 1.0 : 0.0;
    }
    const double mass = program_.owned[i][j] + program_.owned[j][i];
    return mass > 0.0 ? program_.owned[i][j] / mass : 1.0;
  }

  /// Ends the merge: the law of its winner becomes that of the winner so far.
  TREESPEC_RULE void settle() { tournament_.settle(place_, law_, program_.size); }

 private:
  /// Index among the tokens of the program, -1: elsewhere.
  TREESPEC_RULE int32_t find(int32_t place) const {
    for (int32_t i = 0; i < program_.size; ++i) {
      if (place_[i] == place) return i;
    }
    return -1;
  }

  Tournament& tournament_;
  Program program_;
  int32_t place_[kProgramSize] = {};  // of the program's tokens
  double law_[kProgramSize] = {};     // and the law of the winner there
};

template <class Tournament>
struct KhistiRule {
  template <class Tree, class Rows, class Coins>
  TREESPEC_RULE static Step step(const Tree& tree, int32_t node, Rows& rows, const Coins& coins) {
    const ArrayView<const int32_t> draws = tree.draws(node);
    Tournament tournament(rows);
    int32_t token = -1;  // the winner's
    for (int32_t j = 0; j < draws.size(); ++j) {
      const int32_t fresh = tree.token[draws[j]];
      if (!rows.drawable(fresh)) continue;
      if (token < 0 || !keeps(tournament, rows.find(token), rows.find(fresh), coins, node, j)) {
        token = fresh;
      }
    }
    if (token < 0) return {-1, rows.sample(coins.sample(node))};
    rows.replace_draft(tournament.law());
    if (rows.drawable(token) &&
        (rows.accepts(token, coins.accept(node, 0)) || rows.reject() == 0.0)) {
      return {tree.find_child(node, token), -1};
    }
    return {-1, rows.sample(coins.sample(node))};
  }

 private:
  /// Merges draw `j`, at place `y`; whether the winner so far, at `x`, stays.
  template <class Coins>
  TREESPEC_RULE static bool keeps(Tournament& tournament, int32_t x, int32_t y, const Coins& coins,
                                  int32_t node, int32_t j) {
    Merge<Tournament> merge(tournament);
    const double stays = merge.stays(x, y);
    merge.settle();
    const bool decided = stays == 0.0 || stays == 1.0;
    return decided ? stays == 1.0 : coins.select(node, j) < stays;
  }
};

}  // namespace treespec
