// SPDX-License-Identifier: Apache-2.0
// Tree building without Python around it, each builder beside its floor: the least work that any
// implementation must do, timed in the same loop. Prints JSON.
#include "bench.h"
#include "shared/half.hd.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

namespace {

using bench::Case;
using bench::kVocab;
using bench::Pool;
using bench::Report;
using bench::sink;
using treespec::ArrayView;
using treespec::BuilderOptions;
using treespec::CandidateRow;
using treespec::CandidateSource;
using treespec::DType;
using treespec::FrontierNode;
using treespec::TokenTree;

TokenTree build(const char* name, const BuilderOptions& options, CandidateSource& source,
                int32_t budget) {
  return treespec::build_tree(*treespec::make_builder(name, options), name, source, budget);
}

void build_and_mask(const char* name, const BuilderOptions& options, CandidateSource& source,
                    int32_t budget) {
  const TokenTree tree = build(name, options, source, budget);
  const std::vector<uint32_t> bits = treespec::ancestor_mask(tree.parent);
  sink = static_cast<double>(bits.back()) + tree.path_logprob.back();
}

// --- Ranked lists --------------------------------------------------------------------------------

/// Candidate lists, likeliest first. List i holds entries `[begin[i], begin[i + 1])`; the root's is
/// the first, and the empty last one is that of every leaf.
struct Table {
  std::vector<int32_t> begin{0}, token, child;  // `child`: list of an entry's own children
  std::vector<float> logprob;

  void add_list(const std::vector<float>& scores) {
    for (const float score : scores) {
      logprob.push_back(score);
      token.push_back(static_cast<int32_t>(token.size()) * 7);
    }
    begin.push_back(static_cast<int32_t>(token.size()));
  }
};

std::vector<float> ranked_scores(int32_t width, bench::Random& random) {
  std::vector<float> row(static_cast<size_t>(width));
  for (float& value : row) value = 3.0f * random.logit();
  std::sort(row.begin(), row.end(), std::greater<>());
  bench::log_softmax(row.data(), width);
  return row;
}

/// Lists `[depth, num_rows, width]`; entry j continues in row j % num_rows.
Table first_order_table(int32_t depth, int32_t num_rows, int32_t width) {
  bench::Random random{11};
  Table table;
  for (int32_t list = 0; list < depth * num_rows; ++list) {
    table.add_list(ranked_scores(width, random));
    const int32_t below = (list / num_rows + 1) * num_rows;
    for (int32_t j = 0; j < width; ++j) {
      table.child.push_back(std::min(below + j % num_rows, depth * num_rows));
    }
  }
  table.begin.push_back(table.begin.back());
  return table;
}

/// A trie of `num_nodes` nodes with up to six children each, by breadth; entry i is node i.
Table trie_table(int32_t num_nodes) {
  bench::Random random{13};
  Table table;
  while (static_cast<int32_t>(table.token.size()) < num_nodes) {
    const auto room = num_nodes - static_cast<int32_t>(table.token.size());
    const auto width = std::min(room, 2 + static_cast<int32_t>(5 * random.next()));
    table.add_list(ranked_scores(width, random));
  }
  const auto leaf = static_cast<int32_t>(table.begin.size()) - 1;
  for (int32_t i = 0; i < num_nodes; ++i) table.child.push_back(std::min(i + 1, leaf));
  table.begin.push_back(table.begin.back());
  return table;
}

struct PlainTree {
  std::vector<int32_t> token, parent;
  std::vector<uint32_t> bits;
};

/// The textbook algorithm: a heap of (node, entry), the first child and the next sibling pushed at
/// every pop, ancestor bits copied from the parent. No checks, no options.
PlainTree plain_heap(const Table& table, int32_t budget) {
  struct Entry {
    float score;
    int32_t parent, entry, end;
    bool operator<(const Entry& other) const { return score < other.score; }
  };
  const int32_t words = (budget + 32) / 32;
  PlainTree tree;
  tree.token = {0}, tree.parent = {-1};
  tree.bits.assign(static_cast<size_t>((budget + 1) * words), 0);
  tree.bits[0] = 1;
  std::vector<float> path{0.0f};
  std::vector<int32_t> depth{0};
  std::vector<Entry> heap;
  const auto push = [&](int32_t node, int32_t entry, int32_t end) {
    if (entry >= end) return;
    heap.push_back({path[static_cast<size_t>(node)] + table.logprob[static_cast<size_t>(entry)],
                    node, entry, end});
    std::push_heap(heap.begin(), heap.end());
  };
  push(0, table.begin[0], table.begin[1]);
  while (!heap.empty() && static_cast<int32_t>(tree.token.size()) <= budget) {
    std::pop_heap(heap.begin(), heap.end());
    const Entry best = heap.back();
    heap.pop_back();
    const auto id = static_cast<int32_t>(tree.token.size());
    const auto entry = static_cast<size_t>(best.entry);
    path.push_back(best.score);
    tree.token.push_back(table.token[entry]);
    tree.parent.push_back(best.parent);
    depth.push_back(depth[static_cast<size_t>(best.parent)] + 1);
    uint32_t* row = tree.bits.data() + static_cast<ptrdiff_t>(id) * words;
    std::copy_n(tree.bits.data() + static_cast<ptrdiff_t>(best.parent) * words, words, row);
    row[id / 32] |= 1u << (id % 32);
    push(best.parent, best.entry + 1, best.end);
    const auto list = static_cast<size_t>(table.child[entry]);
    push(id, table.begin[list], table.begin[list + 1]);
  }
  sink = path.back() + static_cast<double>(depth.back());
  return tree;
}

/// Times a builder of exact best-first trees on a table; the floor must grow the same tree.
void bench_table(Report& report, const char* builder, const char* kind, const Table& table,
                 CandidateSource& source) {
  BuilderOptions options;
  if (builder == std::string("opt_tree")) options["max_depth"] = int64_t{24};
  for (const int32_t budget : {64, 1024}) {
    const TokenTree tree = build(builder, options, source, budget);
    const PlainTree plain = plain_heap(table, budget);
    if (tree.token != plain.token || tree.parent != plain.parent) {
      std::fprintf(stderr, "bench_build: %s and its floor differ\n", builder);
      std::exit(1);
    }
    Case one;
    one.name = std::string(builder) + " + mask, " + std::to_string(budget) + " nodes, " + kind;
    one.floor_name = "plain heap with bits";
    one.calls = budget == 64 ? 200 : 20;
    if (builder == std::string("dtree")) one.bar_seconds = budget == 64 ? 10e-6 : 100e-6;
    report.add(
        one, [&, budget] { build_and_mask(builder, options, source, budget); },
        [&, budget] { sink = plain_heap(table, budget).bits.back(); });
  }
}

void bench_tables(Report& report) {
  constexpr int32_t kDepth = 24, kRows = 16, kWidth = 64;
  const Table depth_wise = first_order_table(kDepth, 1, kWidth);
  treespec::Marginals marginals(depth_wise.token.data(), depth_wise.logprob.data(), kDepth, kWidth);
  const Table first_order = first_order_table(kDepth, kRows, kWidth);
  std::vector<int32_t> next;
  for (size_t i = 0; i < first_order.token.size(); ++i) {
    next.push_back(static_cast<int32_t>(i) % kWidth % kRows);
  }
  treespec::Transitions transitions(first_order.token.data(), first_order.logprob.data(),
                                    next.data(), kDepth, kRows, kWidth);
  for (const char* builder : {"dtree", "opt_tree"}) {
    bench_table(report, builder, "Marginals [24, 64]", depth_wise, marginals);
    bench_table(report, builder, "Transitions [24, 16, 64]", first_order, transitions);
  }

  const Table scored = trie_table(4096);
  std::vector<int32_t> parent;
  for (size_t list = 0; list + 2 < scored.begin.size(); ++list) {
    parent.resize(static_cast<size_t>(scored.begin[list + 1]), static_cast<int32_t>(list) - 1);
  }
  treespec::Trie trie(parent, scored.token, scored.logprob);
  bench_table(report, "trie", "Trie of 4096", scored, trie);
}

// --- Raw logits ----------------------------------------------------------------------------------

uint16_t to_bfloat16(float value) {
  return static_cast<uint16_t>(treespec::shared::float_to_bits(value) >> 16);
}

/// By truncation; for |value| in [2^-14, 2^15], smaller ones become 0.
uint16_t to_float16(float value) {
  const uint32_t bits = treespec::shared::float_to_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  if (magnitude < 113u << 23) return static_cast<uint16_t>(sign);
  return static_cast<uint16_t>(sign | (magnitude - (112u << 23)) >> 13);
}

TREESPEC_SIMD double sum_bfloat16(const uint16_t* values, int64_t size) {
  return bench::sum_lanes(values, size, treespec::shared::bfloat16_to_float);
}

TREESPEC_SIMD double sum_float16_portable(const uint16_t* values, int64_t size) {
  return bench::sum_lanes(values, size, treespec::shared::float16_to_float);
}

#if defined(__x86_64__) && defined(__GNUC__)
/// With the machine's conversion, which no portable expression compiles to.
__attribute__((target("avx,f16c"))) double sum_float16_f16c(const uint16_t* values, int64_t size) {
  constexpr int kSums = 8;
  __m256 sum[kSums] = {};
  for (int64_t t = 0; t + 8 * kSums <= size; t += 8 * kSums) {
    for (int i = 0; i < kSums; ++i) {
      const auto* at = reinterpret_cast<const __m128i*>(values + t + 8 * i);
      sum[i] = _mm256_add_ps(sum[i], _mm256_cvtph_ps(_mm_loadu_si128(at)));
    }
  }
  float lane[8 * kSums];
  for (int i = 0; i < kSums; ++i) _mm256_storeu_ps(lane + 8 * i, sum[i]);
  return std::accumulate(lane, lane + 8 * kSums, 0.0);
}

double sum_float16(const uint16_t* values, int64_t size) {
  static const bool fast = __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");
  return fast ? sum_float16_f16c(values, size) : sum_float16_portable(values, size);
}
#else
double sum_float16(const uint16_t* values, int64_t size) {
  return sum_float16_portable(values, size);
}
#endif

template <class T, class Sum>
void bench_logits(Report& report, const std::vector<T>& logits, DType dtype, const char* dtype_name,
                  Sum sum) {
  constexpr int32_t kWidth = 64;
  Pool<T> pool(logits);
  const int64_t num_rows = pool.size() / kVocab;
  Case one;
  one.name = std::string("dtree + mask, 64 nodes, ") + dtype_name + " logits [15, 151936], cold";
  one.floor_name = "sum loop over the same bytes, cold";
  one.bar_ratio = 3.0;
  one.num_rows = num_rows;
  report.add(
      one,
      [&] {
        auto source = treespec::Marginals::from_logits(
            {pool.next(), dtype, num_rows, kVocab, kVocab}, kWidth);
        build_and_mask("dtree", {}, source, 64);
      },
      [&] { sink = sum(pool.next(), pool.size()); });
}

void bench_raw_logits(Report& report) {
  const std::vector<float> logits = bench::logit_rows(15);
  std::vector<uint16_t> halves(logits.size());
  bench_logits(report, logits, DType::kFloat32, "float32",
               [](const float* x, int64_t n) { return bench::sum_loop(x, n); });
  std::transform(logits.begin(), logits.end(), halves.begin(), to_bfloat16);
  bench_logits(report, halves, DType::kBFloat16, "bfloat16", sum_bfloat16);
  std::transform(logits.begin(), logits.end(), halves.begin(), to_float16);
  bench_logits(report, halves, DType::kFloat16, "float16", sum_float16);
}

// --- Dense rows ----------------------------------------------------------------------------------

/// Hands out the rows of a block in order of the calls.
class DenseExpander final : public treespec::Expander {
 public:
  explicit DenseExpander(const float* block) : block_(block) {}
  ArrayView<const CandidateRow> rows(ArrayView<const FrontierNode> nodes) override {
    rows_.clear();
    for (int64_t i = 0; i < nodes.size(); ++i) {
      rows_.push_back({nullptr, block_ + used_++ * kVocab, nullptr, kVocab});
    }
    return rows_;
  }
  int64_t used() const { return used_; }

 private:
  const float* block_;
  int64_t used_ = 0;
  std::vector<CandidateRow> rows_;
};

struct DenseCase {
  const char* name;
  const char* label;
  BuilderOptions options;
  double bar_ratio;
};

void bench_dense(Report& report) {
  constexpr int64_t kMostRows = 320;  // more than any of them reads for 64 nodes
  constexpr int32_t kBudget = 64;
  std::vector<float> rows = bench::logit_rows(kMostRows);
  for (int64_t r = 0; r < kMostRows; ++r) bench::log_softmax(rows.data() + r * kVocab, kVocab);
  const DenseCase cases[] = {
      {"opt_tree", "10 layers", {{"max_depth", int64_t{10}}}, 3.0},
      {"eagle2", "width 10, 6 layers", {}, 0.0},
      {"dyspec", "batched", {}, 0.0},
      {"kary",
       "<4,2,2,1,1> without_replacement",
       {{"expansion", std::vector<int64_t>{4, 2, 2, 1, 1}},
        {"proposal", std::string("without_replacement")}},
       0.0},
      {"rollouts", "K = 4", {{"num_paths", int64_t{4}}}, 0.0},
      {"delayed",
       "(3, 4, 4)",
       {{"num_paths", int64_t{3}}, {"trunk", int64_t{4}}, {"branch", int64_t{4}}},
       0.0},
      {"sequoia", "deterministic", {}, 0.0},
  };
  for (const DenseCase& one : cases) {
    const auto maker = treespec::make_builder(one.name, one.options);
    const auto grow = [&](const float* block) {
      DenseExpander expander(block);
      sink = treespec::build_tree(*maker, one.name, expander, kBudget).path_logprob.back();
      return expander.used();
    };
    const int64_t used = grow(rows.data());
    Pool<float> pool({rows.begin(), rows.begin() + used * kVocab});
    Case timed;
    timed.name = std::string(one.name) + " " + one.label + ", " + std::to_string(used) +
                 " dense rows of 151936, cold";
    timed.floor_name = "sum loop over those rows, cold";
    timed.bar_ratio = one.bar_ratio;
    timed.num_rows = used;
    report.add(
        timed, [&] { grow(pool.next()); },
        [&] { sink = bench::sum_loop(pool.next(), pool.size()); });
  }
}

}  // namespace

/// bench_build [repetitions [part of a name]]
int main(int argc, char** argv) {
  Report report(argc, argv);
  bench_tables(report);
  bench_raw_logits(report);
  bench_dense(report);
  return 0;
}
