// SPDX-License-Identifier: Apache-2.0
// The native core without Python around it, each piece beside its floor: the least work that any
// implementation must do, timed in the same loop. Prints JSON. Cold cases walk through a pool of
// inputs larger than the last cache, so that every call reads memory.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "shared/simd.h"
#include "treespec/treespec.h"

namespace {

using treespec::ArrayView;
using treespec::CandidateRow;
using treespec::FrontierNode;
using treespec::TokenTree;
constexpr int32_t kVocab = 151936;
constexpr size_t kPoolBytes = size_t{192} << 20;
volatile double sink = 0.0;  // keeps results alive

// --- Timing
// ---------------------------------------------------------------------------------------

/// Processor time of this thread: other work on the machine does not count.
double now() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double seconds_of(const std::function<void()>& work, int calls) {
  const double start = now();
  for (int i = 0; i < calls; ++i) work();
  return (now() - start) / calls;
}

struct Report {
  int repetitions;
  bool first = true;

  /// Times `work` and `floor` in turn; seconds per call, one sample per repetition.
  void add(const std::string& name, const std::string& floor_name, double bar, int calls,
           const std::function<void()>& work, const std::function<void()>& floor) {
    std::vector<double> spent, least;
    seconds_of(work, calls), seconds_of(floor, calls);  // warm-up
    for (int r = 0; r < repetitions; ++r) {
      spent.push_back(seconds_of(work, calls));
      least.push_back(seconds_of(floor, calls));
    }
    std::printf("%s  {\"name\": \"%s\", \"floor\": \"%s\", \"bar\": %g,\n   \"seconds\": ",
                first ? "" : ",\n", name.c_str(), floor_name.c_str(), bar);
    print(spent);
    std::printf(",\n   \"floor_seconds\": ");
    print(least);
    std::printf("}");
    first = false;
  }

  static void print(const std::vector<double>& samples) {
    for (size_t i = 0; i < samples.size(); ++i) {
      std::printf("%s%.4g", i == 0 ? "[" : ", ", samples[i]);
    }
    std::printf("]");
  }
};

// --- Inputs
// ---------------------------------------------------------------------------------------

/// A small generator; the numbers only have to look like a model's.
struct Random {
  uint64_t state = 1;
  double next() {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<double>(state >> 11) * 0x1p-53;
  }
  /// Roughly normal: four uniforms.
  float logit() { return static_cast<float>((next() + next() + next() + next() - 2.0) * 4.0); }
};

/// Rows of logits, a few of them high, as a language model gives them.
std::vector<float> logit_rows(int64_t num_rows, int64_t width, uint64_t seed) {
  Random random{seed};
  std::vector<float> rows(static_cast<size_t>(num_rows * width));
  for (float& value : rows) value = random.logit();
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int k = 0; k < 8; ++k) {
      rows[r * width + static_cast<int64_t>(random.next() * static_cast<double>(width))] =
          24.0f - 1.5f * static_cast<float>(k);
    }
  }
  return rows;
}

void log_softmax(float* row, int64_t width) {
  const float top = *std::max_element(row, row + width);
  double mass = 0.0;
  for (int64_t t = 0; t < width; ++t) mass += std::exp(static_cast<double>(row[t] - top));
  for (int64_t t = 0; t < width; ++t) row[t] -= top + static_cast<float>(std::log(mass));
}

/// Log-probability blocks `[num_rows, kVocab]`, together larger than any cache.
struct DensePool {
  std::vector<std::vector<float>> block;
  size_t turn = 0;

  explicit DensePool(int64_t num_rows) {
    const size_t bytes = static_cast<size_t>(num_rows) * kVocab * sizeof(float);
    const std::vector<float> rows = logit_rows(num_rows, kVocab, 7);
    block.assign(std::max<size_t>(2, kPoolBytes / bytes), rows);
  }
  const float* next() { return block[turn++ % block.size()].data(); }
};

/// Hands out rows of a block in order of the calls.
class DenseExpander final : public treespec::Expander {
 public:
  ArrayView<const CandidateRow> rows(ArrayView<const FrontierNode> nodes) override {
    rows_.clear();
    for (int64_t i = 0; i < nodes.size(); ++i) {
      rows_.push_back({nullptr, block_ + used_ * kVocab, nullptr, kVocab});
      used_ = std::min(used_ + 1, limit_ - 1);
    }
    return rows_;
  }
  void start(const float* block, int64_t limit) { block_ = block, limit_ = limit, used_ = 0; }
  int64_t used() const { return used_; }

 private:
  const float* block_ = nullptr;
  int64_t limit_ = 1, used_ = 0;
  std::vector<CandidateRow> rows_;
};

/// Sorted top-K lists `[D, R, K]`.
struct Lists {
  int32_t depth, num_rows, width;
  std::vector<int32_t> token, next;
  std::vector<float> logprob;

  Lists(int32_t d, int32_t r, int32_t k) : depth(d), num_rows(r), width(k) {
    Random random{11};
    for (int32_t list = 0; list < d * r; ++list) {
      std::vector<float> row(static_cast<size_t>(k));
      for (float& value : row) value = 3.0f * random.logit();
      std::sort(row.begin(), row.end(), std::greater<>());
      log_softmax(row.data(), k);
      for (int32_t j = 0; j < k; ++j) {
        token.push_back(list * 7 + j * 13);
        next.push_back(j % r);
        logprob.push_back(row[static_cast<size_t>(j)]);
      }
    }
  }
};

// --- Floors
// ---------------------------------------------------------------------------------------

/// One read of `size` floats with 64 running sums.
TREESPEC_SIMD double sum_loop(const float* values, int64_t size) {
  float lane[64] = {};
  for (int64_t t = 0; t + 64 <= size; t += 64) {
    for (int i = 0; i < 64; ++i) lane[i] += values[t + i];
  }
  return std::accumulate(lane, lane + 64, 0.0);
}

/// The textbook algorithm on sorted marginal lists: a heap of (node, rank), children and the next
/// sibling pushed at every pop, and ancestor bits copied from the parent. No checks, no options.
void plain_heap(const Lists& lists, int32_t budget) {
  struct Entry {
    float score;
    int32_t parent, depth, rank;
    bool operator<(const Entry& other) const { return score < other.score; }
  };
  const int32_t words = (budget + 32) / 32;
  std::vector<Entry> heap;
  std::vector<float> score{0.0f};
  std::vector<int32_t> token{0}, parent{-1}, depth{0};
  std::vector<uint32_t> bits(static_cast<size_t>((budget + 1) * words), 0);
  bits[0] = 1;
  const auto push = [&](int32_t node, int32_t level, int32_t rank) {
    if (level >= lists.depth || rank >= lists.width) return;
    const float own =
        lists.logprob[static_cast<size_t>(level * lists.num_rows * lists.width + rank)];
    heap.push_back({score[static_cast<size_t>(node)] + own, node, level, rank});
    std::push_heap(heap.begin(), heap.end());
  };
  push(0, 0, 0);
  while (!heap.empty() && static_cast<int32_t>(token.size()) <= budget) {
    std::pop_heap(heap.begin(), heap.end());
    const Entry best = heap.back();
    heap.pop_back();
    const auto id = static_cast<int32_t>(token.size());
    score.push_back(best.score);
    token.push_back(
        lists.token[static_cast<size_t>(best.depth * lists.num_rows * lists.width + best.rank)]);
    parent.push_back(best.parent);
    depth.push_back(best.depth + 1);
    uint32_t* row = bits.data() + static_cast<ptrdiff_t>(id) * words;
    std::copy_n(bits.data() + static_cast<ptrdiff_t>(best.parent) * words, words, row);
    row[id / 32] |= 1u << (id % 32);
    push(best.parent, best.depth, best.rank + 1);
    push(id, best.depth + 1, 0);
  }
  sink = score.back() + static_cast<double>(bits.back());
}

// --- Cases
// ----------------------------------------------------------------------------------------

void build_and_mask(const char* builder, treespec::CandidateSource& source, int32_t budget) {
  const auto maker = treespec::make_builder(builder, {{"max_depth", int64_t{24}}});
  const TokenTree tree = treespec::build_tree(*maker, builder, source, budget);
  const std::vector<uint32_t> bits = treespec::ancestor_mask(tree.parent);
  sink = static_cast<double>(bits.back()) + tree.path_logprob.back();
}

void bench_build(Report& report) {
  const Lists marginals(24, 1, 64), transitions(24, 16, 64);
  for (const int32_t budget : {64, 1024}) {
    const std::string size = " " + std::to_string(budget);
    const int calls = budget == 64 ? 200 : 20;
    const auto floor = [&, budget] { plain_heap(marginals, budget); };
    treespec::Marginals depth_wise(marginals.token.data(), marginals.logprob.data(),
                                   marginals.depth, marginals.width);
    report.add(
        "build+mask marginals" + size, "plain heap", 3.0, calls,
        [&, budget] { build_and_mask("opt_tree", depth_wise, budget); }, floor);
    treespec::Transitions first_order(transitions.token.data(), transitions.logprob.data(),
                                      transitions.next.data(), transitions.depth,
                                      transitions.num_rows, transitions.width);
    report.add(
        "build+mask transitions" + size, "plain heap", 3.0, calls,
        [&, budget] { build_and_mask("opt_tree", first_order, budget); }, floor);
  }
}

void bench_dense_build(Report& report) {
  constexpr int64_t kRows = 320;  // more than 64 nodes and 10 levels ask for
  DensePool pool(kRows);
  for (std::vector<float>& block : pool.block) {
    if (&block != &pool.block.front()) {
      block = pool.block.front();
      continue;
    }
    for (int64_t r = 0; r < kRows; ++r) log_softmax(block.data() + r * kVocab, kVocab);
  }
  DenseExpander expander;
  const auto maker = treespec::make_builder("opt_tree", {{"max_depth", int64_t{10}}});
  const auto build = [&] {
    expander.start(pool.next(), kRows);
    sink = treespec::build_tree(*maker, "opt_tree", expander, 64).path_logprob.back();
  };
  build();
  const int64_t rows = expander.used();
  report.add("opt_tree 64 nodes, " + std::to_string(rows) + " dense rows of 151936, cold",
             "sum loop over those rows, cold", 3.0, 1, build,
             [&] { sink = sum_loop(pool.next(), rows * kVocab); });
}

TokenTree sampled_tree(treespec::Proposal proposal, int32_t num_nodes) {
  TokenTree tree = treespec::root_tree(0);
  tree.proposal = proposal;
  tree.token.resize(static_cast<size_t>(num_nodes) + 1);
  tree.parent.resize(tree.token.size());
  for (int32_t i = 1; i <= num_nodes; ++i) {
    tree.token[static_cast<size_t>(i)] = i;
    tree.parent[static_cast<size_t>(i)] = (i - 1) / 4;
  }
  tree.draw_offset.clear();
  const treespec::Proposal wanted = tree.proposal;
  tree.proposal = treespec::Proposal::kDeterministic;  // children by id
  tree.path_logprob.clear();
  complete_tree(tree);
  tree.proposal = wanted;
  return tree;
}

void bench_verify(Report& report) {
  constexpr int32_t kNodes = 64;
  DensePool pool(kNodes + 1);
  for (std::vector<float>& block : pool.block) {
    for (int32_t i = 0; i < 3; ++i) {  // an accepted path of three nodes: 0, 1, 5
      const int32_t path[] = {0, 1, 5};
      block[static_cast<size_t>(path[i]) * kVocab + static_cast<size_t>(path[i] * 4 + 1)] = 40.0f;
    }
  }
  // A law over a few tokens per row, as after truncation.
  treespec::DraftRows law;
  law.vocab_size = kVocab;
  law.row_offset = {0};
  for (int32_t i = 0; i <= kNodes; ++i) {
    law.row_of_node.push_back(i);
    for (int32_t j = 0; j < 4; ++j) {
      law.token.push_back(i * 4 + 1 + j);
      law.prob.push_back(0.25f);
    }
    law.row_offset.push_back(static_cast<int64_t>(law.token.size()));
  }
  const struct {
    const char* verifier;
    treespec::Proposal proposal;
    double temperature;
  } cases[] = {{"greedy", treespec::Proposal::kDeterministic, 0.0},
               {"target_only", treespec::Proposal::kDeterministic, 0.7},
               {"recursive_rejection", treespec::Proposal::kIid, 0.7}};
  for (const auto& one : cases) {
    const TokenTree tree = sampled_tree(one.proposal, kNodes);
    treespec::SamplingParams params;
    params.temperature = one.temperature;
    int64_t visited = 0;
    const auto verify = [&] {
      const treespec::RowsView logits{pool.next(), treespec::DType::kFloat32, kNodes + 1, kVocab,
                                      kVocab};
      treespec::LogitRows rows(logits, tree, params, {}, nullptr);
      const treespec::Verdict verdict = treespec::verify(
          one.verifier, tree, rows, treespec::DraftLaw(law), treespec::Coins({1, 2, 3}));
      visited = verdict.num_accepted() + 1;
      sink = verdict.next_token;
    };
    verify();
    report.add(std::string("verify ") + one.verifier + ", " + std::to_string(visited) +
                   " of 65 rows of 151936 visited, cold",
               "sum loop over the visited rows, cold", 0.0, 4, verify,
               [&] { sink = sum_loop(pool.next(), visited * kVocab); });
  }
}

void bench_mask_fill(Report& report) {
  constexpr int32_t kNodes = 65, kPrefix = 2048;
  const TokenTree tree = sampled_tree(treespec::Proposal::kDeterministic, kNodes - 1);
  std::vector<float> mask(static_cast<size_t>(kNodes) * (kPrefix + kNodes));
  report.add(
      "additive float32 mask [65, 2048 + 65]", "fill of the same array", 0.0, 100,
      [&] {
        treespec::additive_mask(tree.parent, tree.depth, 0, kPrefix, 0, treespec::DType::kFloat32,
                                mask.data());
        sink = mask.back();
      },
      [&] {
        std::fill(mask.begin(), mask.end(), static_cast<float>(sink));
        sink = mask.back();
      });
}

void bench_commit(Report& report) {
  // 32 layers of keys and values, 8 heads of 128 floats, 2048 rows.
  constexpr int64_t kLayers = 32, kOuter = 16, kRows = 2048, kBytes = 512, kPrefix = 1900;
  std::vector<char> memory(static_cast<size_t>(kLayers * kOuter * kRows * kBytes), 1);
  std::vector<treespec::KvBuffer> buffers;
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    buffers.push_back({memory.data() + layer * kOuter * kRows * kBytes, kOuter, kRows * kBytes,
                       kBytes, kBytes, kRows});
  }
  const std::vector<int32_t> nodes{0, 3, 9, 17, 40};
  std::vector<char> packed(static_cast<size_t>(kLayers * kOuter * 4 * kBytes), 2);
  std::vector<char> target(packed.size());
  report.add(
      "commit 5 of 65 rows, 32 layers x 16 x 512 bytes", "one memcpy of the moved bytes", 0.0, 20,
      [&] { treespec::commit_kv(buffers, kPrefix, nodes); },
      [&] {
        std::memcpy(target.data(), packed.data(), packed.size());
        sink = target[static_cast<size_t>(sink) % target.size()];
      });
}

}  // namespace

/// bench_core [repetitions]
int main(int argc, char** argv) {
  Report report{argc > 1 ? std::atoi(argv[1]) : 15};
  std::printf("[\n");
  bench_build(report);
  bench_dense_build(report);
  bench_verify(report);
  bench_mask_fill(report);
  bench_commit(report);
  std::printf("\n]\n");
  return 0;
}
