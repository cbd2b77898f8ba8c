// SPDX-License-Identifier: Apache-2.0
// Verify, mask and commit without Python around them, each beside its floor: the least work that
// any implementation must do, timed in the same loop. Prints JSON.
#include "bench.h"

namespace {

using bench::kVocab;
using bench::Report;
using bench::sink;
using treespec::TokenTree;

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

/// Rows of logits, counted when a verifier asks for one.
class CountedRows final : public treespec::TargetRows {
 public:
  explicit CountedRows(treespec::LogitRows& rows) : rows_(rows) {}
  int32_t vocab_size() const override { return rows_.vocab_size(); }
  void load(int32_t node, treespec::ArrayView<const int32_t> without,
            treespec::TargetRow& row) override {
    ++count;
    rows_.load(node, without, row);
  }
  int32_t argmax(int32_t node) override {
    ++count;
    return rows_.argmax(node);
  }
  int64_t count = 0;

 private:
  treespec::LogitRows& rows_;
};

void bench_verify(Report& report) {
  constexpr int32_t kNodes = 64;
  std::vector<float> block = bench::logit_rows(kNodes + 1);
  for (const int32_t node : {0, 1, 5}) {  // an accepted path
    block[static_cast<size_t>(node) * kVocab + static_cast<size_t>(node * 4 + 1)] = 40.0f;
  }
  constexpr size_t kVisited = 4;  // rows: the root and an accepted path of 3
  bench::Pool<float> pool(block, kVisited * kVocab);
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
               {"recursive_rejection", treespec::Proposal::kIid, 0.7},
               {"naive_tree", treespec::Proposal::kIid, 0.7},
               {"spectr", treespec::Proposal::kIid, 0.7},
               {"khisti", treespec::Proposal::kIid, 0.7},
               {"traversal", treespec::Proposal::kIid, 0.7},
               {"top_plus_one", treespec::Proposal::kTopPlusOne, 0.7}};
  for (const auto& one : cases) {
    const TokenTree tree = sampled_tree(one.proposal, kNodes);
    treespec::SamplingParams params;
    params.temperature = one.temperature;
    int64_t visited = 0;
    const auto verify = [&] {
      const treespec::RowsView logits{pool.next(), treespec::DType::kFloat32, kNodes + 1, kVocab,
                                      kVocab};
      treespec::LogitRows logit_rows(logits, tree, params, {}, nullptr);
      CountedRows rows(logit_rows);
      const treespec::Verdict verdict = treespec::verify(
          one.verifier, tree, rows, treespec::DraftLaw(law), treespec::Coins({1, 2, 3}));
      visited = rows.count;
      sink = verdict.next_token;
    };
    verify();
    bench::Case timed;
    timed.name = std::string("verify ") + one.verifier + ", " + std::to_string(visited) +
                 " of 65 rows of 151936 visited, cold";
    timed.floor_name = "sum loop over the visited rows, cold";
    timed.calls = 4;
    timed.num_rows = visited;
    report.add(timed, verify, [&] { sink = bench::sum_loop(pool.next(), visited * kVocab); });
  }
}

void bench_mask_fill(Report& report) {
  constexpr int32_t kNodes = 65, kPrefix = 2048;
  const TokenTree tree = sampled_tree(treespec::Proposal::kDeterministic, kNodes - 1);
  std::vector<float> mask(static_cast<size_t>(kNodes) * (kPrefix + kNodes));
  report.add(
      {"additive float32 mask [65, 2048 + 65]", "fill of the same array", 100},
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
      {"commit 5 of 65 rows, 32 layers x 16 x 512 bytes", "one memcpy of the moved bytes", 20},
      [&] { treespec::commit_kv(buffers, kPrefix, nodes); },
      [&] {
        std::memcpy(target.data(), packed.data(), packed.size());
        sink = target[static_cast<size_t>(sink) % target.size()];
      });
}

}  // namespace

/// bench_core [repetitions [part of a name]]
int main(int argc, char** argv) {
  Report report(argc, argv);
  bench_verify(report);
  bench_mask_fill(report);
  bench_commit(report);
  return 0;
}
