// SPDX-License-Identifier: Apache-2.0
// The device's verdicts are those of the CPU: tokens, nodes, from the same coins.
#include "treespec/device/verify.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "device/device_memory.h"
#include "device/logits.h"
#include "device/random_trees.h"
#include "treespec/error.h"
#include "treespec/verifier.h"

namespace {

using namespace treespec;  // NOLINT
using test::DeviceArray;
using test::DeviceTrees;
using test::Logits;
using Random = std::mt19937;
using Ints = std::vector<int32_t>;

int32_t pick(Random& random, int32_t size) {
  return static_cast<int32_t>(random() % static_cast<uint32_t>(size));
}

/// A law of `support` tokens; the first `heavy` share nearly all of it.
void append_law(Random& random, int32_t vocab_size, int32_t support, int32_t heavy,
                DraftRows& rows) {
  Ints tokens(static_cast<size_t>(vocab_size));
  for (int32_t t = 0; t < vocab_size; ++t) tokens[static_cast<size_t>(t)] = t;
  if (support < vocab_size) std::shuffle(tokens.begin(), tokens.end(), random);
  tokens.resize(static_cast<size_t>(support));
  std::sort(tokens.begin(), tokens.end());
  std::vector<double> weight;
  double sum = 0.0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    weight.push_back(std::exp(-0.01 * static_cast<double>(random() % 800)));
    if (static_cast<int32_t>(i) < heavy) weight.back() = 1e7;
    sum += weight.back();
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    rows.token.push_back(tokens[i]);
    rows.prob.push_back(static_cast<float>(weight[i] / sum));
  }
  rows.row_offset.push_back(static_cast<int64_t>(rows.token.size()));
}

/// A tree of up to `num_nodes` nodes whose children are drawn from laws of `support` tokens, as far
/// as verification can tell: draw order, repeats, removals. `heavy`: of each law, and then alone
/// drawn; 0: some laws have one such token.
TokenTree drawn_tree(Random& random, Proposal proposal, int32_t num_nodes, int32_t vocab_size,
                     int32_t support, int32_t heavy, bool chain) {
  TokenTree tree = root_tree(3);
  tree.proposal = proposal;
  tree.draw_offset = {0};
  tree.draw.clear();
  DraftRows& law = tree.draft_probs;
  law.vocab_size = vocab_size;
  law.row_offset = {0};
  for (int32_t node = 0; node < tree.num_nodes(); ++node) {
    const int32_t left = num_nodes - tree.num_nodes();
    const int32_t wanted = chain ? 1 : 1 + pick(random, 4);
    const int32_t draws = std::min(left, node > 0 && random() % 5 == 0 ? 0 : wanted);
    law.row_of_node.push_back(draws > 0 ? static_cast<int32_t>(law.row_offset.size()) - 1 : -1);
    const int32_t certain = heavy == 0 && draws > 0 && random() % 6 == 0 ? 1 : 0;
    if (draws > 0) append_law(random, vocab_size, support, heavy + certain, law);
    Ints children;
    for (int32_t j = 0; j < draws; ++j) {
      const int64_t from = law.row_offset[law.row_offset.size() - 2];
      const double u = static_cast<double>(random()) / 4294967296.0;
      // Squared: likely entries come often, so that draws repeat.
      const auto place =
          static_cast<int64_t>(u * u * static_cast<double>(heavy > 0 ? heavy : support));
      const int32_t token = law.token[static_cast<size_t>(from + place)];
      const auto same = [&](int32_t c) { return tree.token[static_cast<size_t>(c)] == token; };
      const auto old = std::find_if(children.begin(), children.end(), same);
      if (old != children.end()) {
        if (proposal == Proposal::kIid) children.push_back(*old);
        continue;
      }
      children.push_back(tree.num_nodes());
      tree.token.push_back(token);
      tree.parent.push_back(node);
      tree.depth.push_back(tree.depth[static_cast<size_t>(node)] + 1);
      tree.path_logprob.push_back(0.0f);
    }
    tree.draw.insert(tree.draw.end(), children.begin(), children.end());
    tree.draw_offset.push_back(static_cast<int32_t>(tree.draw.size()));
  }
  return tree;
}

struct Case {
  std::string verifier;
  Proposal proposal;
  int32_t vocab_size;
  int32_t support;
  DType dtype = DType::kFloat32;
  bool dense = false;
  bool chain = false;
  bool truncated = false;
  bool changed = false;  // bias, penalties, allowed tokens
  int32_t heavy = 0;
};

/// A batch of trees, logits and keys, and what both sides make of it.
class Batch {
 public:
  Batch(Random& random, const Case& one, int32_t batch, int32_t most_nodes)
      : case_(one),
        max_nodes_(most_nodes + pick(random, 3)),
        logits_(one.dtype, int64_t{batch} * max_nodes_, one.vocab_size, pick(random, 2) * 3) {
    for (int32_t b = 0; b < batch; ++b) {
      trees_.push_back(drawn_tree(random, one.proposal, 1 + pick(random, most_nodes),
                                  one.vocab_size, one.support, one.heavy, one.chain));
      if (one.proposal == Proposal::kDeterministic) trees_.back().draft_probs = {};
      sampling_.push_back(random_sampling(random));
      seed_.push_back(random() | uint64_t{random()} << 32);
      sequence_id_.push_back(static_cast<uint32_t>(random()));
      position_.push_back(pick(random, 100000));
    }
    fill_logits(random);
    if (one.changed) fill_changes(random);
  }

  Logits& logits() { return logits_; }
  int64_t row_of(int32_t b, int32_t node) const { return int64_t{b} * max_nodes_ + node; }
  const std::vector<TokenTree>& trees() const { return trees_; }

  Verdict on_cpu(int32_t b) const {
    const auto i = static_cast<size_t>(b);
    const TokenTree& tree = trees_[i];
    SamplingParams params;
    params.temperature = sampling_[i].temperature;
    params.top_k = sampling_[i].top_k;
    params.top_p = sampling_[i].top_p;
    params.min_p = sampling_[i].min_p;
    const char* first = logits_.bytes.data() + row_of(b, 0) * logits_.stride * size_of(case_.dtype);
    if (case_.changed) {
      params.repetition_penalty = penalties_[i].repetition;
      params.presence_penalty = penalties_[i].presence;
      params.frequency_penalty = penalties_[i].frequency;
      for (size_t k = i * kBiases; k < (i + 1) * kBiases; ++k) {
        if (bias_token_[k] >= 0) params.logit_bias.emplace_back(bias_token_[k], bias_[k]);
      }
    }
    const auto length = case_.changed ? int64_t{history_length_[i]} : 0;
    const History history{{history_.data() + i * kMaxHistory, length},
                          case_.changed ? int64_t{prompt_length_[i]} : 0};
    const uint32_t* allowed = allowed_.empty() ? nullptr : allowed_.data() + row_of(b, 0) * words();
    LogitRows rows(logits_.rows(first, tree.num_nodes()), tree, params, history, allowed);
    const RoundKey key{seed_[i], sequence_id_[i], static_cast<uint32_t>(position_[i])};
    const std::string name = params.temperature == 0.0 ? "greedy" : case_.verifier;
    const bool lossy = is_lossy(verifier_info(name));
    if (!case_.dense) {
      return verify(name, tree, rows, DraftLaw(tree.draft_probs), Coins(key), lossy);
    }
    const std::vector<float> law = dense_law(tree);
    const RowsView view{law.data(), DType::kFloat32, tree.num_nodes(), case_.vocab_size,
                        case_.vocab_size};
    return verify(name, tree, rows, DraftLaw(view), Coins(key), lossy);
  }

  struct Result {
    Ints nodes, num_accepted, next_token;
    std::vector<uint32_t> status;
  };

  Result on_device(int32_t max_depth) const {
    const DeviceTrees trees(trees_, max_nodes_);
    const DeviceArray<char> logits(logits_.bytes);
    const DeviceArray<device::Sampling> sampling(sampling_);
    const DeviceArray<uint64_t> seed(seed_);
    const DeviceArray<uint32_t> sequence_id(sequence_id_);
    const DeviceArray<int32_t> position(position_);
    const Law law(*this);
    device::VerifyInput input;
    input.trees = trees.view();
    input.proposal = case_.proposal;
    input.logits = logits_.rows(logits.data(), int64_t{batch()} * max_nodes_);
    if (case_.proposal != Proposal::kDeterministic) input.law = law.view(case_.dense);
    input.sampling = sampling.data();
    const Changes changes(*this);
    if (case_.changed) input.changes = changes.view();
    input.seed = seed.data();
    input.sequence_id = sequence_id.data();
    input.position = position.data();
    input.lossy = is_lossy(verifier_info(case_.verifier));
    const auto size = static_cast<size_t>(batch());
    const DeviceArray<int32_t> nodes(size * static_cast<size_t>(max_depth + 1));
    const DeviceArray<int32_t> num_accepted(size), next_token(size);
    const DeviceArray<uint32_t> status(std::vector<uint32_t>(size, 0));
    const device::Verdicts out{max_depth, nodes.data(), num_accepted.data(), next_token.data()};
    const size_t bytes = device::verify_workspace_bytes(case_.verifier, input, out);
    const DeviceArray<char> workspace(bytes);
    device::verify(Stream{}, case_.verifier, input, workspace.data(), bytes, out, status.data());
    return {nodes.to_host(), num_accepted.to_host(), next_token.to_host(), status.to_host()};
  }

  int32_t batch() const { return static_cast<int32_t>(trees_.size()); }

 private:
  static constexpr size_t kBiases = 3, kMaxHistory = 12;

  int64_t words() const { return (case_.vocab_size + 31) / 32; }

  void fill_changes(Random& random) {
    for (int32_t b = 0; b < batch(); ++b) {
      for (size_t k = 0; k < kBiases; ++k) {
        bias_token_.push_back(random() % 4 == 0 ? -1 : pick(random, case_.vocab_size));
        bias_.push_back(0.37 * pick(random, 20) - 3.0);
      }
      penalties_.push_back({});
      if (random() % 2 == 0) penalties_.back().repetition = 0.6 + 0.11 * pick(random, 12);
      if (random() % 2 == 0) penalties_.back().presence = 0.3 * pick(random, 5) - 0.4;
      if (random() % 2 == 0) penalties_.back().frequency = 0.21 * pick(random, 5);
      history_length_.push_back(pick(random, kMaxHistory + 1));
      prompt_length_.push_back(pick(random, history_length_.back() + 1));
      const TokenTree& tree = trees_[static_cast<size_t>(b)];
      for (size_t i = 0; i < kMaxHistory; ++i) {  // often what the tree has, too
        const auto node = static_cast<size_t>(pick(random, tree.num_nodes()));
        const bool foreign = random() % 3 == 0;
        history_.push_back(foreign ? pick(random, case_.vocab_size + 2) : tree.token[node]);
      }
    }
    if (random() % 2 == 0) return;
    const auto rows = static_cast<size_t>(int64_t{batch()} * max_nodes_ * words());
    for (size_t w = 0; w < rows; ++w) allowed_.push_back(random() | random());
    for (int64_t r = 0; r < int64_t{batch()} * max_nodes_; ++r) {
      allowed_[static_cast<size_t>(r * words())] |= 1;  // some token at least
    }
    for (int32_t b = 0; b < batch(); ++b) {
      const TokenTree& tree = trees_[static_cast<size_t>(b)];
      for (int32_t node = 0; node < tree.num_nodes(); ++node) {
        logits_.set(row_of(b, node), 0, -1.0f);
      }
    }
  }

  class Changes {
   public:
    explicit Changes(const Batch& batch)
        : allowed_(batch.allowed_),
          bias_token_(batch.bias_token_),
          bias_(batch.bias_),
          penalties_(batch.penalties_),
          history_(batch.history_),
          history_length_(batch.history_length_),
          prompt_length_(batch.prompt_length_) {}
    device::ScoreChanges view() const {
      device::ScoreChanges out;
      out.allowed = allowed_.size() > 0 ? allowed_.data() : nullptr;
      out.num_biases = kBiases;
      out.bias_token = bias_token_.data();
      out.bias = bias_.data();
      out.penalties = penalties_.data();
      out.history = history_.data();
      out.max_history = kMaxHistory;
      out.history_length = history_length_.data();
      out.prompt_length = prompt_length_.data();
      return out;
    }

   private:
    DeviceArray<uint32_t> allowed_;
    DeviceArray<int32_t> bias_token_;
    DeviceArray<double> bias_;
    DeviceArray<device::Penalties> penalties_;
    DeviceArray<int32_t> history_, history_length_, prompt_length_;
  };

  /// Laws of all trees, in device memory.
  class Law {
   public:
    explicit Law(const Batch& batch)
        : vocab_size_(batch.case_.vocab_size),
          max_support_(batch.case_.support),
          row_of_node_(rows_of(batch)),
          row_offset_(offsets(batch)),
          token_(joined(batch, &DraftRows::token)),
          prob_(joined(batch, &DraftRows::prob)),
          dense_(dense_rows(batch)) {}

    device::DraftLaw view(bool dense) const {
      device::DraftLaw law;
      law.row_of_node = row_of_node_.data();
      law.vocab_size = vocab_size_;
      law.row_offset = row_offset_.data();
      law.max_support = max_support_;
      law.token = dense ? nullptr : token_.data();
      law.prob = dense ? dense_.data() : prob_.data();
      law.row_stride = vocab_size_;
      return law;
    }

   private:
    static Ints rows_of(const Batch& batch) {
      Ints out;
      int32_t first = 0;
      for (const TokenTree& tree : batch.trees_) {
        for (const int32_t row : tree.draft_probs.row_of_node) {
          out.push_back(row < 0 ? -1 : first + row);
        }
        const auto used = tree.draft_probs.row_of_node.size();
        out.resize(out.size() + static_cast<size_t>(batch.max_nodes_) - used, -1);
        first += std::max(0, static_cast<int32_t>(tree.draft_probs.row_offset.size()) - 1);
      }
      return out;
    }
    static std::vector<int64_t> offsets(const Batch& batch) {
      std::vector<int64_t> out{0};
      for (const TokenTree& tree : batch.trees_) {
        const int64_t before = out.back();
        for (size_t r = 1; r < tree.draft_probs.row_offset.size(); ++r) {
          out.push_back(before + tree.draft_probs.row_offset[r]);
        }
      }
      return out;
    }
    template <class T>
    static std::vector<T> joined(const Batch& batch, std::vector<T> DraftRows::* field) {
      std::vector<T> out;
      for (const TokenTree& tree : batch.trees_) {
        const std::vector<T>& values = tree.draft_probs.*field;
        out.insert(out.end(), values.begin(), values.end());
      }
      return out;
    }
    /// One row per law, in the order of the sparse ones.
    static std::vector<float> dense_rows(const Batch& batch) {
      std::vector<float> out;
      if (!batch.case_.dense) return out;
      for (const TokenTree& tree : batch.trees_) {
        const std::vector<float> rows = batch.dense_law(tree);
        for (size_t i = 0; i < tree.draft_probs.row_of_node.size(); ++i) {
          if (tree.draft_probs.row_of_node[i] < 0) continue;
          const auto at = rows.begin() + static_cast<std::ptrdiff_t>(i) * batch.case_.vocab_size;
          out.insert(out.end(), at, at + batch.case_.vocab_size);
        }
      }
      return out;
    }

    int32_t vocab_size_, max_support_;
    DeviceArray<int32_t> row_of_node_;
    DeviceArray<int64_t> row_offset_;
    DeviceArray<int32_t> token_;
    DeviceArray<float> prob_, dense_;
  };

  std::vector<float> dense_law(const TokenTree& tree) const {
    const auto width = static_cast<size_t>(case_.vocab_size);
    std::vector<float> out(static_cast<size_t>(tree.num_nodes()) * width, 0.0f);
    const DraftRows& law = tree.draft_probs;
    for (size_t i = 0; i < law.row_of_node.size(); ++i) {
      if (law.row_of_node[i] < 0) continue;
      const auto row = static_cast<size_t>(law.row_of_node[i]);
      for (int64_t e = law.row_offset[row]; e < law.row_offset[row + 1]; ++e) {
        out[i * width + static_cast<size_t>(law.token[static_cast<size_t>(e)])] =
            law.prob[static_cast<size_t>(e)];
      }
    }
    return out;
  }

  /// Every kind of truncation, and some sequences greedy.
  device::Sampling random_sampling(Random& random) const {
    device::Sampling out;
    if (case_.verifier == "greedy" || random() % 8 == 0) out.temperature = 0.0;
    if (out.temperature > 0.0) out.temperature = 0.3 + 0.1 * pick(random, 12);
    if (!case_.truncated) return out;
    if (random() % 2 == 0) out.top_k = 1 + pick(random, std::min(case_.vocab_size, 60));
    if (random() % 2 == 0) out.top_p = 0.05 + 0.19 * pick(random, 6);
    if (random() % 3 == 0) out.min_p = 0.2 * std::pow(10.0, -pick(random, 4));
    return out;
  }

  /// Near the law where it is, unlikely elsewhere; some tokens impossible, some blocks, too.
  void fill_logits(Random& random) {
    for (int32_t b = 0; b < batch(); ++b) {
      const TokenTree& tree = trees_[static_cast<size_t>(b)];
      for (int32_t node = 0; node < tree.num_nodes(); ++node) {
        const float noise = 0.25f * static_cast<float>(pick(random, 9));
        for (int32_t t = 0; t < case_.vocab_size; ++t) {
          const bool gone = random() % 16 == 0 || (t / 4096 == 1 && node % 3 == 1);
          logits_.set(
              row_of(b, node), t,
              gone ? -std::numeric_limits<float>::infinity() : noise_of(random, noise) - 8.0f);
        }
        const DraftRows& law = tree.draft_probs;
        if (law.empty() || law.row_of_node[static_cast<size_t>(node)] < 0) {
          logits_.set(row_of(b, node), pick(random, case_.vocab_size), 1.0f);
          for (const int32_t child : tree.draws(node)) {
            logits_.set(row_of(b, node), tree.token[static_cast<size_t>(child)], 2.0f);
          }
          continue;
        }
        const auto row = static_cast<size_t>(law.row_of_node[static_cast<size_t>(node)]);
        for (int64_t e = law.row_offset[row]; e < law.row_offset[row + 1]; ++e) {
          const auto at = static_cast<size_t>(e);
          if (random() % 10 == 0) continue;
          logits_.set(row_of(b, node), law.token[at],
                      std::log(law.prob[at]) + noise_of(random, noise));
        }
      }
    }
  }
  static float noise_of(Random& random, float size) {
    return size * (static_cast<float>(random() % 1001) / 500.0f - 1.0f);
  }

  Case case_;
  int32_t max_nodes_;
  std::vector<TokenTree> trees_;
  Logits logits_;
  std::vector<device::Sampling> sampling_;
  std::vector<uint64_t> seed_;
  std::vector<uint32_t> sequence_id_;
  Ints position_;
  std::vector<uint32_t> allowed_;
  Ints bias_token_, history_, history_length_, prompt_length_;
  std::vector<double> bias_;
  std::vector<device::Penalties> penalties_;
};

constexpr int32_t kMaxDepth = 40;

void check_equal(const Batch& batch, int64_t& accepted) {
  const Batch::Result device = batch.on_device(kMaxDepth);
  for (int32_t b = 0; b < batch.batch(); ++b) {
    const auto i = static_cast<size_t>(b);
    const Verdict cpu = batch.on_cpu(b);
    CHECK_EQUAL(device.status[i], uint32_t{device::kOk});
    CHECK_EQUAL(device.num_accepted[i], cpu.num_accepted());
    CHECK_EQUAL(device.next_token[i], cpu.next_token);
    const auto first = device.nodes.begin() + b * (kMaxDepth + 1);
    CHECK_EQUAL(*first, 0);
    CHECK(std::equal(cpu.accepted_nodes.begin(), cpu.accepted_nodes.end(), first + 1));
    accepted += cpu.num_accepted();
  }
}

void verdicts_equal_those_of_the_cpu() {
  const struct {
    const char* name;
    std::vector<Proposal> proposals;
    bool chain;
  } verifiers[] = {
      {"greedy", {Proposal::kDeterministic, Proposal::kIid}, false},
      {"target_only", {Proposal::kDeterministic, Proposal::kWithoutReplacement}, false},
      {"token_level", {Proposal::kIid}, true},
      {"block", {Proposal::kIid}, true},
      {"naive_tree", {Proposal::kIid, Proposal::kWithoutReplacement}, false},
      {"recursive_rejection", {Proposal::kIid, Proposal::kWithoutReplacement}, false},
      {"spectr", {Proposal::kIid}, false},
      {"traversal", {Proposal::kIid, Proposal::kWithoutReplacement}, false},
      {"top_plus_one", {Proposal::kTopPlusOne}, false},
      {"khisti", {Proposal::kIid}, false},
      {"typical", {Proposal::kDeterministic, Proposal::kIid}, false},
  };
  CHECK_EQUAL(static_cast<int64_t>(std::size(verifiers)), treespec::verifiers().size());
  const DType dtypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  Random random(11);
  for (const auto& one : verifiers) {
    int64_t accepted = 0;
    for (const Proposal proposal : one.proposals) {
      for (int trial = 0; trial < 40; ++trial) {
        test::set_order(trial % test::num_orders());
        const bool large = trial % 8 == 7;
        const int32_t vocab_size = large ? 4097 + pick(random, 9000) : 1 + pick(random, 400);
        const bool dense = trial % 5 == 4 && one.name != std::string("greedy");
        const int32_t support = std::min(vocab_size, 1 + pick(random, large ? 300 : 20));
        const Case here{one.name,  proposal,          vocab_size,
                        support,   dtypes[trial % 3], dense && proposal != Proposal::kDeterministic,
                        one.chain, trial % 2 == 1,    trial % 4 >= 2};
        check_equal(Batch(random, here, 1 + pick(random, 3), large ? 4 : 20), accepted);
      }
    }
    CHECK(accepted > 15);
  }
}

/// More entries of a law than threads, and some that matter behind those of the program.
void long_laws_take_part_in_tournaments() {
  Random random(12);
  int64_t accepted = 0;
  for (int trial = 0; trial < 20; ++trial) {
    test::set_order(trial % test::num_orders());
    const int32_t support = trial == 0 ? 512 : 513 + pick(random, 1500);
    Case here{"khisti", Proposal::kIid, 3000, support};
    here.heavy = 12;
    check_equal(Batch(random, here, 2, 12), accepted);
  }
  CHECK(accepted > 20);
}

/// Whatever is wrong with a visited row is said, and batch mates are not affected.
void bad_rows_are_reported() {
  Random random(5);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const char* name :
         {"target_only", "recursive_rejection", "traversal", "khisti", "typical"}) {
      Batch batch(random, {name, Proposal::kIid, 5000, 10}, 3, 6);
      batch.logits().set(batch.row_of(1, 0), 4500, bad);
      const Batch::Result result = batch.on_device(kMaxDepth);
      CHECK_EQUAL(result.status[1], uint32_t{device::kNotANumber});
      CHECK_EQUAL(result.num_accepted[1], -1);
      for (const int32_t b : {0, 2}) {
        CHECK_EQUAL(result.status[static_cast<size_t>(b)], uint32_t{device::kOk});
        CHECK_EQUAL(result.next_token[static_cast<size_t>(b)], batch.on_cpu(b).next_token);
      }
    }
  }
  Batch empty(random, {"target_only", Proposal::kIid, 100, 10}, 2, 6);
  for (int32_t t = 0; t < 100; ++t) {
    empty.logits().set(empty.row_of(0, 0), t, -std::numeric_limits<float>::infinity());
  }
  CHECK_EQUAL(empty.on_device(kMaxDepth).status[0], uint32_t{device::kEmptyRow});
}

void a_path_deeper_than_the_envelope_is_reported() {
  Random random(6);
  int deep = 0;
  for (int trial = 0; trial < 80; ++trial) {
    const Batch batch(random, {"target_only", Proposal::kIid, 3, 2, DType::kFloat32, false, true},
                      1, 12);
    const int32_t accepted = batch.on_cpu(0).num_accepted();
    const Batch::Result result = batch.on_device(1);
    const bool fits = accepted <= 1;
    CHECK_EQUAL(result.status[0], uint32_t{fits ? device::kOk : device::kOutOfBounds});
    deep += fits ? 0 : 1;
  }
  CHECK(deep > 2);
}

void wrong_arguments_are_refused() {
  device::VerifyInput input;
  input.trees.batch = 1;
  input.trees.max_nodes = 4;
  input.logits = {nullptr, DType::kFloat32, 4, 100, 100};
  const device::Verdicts out{4, nullptr, nullptr, nullptr};
  const auto refused = [&](const char* name) {
    try {
      device::verify_workspace_bytes(name, input, out);
    } catch (const InvalidArgument&) {
      return true;
    }
    return false;
  };
  CHECK(!refused("target_only"));
  CHECK(refused("traversal"));  // biased on a deterministic tree
  CHECK(refused("typical"));    // lossy
  input.lossy = true;
  CHECK(!refused("typical"));
  input.proposal = Proposal::kIid;
  CHECK(refused("traversal"));  // no law
  input.logits.num_rows = 5;
  CHECK(refused("target_only"));
}

}  // namespace

int main() {
  if (!test::has_device()) return test::kSkipped;
  verdicts_equal_those_of_the_cpu();
  long_laws_take_part_in_tournaments();
  bad_rows_are_reported();
  a_path_deeper_than_the_envelope_is_reported();
  wrong_arguments_are_refused();
  return 0;
}
