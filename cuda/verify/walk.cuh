// SPDX-License-Identifier: Apache-2.0
// The walk of one sequence by one block of threads. All threads decide alike, from the same values;
// the rules themselves are those of cpp/src/verifiers.
#pragma once

#include "row_pair.cuh"
#include "verifiers/step.hd.h"
#include "verifiers/traversal.hd.h"
#include "verifiers/typical.hd.h"

namespace treespec::device {

/// The tree of a sequence, as the rules read it.
struct TreeView {
  const int32_t* token;
  const int32_t* parent;
  const int32_t* depth;
  const int32_t* draw_offset;
  const int32_t* draw;
  int32_t num_nodes;
  Proposal proposal;

  TREESPEC_DEVICE ArrayView<const int32_t> draws(int32_t node) const {
    return {draw + draw_offset[node], draw_offset[node + 1] - draw_offset[node]};
  }
  TREESPEC_DEVICE int32_t find_child(int32_t node, int32_t wanted) const {
    const ArrayView<const int32_t> children = draws(node);
    for (int64_t j = 0; j < children.size(); ++j) {
      if (token[children[j]] == wanted) return children[j];
    }
    return -1;
  }
};

/// Coins of the counter generator.
struct KeyCoins {
  RoundKey key;
  TREESPEC_DEVICE double accept(int32_t node, int32_t draw) const {
    return uniform(key, Purpose::kAccept, static_cast<uint32_t>(node), static_cast<uint32_t>(draw));
  }
  TREESPEC_DEVICE double sample(int32_t node) const {
    return uniform(key, Purpose::kSample, static_cast<uint32_t>(node), 0);
  }
  TREESPEC_DEVICE double select(int32_t node, int32_t merge) const {
    return uniform(key, Purpose::kSelect, static_cast<uint32_t>(node),
                   static_cast<uint32_t>(merge));
  }
};

/// Inputs, outputs and memory of a launch.
struct Walk {
  using Pair = DevicePair;
  using Context = WalkContext;
  static constexpr int kThreads = Context::kThreads;
  struct Shared {
    Context::Shared context;
    BlockWeights weights;
  };

  LogitReader rows;
  Trees trees;
  Proposal proposal;
  DraftLaw law;
  Temperatures temperatures;
  ScoreChanges changes;
  const uint32_t* use_table;
  const uint64_t* seed;
  const uint32_t* sequence_id;
  const int32_t* position;
  RowSums sums;
  double* numbers;    // [batch, levels, 2, support]
  int32_t levels;     // rows held at once
  int32_t support;    // longest row of a law
  char* rule_memory;  // [batch, rule_bytes], what the rule needs besides its rows
  int64_t rule_bytes;
  Verdicts out;
  uint32_t* status;

  /// The path accepted so far; thread 0 writes it.
  class Path {
   public:
    TREESPEC_DEVICE Path(const Verdicts& out, int32_t b)
        : out_(out), b_(b), nodes_(out.nodes + int64_t{b} * (out.max_depth + 1)) {
      if (simt::thread() == 0) nodes_[0] = 0;
    }
    /// False: the path is longer than the envelope.
    TREESPEC_DEVICE bool accept(int32_t node) {
      if (length_ == out_.max_depth) return false;
      ++length_;
      if (simt::thread() == 0) nodes_[length_] = node;
      return true;
    }
    /// The path from the root to `end`; false: it is longer than the envelope.
    TREESPEC_DEVICE bool accept_all(const TreeView& tree, int32_t end) {
      length_ = 0;
      for (int32_t node = end; node > 0; node = tree.parent[node]) ++length_;
      if (length_ > out_.max_depth) return false;
      if (simt::thread() != 0) return true;
      int32_t at = length_;
      for (int32_t node = end; node > 0; node = tree.parent[node]) nodes_[at--] = node;
      return true;
    }
    TREESPEC_DEVICE void finish(int32_t next_token) const {
      if (simt::thread() != 0) return;
      out_.num_accepted[b_] = length_;
      out_.next_token[b_] = next_token;
    }
    TREESPEC_DEVICE void fail() const {
      if (simt::thread() != 0) return;
      out_.num_accepted[b_] = -1;
      out_.next_token[b_] = 0;
    }

   private:
    const Verdicts& out_;
    int32_t b_;
    int32_t* nodes_;
    int32_t length_ = 0;
  };

  TREESPEC_DEVICE TreeView tree_of(int32_t b) const {
    const int64_t nodes = int64_t{b} * trees.max_nodes;
    return {trees.token + nodes,
            trees.parent + nodes,
            trees.depth + nodes,
            trees.draw_offset + int64_t{b} * (trees.max_nodes + 1),
            trees.draw + int64_t{b} * trees.max_draws,
            bounded_num_nodes(trees, b),
            proposal};
  }

  /// Draws within bounds, children behind their parents, tokens of the vocabulary.
  TREESPEC_DEVICE bool is_sound(const TreeView& tree, int32_t b) const {
    bool bad = tree.num_nodes != trees.num_nodes[b];
    for (int32_t i = simt::thread(); i < tree.num_nodes; i += kThreads) {
      const int32_t from = tree.draw_offset[i], to = tree.draw_offset[i + 1];
      bad = bad || from < 0 || to < from || to > trees.max_draws;
      bad = bad || (i > 0 && (tree.token[i] < 0 || tree.token[i] >= rows.size));
      bad = bad || tree.depth[i] < 0 || tree.depth[i] > trees.max_nodes;
      bad = bad || (i > 0 && (tree.parent[i] < 0 || tree.parent[i] >= i));
      for (int32_t j = from; !bad && j < to; ++j) {
        const int32_t child = tree.draw[j];
        bad = child <= i || child >= tree.num_nodes || tree.parent[child] != i;
      }
    }
    auto* scratch = reinterpret_cast<int32_t*>(simt::shared_memory());
    return simt::block_reduce<kThreads>(bad ? 1 : 0, 0, simt::Max{}, scratch) == 0;
  }

  TREESPEC_DEVICE Context context_of(int32_t b) const {
    auto* shared = reinterpret_cast<Shared*>(simt::shared_memory());
    const double temperature = temperatures.of(b);
    return {rows,
            sums,
            law,
            &shared->context,
            &shared->weights,
            int64_t{b} * trees.max_nodes,
            temperature > 0.0 ? 1.0 / temperature : 1.0,
            temperatures.sampling[b],
            changes,
            use_table,
            trees,
            b,
            kOk,
            rule_memory + b * rule_bytes};
  }

  TREESPEC_DEVICE Pair pair_of(Context& context, int32_t b, int32_t level) const {
    double* own = numbers + (int64_t{b} * levels + level) * 2 * support;
    return Pair(context, own, own + support);
  }

  TREESPEC_DEVICE RoundKey key_of(int32_t b) const {
    return {seed[b], sequence_id[b], static_cast<uint32_t>(position[b])};
  }

  /// `walk(tree, context, path)` returns the next token, or -1 with the problem in the context.
  template <class Decide>
  TREESPEC_DEVICE void run(const Decide& decide) const {
    const int32_t b = simt::block();
    const TreeView tree = tree_of(b);
    Context context = context_of(b);
    Path path(out, b);
    int32_t next = -1;
    if (!is_sound(tree, b)) {
      context.problem = kBadTree;
    } else if (temperatures.of(b) == 0.0) {
      next = target_walk(tree, context, path,
                         [&](int32_t node) { return pair_of(context, b, 0).argmax(node); });
    } else {
      next = decide(tree, context, path, b);
    }
    if (next >= 0) return path.finish(next);
    path.fail();
    if (simt::thread() == 0) report(status, b, context.problem);
  }

  /// Follows the children that carry the tokens that `pick(node)` names; -1 ends the walk.
  template <class Pick>
  TREESPEC_DEVICE static int32_t target_walk(const TreeView& tree, Context& context, Path& path,
                                             const Pick& pick) {
    for (int32_t node = 0;;) {
      const int32_t token = pick(node);
      if (token < 0) return -1;
      node = tree.find_child(node, token);
      if (node < 0) return token;
      if (!path.accept(node)) {
        context.problem |= kOutOfBounds;
        return -1;
      }
    }
  }
};

/// One block of threads per sequence. `Rule::decide(walk, tree, context, path, b)`.
template <class Rule>
struct VerifyTrees {
  static constexpr int kThreads = Walk::kThreads;
  Walk walk;

  TREESPEC_DEVICE void operator()() const {
    walk.run([&](const TreeView& tree, auto& context, auto& path, int32_t b) {
      return Rule::decide(walk, tree, context, path, b);
    });
  }
};

/// NSS: the token of the target, keyed by its own position.
struct TargetOnlyWalk {
  template <class W, class Context, class Path>
  TREESPEC_DEVICE static int32_t decide(const W& walk, const TreeView& tree, Context& context,
                                        Path& path, int32_t b) {
    auto rows = walk.pair_of(context, b, 0);
    return W::target_walk(tree, context, path, [&](int32_t node) {
      if (!rows.load(node, false)) return -1;
      RoundKey key = walk.key_of(b);
      key.position += static_cast<uint32_t>(tree.depth[node]) + 1;
      return rows.sample_at_position(key);
    });
  }
};

/// Node by node from the root, by a rule for one node.
template <class Rule>
struct TopDownWalk {
  template <class W, class Context, class Path>
  TREESPEC_DEVICE static int32_t decide(const W& walk, const TreeView& tree, Context& context,
                                        Path& path, int32_t b) {
    const KeyCoins coins{walk.key_of(b)};
    auto rows = walk.pair_of(context, b, 0);
    for (int32_t node = 0;;) {
      const bool drew = !tree.draws(node).empty();
      if (!rows.load(node, drew)) return -1;
      const Step step =
          drew ? Rule::step(tree, node, rows, coins) : Step{-1, rows.sample(coins.sample(node))};
      const int32_t child = step.child >= 0 ? step.child : tree.find_child(node, step.token);
      if (child < 0) return step.token;
      if (!path.accept(child)) {
        context.problem |= kOutOfBounds;
        return -1;
      }
      node = child;
    }
  }
};

/// Typical acceptance: all typical tokens first, then the longest path of them.
struct TypicalWalk {
  template <class Pair>
  struct Rows {
    Pair pair;
    TREESPEC_DEVICE bool load(int32_t node) { return pair.load(node, false); }
    TREESPEC_DEVICE double probability(int32_t token) const { return pair.probability(token); }
    TREESPEC_DEVICE uint64_t entropy() const {
      return pair.sum_over_row([](double probability) { return entropy_term(probability); });
    }
  };

  /// In the rule's memory, `[max_nodes]`.
  class Scores {
   public:
    TREESPEC_DEVICE Scores(double* score, int32_t size, int num_threads)
        : score_(score), size_(size) {
      for (int32_t i = simt::thread(); i < size; i += num_threads) {
        score_[i] = i == 0 ? 0.0 : TypicalRule::kNotReached;
      }
      simt::sync_block();
    }
    TREESPEC_DEVICE int32_t size() const { return size_; }
    TREESPEC_DEVICE double operator[](int32_t node) const { return score_[node]; }
    TREESPEC_DEVICE void set(int32_t node, double score) {
      if (simt::thread() == 0) score_[node] = score;
      simt::sync_block();
    }

   private:
    double* score_;
    int32_t size_;
  };
  static size_t bytes(int32_t max_nodes) { return sizeof(double) * static_cast<size_t>(max_nodes); }

  template <class W, class Context, class Path>
  TREESPEC_DEVICE static int32_t decide(const W& walk, const TreeView& tree, Context& context,
                                        Path& path, int32_t b) {
    Rows<typename W::Pair> rows{walk.pair_of(context, b, 0)};
    Scores scores(static_cast<double*>(context.rule_memory), tree.num_nodes, W::kThreads);
    const int32_t end = TypicalRule::longest_path(tree, rows, scores);
    if (end < 0 || !rows.load(end)) return -1;
    if (!path.accept_all(tree, end)) {
      context.problem |= kOutOfBounds;
      return -1;
    }
    return rows.pair.sample(KeyCoins{walk.key_of(b)}.sample(end));
  }
};

/// Bottom-up, by the walk that the CPU takes.
struct BottomUpWalk {
  /// The visits on the way down, every thread its own.
  struct Stack {
    Visit visit[kMostTraversalDepth + 1];
    int32_t size = 0;
    TREESPEC_DEVICE Visit& back() { return visit[size - 1]; }
    TREESPEC_DEVICE void push_back(const Visit& one) { visit[size++] = one; }
    TREESPEC_DEVICE void pop_back() { --size; }
  };

  template <class W>
  struct Levels {
    const W& walk;
    const TreeView& tree;
    typename W::Context& context;
    int32_t b;
    typename W::Pair rows[kMostTraversalDepth + 1];
    bool sound = true;

    TREESPEC_DEVICE typename W::Pair& operator[](int32_t level) { return rows[level]; }
    TREESPEC_DEVICE void load(int32_t level, int32_t node) {
      rows[level] = walk.pair_of(context, b, level);
      sound = rows[level].load(node, !tree.draws(node).empty()) && sound;
    }
  };

  template <class W, class Context, class Path>
  TREESPEC_DEVICE static int32_t decide(const W& walk, const TreeView& tree, Context& context,
                                        Path& path, int32_t b) {
    if (!fits(walk, tree)) {
      context.problem |= kOutOfBounds;
      return -1;
    }
    const KeyCoins coins{walk.key_of(b)};
    Levels<W> levels{walk, tree, context, b, {}, true};
    Stack visits;
    // A row that is no law ends the walk at once; the verdict is not used then.
    auto test = [&](int32_t node, double alpha) {
      const int32_t parent = tree.parent[node];
      const int32_t place = Tree::place_among_draws(tree, parent, node);
      return !levels.sound || coins.accept(parent, place) < alpha;
    };
    TraversalWalk<TreeView, Levels<W>, Stack, decltype(test)> traversal(tree, levels, visits, test);
    const int32_t level = traversal.run();
    if (!levels.sound) return -1;
    const int32_t end = traversal.end();
    path.accept_all(tree, end);
    return levels[level].sample(coins.sample(end));
  }

 private:
  using Tree = TraversalWalk<TreeView, int, int, int>;

  /// Depths that are true and within the envelope.
  template <class W>
  TREESPEC_DEVICE static bool fits(const W& walk, const TreeView& tree) {
    bool bad = tree.depth[0] != 0;
    for (int32_t i = 1 + simt::thread(); i < tree.num_nodes; i += W::kThreads) {
      bad = bad || tree.depth[i] != tree.depth[tree.parent[i]] + 1;
      bad = bad || tree.depth[i] > walk.out.max_depth || tree.depth[i] > kMostTraversalDepth;
    }
    auto* scratch = reinterpret_cast<int32_t*>(simt::shared_memory());
    return simt::block_reduce<W::kThreads>(bad ? 1 : 0, 0, simt::Max{}, scratch) == 0;
  }
};

}  // namespace treespec::device
