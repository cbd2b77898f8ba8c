// SPDX-License-Identifier: Apache-2.0
// The steps of a round through the C API give what the core gives, on random inputs.
#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <type_traits>
#include <variant>
#include <vector>

#include "c_api/c_calls.h"
#include "c_api/random_cases.h"
#include "check.h"
#include "treespec/treespec.h"
#include "treespec/treespec_c.h"

namespace {

using namespace treespec;        // NOLINT
using namespace treespec::test;  // NOLINT

constexpr int32_t kVocab = 11;
constexpr int32_t kRoot = 5;  // token of the root

// --- Builders ------------------------------------------------------------------------------------

/// Every kind of option, and every proposal mode.
std::vector<BuilderOptions> options_to_try(const std::string& builder) {
  const OptionTable acceptance{{0.6, 0.2, 0.1}, {0.5, 0.3}};
  const std::vector<int64_t> map{0, 0, 1, 1, 3};
  std::vector<BuilderOptions> tried{{}, {{"max_depth", int64_t{2}}}};
  const auto add = [&](BuilderOptions options) { tried.push_back(std::move(options)); };
  if (builder == "chain" || builder == "kary" || builder == "sequoia") {
    add({{"proposal", std::string("without_replacement")}});
  }
  if (builder == "chain") add({{"proposal", std::string("iid")}, {"max_depth", int64_t{3}}});
  if (builder == "kary") {
    add({{"proposal", std::string("iid")}, {"expansion", std::vector<int64_t>{2, 2}}});
  }
  if (builder == "sequoia") {
    add({{"acceptance", acceptance}});
    add({{"growth_map", map}});
  }
  if (builder == "opt_tree") add({{"threshold", 0.2}, {"score_temperature", 0.7}});
  if (builder == "eagle2") add({{"width", int64_t{3}}, {"width_ratio", 0.1}});
  if (builder == "delayed") add({{"trunk", int64_t{1}}, {"num_paths", int64_t{2}}});
  return tried;
}

Owned<treespec_options> c_options(const BuilderOptions& options) {
  auto out = make<treespec_options>(treespec_options_create);
  for (const auto& [name, value] : options) {
    const char* key = name.c_str();
    if (const auto* whole = std::get_if<int64_t>(&value)) {
      CHECK_OK(treespec_options_set_integer(out.get(), key, *whole));
    } else if (const auto* real = std::get_if<double>(&value)) {
      CHECK_OK(treespec_options_set_number(out.get(), key, *real));
    } else if (const auto* text = std::get_if<std::string>(&value)) {
      CHECK_OK(treespec_options_set_text(out.get(), key, text->c_str()));
    } else if (const auto* list = std::get_if<std::vector<int64_t>>(&value)) {
      CHECK_OK(treespec_options_set_integers(out.get(), key, list->data(),
                                             static_cast<int64_t>(list->size())));
    } else {
      std::vector<double> values;
      std::vector<int64_t> sizes;
      for (const auto& row : std::get<OptionTable>(value)) {
        values.insert(values.end(), row.begin(), row.end());
        sizes.push_back(static_cast<int64_t>(row.size()));
      }
      CHECK_OK(treespec_options_set_table(out.get(), key, values.data(), sizes.data(),
                                          static_cast<int64_t>(sizes.size())));
    }
  }
  return out;
}

Owned<treespec_builder> c_builder(const std::string& name, const BuilderOptions& options) {
  const auto known = c_options(options);
  return make<treespec_builder>(treespec_builder_create, name.c_str(),
                                known.get());  // may outlive its options
}

template <class T>
bool same(const std::vector<T>& expected, const T* data, int64_t size) {
  return static_cast<int64_t>(expected.size()) == size &&
         std::equal(expected.begin(), expected.end(), data);
}

/// All arrays, bit for bit.
bool same_tree(const treespec_tree* tree, const TokenTree& expected) {
  auto data = sized<treespec_tree_data>();
  CHECK_OK(treespec_tree_get_data(tree, &data));
  const int64_t n = data.num_nodes;
  const DraftRows& law = expected.draft_probs;
  const bool same_law =
      data.law_vocab_size == law.vocab_size &&
      (law.empty() || (same(law.row_of_node, data.law_row_of_node, n) &&
                       same(law.row_offset, data.law_row_offset, data.num_law_rows + 1) &&
                       same(law.token, data.law_token, data.law_row_offset[data.num_law_rows]) &&
                       same(law.prob, data.law_prob, data.law_row_offset[data.num_law_rows])));
  return same_law && same(expected.token, data.token, n) && same(expected.parent, data.parent, n) &&
         same(expected.depth, data.depth, n) && same(expected.path_logprob, data.path_logprob, n) &&
         same(expected.draw_offset, data.draw_offset, n + 1) &&
         same(expected.draw, data.draw, data.num_draws) &&
         data.proposal == static_cast<treespec_proposal>(expected.proposal);
}

treespec_build_options c_build_options(int32_t node_budget, const RoundKey& key) {
  auto options = initial<treespec_build_options>(treespec_build_options_init);
  options.node_budget = node_budget;
  options.root_token = kRoot;
  options.key = {key.seed, key.sequence_id, key.position};
  return options;
}

/// The pull-style growth, fed by hand.
Owned<treespec_tree> grow_step_by_step(const treespec_builder* builder,
                                       const treespec_build_options& options,
                                       const RandomModel& model) {
  const auto growth = make<treespec_growth>(treespec_growth_create, builder, &options);
  CModel scores(model);
  for (;;) {
    const treespec_frontier_node* nodes = nullptr;
    int64_t num_nodes = 0;
    CHECK_OK(treespec_growth_get_frontier(growth.get(), &nodes, &num_nodes));
    if (num_nodes == 0) break;
    treespec_candidates rows{};
    scores.score(nodes, num_nodes, &rows);
    CHECK_OK(treespec_growth_supply(growth.get(), &rows));
  }
  return make<treespec_tree>(treespec_growth_finish, growth.get());
}

/// A source of each kind, for the core and for C.
struct Sources {
  explicit Sources(uint64_t seed)
      : random(seed),
        lists(random_lists(random, kVocab, 4, 1, 6)),
        linked(random_lists(random, kVocab, 4, 3, 5)),
        nodes(random_trie(random, kVocab, 40)),
        model(seed, kVocab),
        marginals(lists.token.data(), lists.logprob.data(), 4, 6),
        transitions(linked.token.data(), linked.logprob.data(), linked.next.data(), 4, 3, 5),
        trie(nodes.parent, nodes.token, nodes.logprob),
        expander(model, kRoot),
        c_model(model) {
    c_source[0] = make<treespec_source>(treespec_marginals_create, lists.token.data(),
                                        lists.logprob.data(), int64_t{4}, int64_t{6});
    c_source[1] = make<treespec_source>(treespec_transitions_create, linked.token.data(),
                                        linked.logprob.data(), linked.next.data(), int64_t{4},
                                        int64_t{3}, int64_t{5});
    c_source[2] = make<treespec_source>(treespec_expander_create, CModel::expand,
                                        static_cast<void*>(&c_model));
    c_source[3] = make<treespec_source>(treespec_trie_create, nodes.parent.data(),
                                        nodes.token.data(), nodes.logprob.data(), int64_t{40});
  }

  CandidateSource& core(SourceKind kind) {
    CandidateSource* const all[] = {&marginals, &transitions, &expander, &trie};
    return *all[static_cast<size_t>(kind)];
  }

  Random random;
  Lists lists, linked, nodes;
  RandomModel model;
  Marginals marginals;
  Transitions transitions;
  Trie trie;
  ModelExpander expander;
  CModel c_model;
  Owned<treespec_source> c_source[4];
};

/// Calls `visit(tree of the core, tree of C, key)` for every builder, option and kind of source.
template <class Visit>
void for_every_tree(uint64_t seed, Visit&& visit) {
  Sources sources(seed);
  for (const BuilderInfo& info : builders()) {
    const std::string name(info.name);
    for (const BuilderOptions& options : options_to_try(name)) {
      const auto builder = make_builder(name, options);
      const auto handle = c_builder(name, options);
      for (const auto kind : {SourceKind::kMarginals, SourceKind::kTransitions,
                              SourceKind::kExpander, SourceKind::kTrie}) {
        if (!builder->accepts(kind)) continue;
        const RoundKey key{seed, static_cast<uint32_t>(below(sources.random, 3)), 17};
        const int32_t budget = 9 + below(sources.random, 12);
        TokenTree tree = build_tree(*builder, name, sources.core(kind), budget, key);
        tree.token[0] = kRoot;
        const treespec_build_options wanted = c_build_options(budget, key);
        treespec_source* source = sources.c_source[static_cast<size_t>(kind)].get();
        const auto c_tree = make<treespec_tree>(treespec_tree_build, handle.get(), source, &wanted);
        CHECK(same_tree(c_tree.get(), tree));
        if (kind == SourceKind::kExpander) {
          CHECK(same_tree(grow_step_by_step(handle.get(), wanted, sources.model).get(), tree));
        }
        visit(tree, c_tree.get(), key);
      }
    }
  }
}

void names_are_those_of_the_tables() {
  CHECK_EQUAL(treespec_num_builders(), builders().size());
  CHECK_EQUAL(treespec_num_verifiers(), verifiers().size());
  for (int64_t i = 0; i < builders().size(); ++i) {
    CHECK(builders()[i].name == treespec_builder_name(i));
    CHECK(builders()[i].summary == treespec_builder_summary(i));
  }
  for (int64_t i = 0; i < verifiers().size(); ++i) {
    CHECK(verifiers()[i].name == treespec_verifier_name(i));
    CHECK(verifiers()[i].summary == treespec_verifier_summary(i));
  }
  for (const int64_t i : {int64_t{-1}, int64_t{1} << 40}) {
    CHECK(treespec_builder_name(i) == nullptr && treespec_builder_summary(i) == nullptr);
    CHECK(treespec_verifier_name(i) == nullptr && treespec_verifier_summary(i) == nullptr);
  }
  for (treespec_proposal proposal = TREESPEC_DETERMINISTIC; proposal <= TREESPEC_TOP_PLUS_ONE;
       ++proposal) {
    for (const bool greedy : {false, true}) {
      CHECK(auto_verifier(static_cast<Proposal>(proposal), greedy) ==
            treespec_auto_verifier(proposal, greedy));
    }
  }
  CHECK(treespec_auto_verifier(4, 0) == nullptr && treespec_auto_verifier(-1, 0) == nullptr);
  CHECK_EQUAL(treespec_abi_version(), uint32_t{TREESPEC_C_ABI_VERSION});
  CHECK(std::string(treespec_version()) == kVersion);
}

void a_builder_says_what_it_reads_and_makes() {
  for (const BuilderInfo& info : builders()) {
    for (const BuilderOptions& options : options_to_try(std::string(info.name))) {
      const auto builder = make_builder(info.name, options);
      const auto handle = c_builder(std::string(info.name), options);
      auto known = sized<treespec_builder_info>();
      CHECK_OK(treespec_builder_get_info(handle.get(), &known));
      CHECK_EQUAL(known.proposal, static_cast<treespec_proposal>(builder->proposal()));
      CHECK_EQUAL(known.makes_chains, static_cast<int32_t>(builder->makes_chains()));
      for (uint32_t kind = 0; kind < 4; ++kind) {
        CHECK_EQUAL(known.source_kinds >> kind & 1u,
                    static_cast<uint32_t>(builder->accepts(static_cast<SourceKind>(kind))));
      }
    }
  }
}

void every_builder_grows_the_tree_of_the_core() {
  int drawn = 0, trees = 0;
  for (uint64_t seed = 0; seed < 6; ++seed) {
    for_every_tree(seed, [&](const TokenTree& tree, const treespec_tree* c_tree, const RoundKey&) {
      CHECK_OK(treespec_tree_check(c_tree));
      drawn += tree.draft_probs.empty() ? 0 : 1;
      ++trees;
      // From its arrays the same tree can be made again.
      auto data = sized<treespec_tree_data>();
      CHECK_OK(treespec_tree_get_data(c_tree, &data));
      data.depth = nullptr;
      CHECK(same_tree(make<treespec_tree>(treespec_tree_create, &data).get(), tree));
    });
  }
  CHECK(trees > 300 && drawn > 100 && drawn < trees);
}

void a_tree_ends_at_the_depth_that_is_asked_for() {
  Sources sources(3);
  for (const BuilderInfo& info : builders()) {
    const std::string name(info.name);
    const auto handle = c_builder(name, {});
    const auto builder = make_builder(name);
    const auto kind =
        builder->accepts(SourceKind::kExpander) ? SourceKind::kExpander : SourceKind::kTrie;
    for (const int32_t depth : {0, 1, 2}) {
      auto options = c_build_options(12, {1, 0, 2});
      options.max_depth = depth;
      const auto tree =
          make<treespec_tree>(treespec_tree_build, handle.get(),
                              sources.c_source[static_cast<size_t>(kind)].get(), &options);
      auto data = sized<treespec_tree_data>();
      CHECK_OK(treespec_tree_get_data(tree.get(), &data));
      CHECK_EQUAL(*std::max_element(data.depth, data.depth + data.num_nodes), depth);
    }
  }
}

void lists_are_ranked_and_linked_as_the_core_does() {
  Random random(9);
  const auto dtree = c_builder("dtree", {});
  const auto builder = make_builder("dtree");
  const treespec_build_options options = c_build_options(20, {});
  std::vector<double> logits;
  for (int i = 0; i < 3 * 13; ++i) logits.push_back(4.0 * unit(random));
  const treespec_rows rows{logits.data(), TREESPEC_FLOAT64, 0, 3, kVocab, 13};
  Marginals ranked =
      Marginals::from_logits({logits.data(), DType::kFloat64, 3, kVocab, 13}, 5, 0.8);
  const auto c_ranked =
      make<treespec_source>(treespec_marginals_create_from_logits, &rows, int64_t{5}, 0.8);
  TokenTree expected = build_tree(*builder, "dtree", ranked, 20);
  expected.token[0] = kRoot;
  CHECK(same_tree(
      make<treespec_tree>(treespec_tree_build, dtree.get(), c_ranked.get(), &options).get(),
      expected));

  constexpr int32_t kDepth = 3, kLists = 4, kWidth = 5;
  const Lists lists = random_lists(random, kVocab, 1 + (kDepth - 1) * kLists, 1, kWidth);
  std::vector<int32_t> owner;
  for (int i = 0; i < (kDepth - 1) * kLists; ++i) owner.push_back(below(random, kVocab + 1) - 1);
  std::vector<int32_t> token(kDepth * kLists * kWidth), next(token.size());
  std::vector<float> logprob(token.size());
  link_transitions(lists.token.data(), lists.logprob.data(), owner.data(), kDepth, kLists, kWidth,
                   token.data(), logprob.data(), next.data());
  Transitions linked(token.data(), logprob.data(), next.data(), kDepth, kLists, kWidth);
  const auto c_linked = make<treespec_source>(
      treespec_transitions_create_linked, lists.token.data(), lists.logprob.data(), owner.data(),
      int64_t{kDepth}, int64_t{kLists}, int64_t{kWidth});
  expected = build_tree(*builder, "dtree", linked, 20);
  expected.token[0] = kRoot;
  CHECK(expected.num_nodes() > 6);
  CHECK(same_tree(
      make<treespec_tree>(treespec_tree_build, dtree.get(), c_linked.get(), &options).get(),
      expected));
}

/// What a GPU hands over: the best of every row, ranked or not, with padding.
struct ListModel {
  static constexpr int32_t kToken[3] = {7, 2, 4};
  static constexpr float kLogprob[3] = {-0.5f, -1.5f, -1.5f};
  /// Each node has tokens of its own.
  static int32_t shift(int32_t index) { return 10 * index; }

  static int32_t expand(void* user, const treespec_frontier_node* nodes, int64_t num_nodes,
                        treespec_candidates* rows) {
    auto* self = static_cast<ListModel*>(user);
    self->token.clear();
    self->logprob.clear();
    for (int64_t i = 0; i < num_nodes; ++i) {
      for (int32_t k = 0; k < 3; ++k) {
        const int32_t at = self->ranked != 0 ? k : 2 - k;
        self->token.push_back(kToken[at] + shift(nodes[i].index));
        self->logprob.push_back(kLogprob[at]);
      }
      self->token.insert(self->token.end(), {-7, 99});  // padding, and beyond the width
      self->logprob.insert(self->logprob.end(), {-INFINITY, 1.0f});
    }
    *rows = {self->logprob.data(), self->token.data(), num_nodes, 4, 5, self->ranked, 0};
    return TREESPEC_OK;
  }

  int32_t ranked;
  std::vector<int32_t> token;
  std::vector<float> logprob;
};

class ListExpander final : public Expander {
 public:
  ArrayView<const CandidateRow> rows(ArrayView<const FrontierNode> nodes) override {
    tokens_.assign(static_cast<size_t>(nodes.size()), {});
    rows_.clear();
    for (int64_t i = 0; i < nodes.size(); ++i) {
      auto& list = tokens_[static_cast<size_t>(i)];
      for (const int32_t token : ListModel::kToken) {
        list.push_back(token + ListModel::shift(nodes[i].index));
      }
      rows_.push_back({list.data(), ListModel::kLogprob, nullptr, 3, true});
    }
    return rows_;
  }

 private:
  std::vector<std::vector<int32_t>> tokens_;
  std::vector<CandidateRow> rows_;
};

void an_expander_may_give_lists_in_place_of_rows() {
  const RoundKey key{4, 0, 1};
  const auto options = c_build_options(9, key);
  for (const std::string name : {"opt_tree", "kary", "dyspec", "rollouts"}) {
    ListExpander core;
    TokenTree expected = build_tree(*make_builder(name), name, core, 9, key);
    expected.token[0] = kRoot;
    CHECK(expected.num_nodes() > 3);
    const auto builder = c_builder(name, {});
    for (int32_t ranked = 0; ranked < 2; ++ranked) {
      ListModel model{ranked, {}, {}};
      const auto source = make<treespec_source>(treespec_expander_create, ListModel::expand,
                                                static_cast<void*>(&model));
      const auto tree =
          make<treespec_tree>(treespec_tree_build, builder.get(), source.get(), &options);
      CHECK(same_tree(tree.get(), expected));
    }
  }
}

// --- Masks ---------------------------------------------------------------------------------------

template <class T>
void check_additive(const treespec_tree* c_tree, const TokenTree& tree, DType dtype) {
  const int64_t size = int64_t{tree.num_nodes() - 1} * (tree.num_nodes() + 7);
  std::vector<T> expected(static_cast<size_t>(size)), mask(expected);
  additive_mask(tree.parent, tree.depth, 1, 7, 3, dtype, expected.data());
  CHECK_OK(treespec_mask_additive(c_tree, 1, 7, 3, static_cast<treespec_dtype>(dtype), mask.data(),
                                  size));
  CHECK(mask == expected);
}

void masks_and_positions_are_those_of_the_core() {
  for_every_tree(11, [](const TokenTree& tree, const treespec_tree* c_tree, const RoundKey&) {
    const int64_t n = tree.num_nodes();
    std::vector<uint32_t> bits(static_cast<size_t>(n * ((n + 31) / 32)));
    CHECK_OK(treespec_mask_bits(c_tree, bits.data(), static_cast<int64_t>(bits.size())));
    CHECK(bits == ancestor_mask(tree.parent));
    std::vector<uint8_t> expected(static_cast<size_t>(n * (n + 4))), mask(expected);
    bool_mask(tree.parent, tree.depth, 0, 4, 0, expected.data());
    CHECK_OK(treespec_mask_bool(c_tree, 0, 4, 0, mask.data(), static_cast<int64_t>(mask.size())));
    CHECK(mask == expected);
    check_additive<float>(c_tree, tree, DType::kFloat32);
    check_additive<double>(c_tree, tree, DType::kFloat64);
    check_additive<uint16_t>(c_tree, tree, DType::kFloat16);
    check_additive<uint16_t>(c_tree, tree, DType::kBFloat16);
    std::vector<int32_t> rank(static_cast<size_t>(n)), end(rank), position(rank);
    CHECK_OK(treespec_mask_intervals(c_tree, rank.data(), end.data(), n));
    const Intervals intervals = preorder_intervals(tree.parent);
    CHECK(rank == intervals.rank && end == intervals.end);
    CHECK_OK(treespec_positions(c_tree, 40, position.data(), n));
    CHECK(position == tree_positions(tree.depth, 40));
    const SequenceIds ids = sequence_ids(tree.parent);
    std::vector<int32_t> offset(static_cast<size_t>(n) + 1);
    CHECK_OK(treespec_mask_sequence_ids(c_tree, offset.data(), n + 1, nullptr, 0));
    CHECK(offset == ids.offset);
    std::vector<int32_t> id(static_cast<size_t>(offset.back()));
    CHECK_OK(treespec_mask_sequence_ids(c_tree, offset.data(), n + 1, id.data(), offset.back()));
    CHECK(offset == ids.offset && id == ids.id);
  });
}

// --- Verification --------------------------------------------------------------------------------

/// Rows of any dtype with room between them.
struct Rows {
  template <class T>
  void fill(const std::vector<double>& values) {
    row_stride = width + 3;
    bytes.assign(
        values.size() / static_cast<size_t>(width) * static_cast<size_t>(row_stride) * sizeof(T),
        0xff);
    auto* out = reinterpret_cast<T*>(bytes.data());
    for (size_t i = 0; i < values.size(); ++i) {
      const auto at =
          static_cast<int64_t>(i) / width * row_stride + static_cast<int64_t>(i) % width;
      if constexpr (std::is_same_v<T, uint16_t>) {
        const auto value = static_cast<float>(values[i]);
        uint32_t word;
        std::memcpy(&word, &value, sizeof(word));
        out[at] = static_cast<uint16_t>(word >> 16);  // bfloat16, rounded towards 0
      } else {
        out[at] = static_cast<T>(values[i]);
      }
    }
  }

  Rows(const std::vector<double>& values, int64_t given_width, DType given)
      : dtype(given), width(given_width) {
    num_rows = static_cast<int64_t>(values.size()) / width;
    if (dtype == DType::kFloat64) fill<double>(values);
    if (dtype == DType::kFloat32) fill<float>(values);
    if (dtype == DType::kBFloat16) fill<uint16_t>(values);
  }
  RowsView core() const { return {bytes.data(), dtype, num_rows, width, row_stride}; }
  treespec_rows c() const {
    return {bytes.data(), static_cast<treespec_dtype>(dtype), 0, num_rows, width, row_stride};
  }

  DType dtype;
  int64_t num_rows = 0, width = 0, row_stride = 0;
  std::vector<unsigned char> bytes;
};

/// A verdict with its memory.
struct CVerdict {
  explicit CVerdict(int64_t num_nodes)
      : nodes(static_cast<size_t>(num_nodes), -7), tokens(static_cast<size_t>(num_nodes), -7) {
    data.struct_size = sizeof(data);
    data.accepted_nodes = nodes.data();
    data.tokens = tokens.data();
    data.capacity = num_nodes;
  }
  bool equals(const Verdict& verdict) const {
    return verdict.num_accepted() == data.num_accepted && verdict.next_token == data.next_token &&
           std::equal(verdict.accepted_nodes.begin(), verdict.accepted_nodes.end(),
                      nodes.begin()) &&
           std::equal(verdict.tokens.begin(), verdict.tokens.end(), tokens.begin());
  }

  std::vector<int32_t> nodes, tokens;
  treespec_verdict data{};
};

struct Counts {
  std::map<std::string, int> runs, refusals;
  int accepted = 0;
};

/// `decide()` of the core and `call(options, verdict)` of C for every verifier: equal, or refused
/// with one text.
template <class Decide, class Call>
void for_every_verifier(const TokenTree& tree, const RoundKey& key, Counts& counts, Decide&& decide,
                        Call&& call) {
  for (const VerifierInfo& info : verifiers()) {
    const std::string name(info.name);
    auto options = sized<treespec_verify_options>();
    options.verifier = name.c_str();
    options.key = {key.seed, key.sequence_id, key.position};
    options.lossy = name == "typical";
    CVerdict verdict(tree.num_nodes());
    Verdict expected;
    const std::string text =
        thrown_text<InvalidArgument>([&] { expected = decide(name, options.lossy != 0); });
    if (expected.next_token < 0) {
      CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, text, call(&options, &verdict.data));
      CHECK_EQUAL(text, std::string(treespec_last_error()));
      CHECK_EQUAL(verdict.nodes[0], -7);
      ++counts.refusals[name];
      continue;
    }
    CHECK_OK(call(&options, &verdict.data));
    CHECK(verdict.equals(expected));
    counts.accepted += verdict.data.num_accepted;
    ++counts.runs[name];
  }
}

std::vector<double> random_laws(Random& random, int64_t num_rows, const TokenTree& tree) {
  std::vector<double> laws;
  for (int64_t i = 0; i < num_rows; ++i) {
    std::vector<double> law = random_law(random, kVocab);
    // Some mass where the tree is, so that paths are accepted.
    for (const int32_t child : tree.draws(static_cast<int32_t>(i))) law[tree.token[child]] += 0.3;
    const double mass = std::accumulate(law.begin(), law.end(), 0.0);
    for (const double p : law) laws.push_back(p / mass);
  }
  return laws;
}

void every_verifier_decides_as_the_core_on_probabilities() {
  Counts counts;
  Random random(1);
  for (uint64_t seed = 20; seed < 23; ++seed) {
    for_every_tree(
        seed, [&](const TokenTree& tree, const treespec_tree* c_tree, const RoundKey& key) {
          const auto dtype = unit(random) < 0.5 ? DType::kFloat32 : DType::kFloat64;
          const Rows rows(random_laws(random, tree.num_nodes(), tree), kVocab, dtype);
          const treespec_rows c_rows = rows.c();
          for_every_verifier(
              tree, key, counts,
              [&](const std::string& name, bool lossy) {
                ProbabilityRows target(rows.core(), tree.num_nodes());
                return verify(name, tree, target, DraftLaw(tree.draft_probs), Coins(key), lossy);
              },
              [&](const treespec_verify_options* options, treespec_verdict* verdict) {
                return treespec_verify(c_tree, &c_rows, nullptr, options, verdict);
              });
        });
  }
  for (const VerifierInfo& info : verifiers()) CHECK(counts.runs[std::string(info.name)] > 5);
  CHECK(counts.refusals["traversal"] > 5 && counts.refusals["block"] > 5);
  CHECK(counts.accepted > 300);
}

void every_verifier_decides_as_the_core_on_logits() {
  Counts counts;
  Random random(2);
  for (uint64_t seed = 30; seed < 33; ++seed) {
    for_every_tree(seed, [&](const TokenTree& tree, const treespec_tree* c_tree,
                             const RoundKey& key) {
      const DType dtypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16};
      std::vector<double> logits = random_laws(random, tree.num_nodes(), tree);
      for (double& value : logits) value = 3.0 * std::log(value + 1e-3);
      const Rows rows(logits, kVocab, dtypes[below(random, 3)]);
      const treespec_rows c_rows = rows.c();

      SamplingParams params;
      params.temperature = unit(random) < 0.2 ? 0.0 : 0.3 + unit(random);
      params.top_k = below(random, 6);
      params.top_p = unit(random) < 0.5 ? 1.0 : 0.7 + 0.3 * unit(random);
      params.min_p = unit(random) < 0.5 ? 0.0 : 0.05;
      params.repetition_penalty = unit(random) < 0.5 ? 1.0 : 1.3;
      params.presence_penalty = unit(random) < 0.5 ? 0.0 : 0.4;
      params.frequency_penalty = unit(random) < 0.5 ? 0.0 : 0.2;
      if (unit(random) < 0.5) params.logit_bias = {{2, 0.5}, {7, -INFINITY}};
      std::vector<treespec_logit_bias> bias;
      for (const auto& [token, value] : params.logit_bias) bias.push_back({token, 0, value});
      const treespec_sampling sampling{sizeof(sampling),
                                       params.temperature,
                                       params.top_p,
                                       params.min_p,
                                       params.repetition_penalty,
                                       params.presence_penalty,
                                       params.frequency_penalty,
                                       bias.data(),
                                       static_cast<int32_t>(bias.size()),
                                       params.top_k};
      const std::vector<int32_t> prefix{1, 2, 2, 9, kRoot};
      std::vector<uint32_t> allowed(static_cast<size_t>(tree.num_nodes()), 0x7ff & ~2u);
      auto processing = sized<treespec_logit_options>();
      processing.sampling = &sampling;
      processing.prefix_ids = prefix.data();
      processing.num_prefix_ids = 5;
      processing.prompt_length = 3;
      const bool masked = unit(random) < 0.5;
      if (masked) {
        processing.allowed = allowed.data();
        processing.num_allowed_words = static_cast<int64_t>(allowed.size());
      }
      for_every_verifier(
          tree, key, counts,
          [&](const std::string& name, bool lossy) {
            LogitRows target(rows.core(), tree, params, {prefix, 3},
                             masked ? allowed.data() : nullptr);
            return verify(name, tree, target, DraftLaw(tree.draft_probs), Coins(key), lossy);
          },
          [&](const treespec_verify_options* options, treespec_verdict* verdict) {
            return treespec_verify_logits(c_tree, &c_rows, nullptr, &processing, options, verdict);
          });
    });
  }
  for (const VerifierInfo& info : verifiers()) CHECK(counts.runs[std::string(info.name)] > 5);
}

void without_options_a_tree_is_verified_by_auto() {
  Random random(5);
  for_every_tree(40, [&](const TokenTree& tree, const treespec_tree* c_tree, const RoundKey&) {
    const Rows rows(random_laws(random, tree.num_nodes(), tree), kVocab, DType::kFloat64);
    const treespec_rows c_rows = rows.c();
    ProbabilityRows target(rows.core(), tree.num_nodes());
    const std::string_view name = auto_verifier(tree.proposal, false);
    CVerdict verdict(tree.num_nodes());
    verdict.data.tokens = nullptr;
    CHECK_OK(treespec_verify(c_tree, &c_rows, nullptr, nullptr, &verdict.data));
    const Verdict expected =
        verify(name, tree, target, DraftLaw(tree.draft_probs), Coins(RoundKey{}));
    CHECK_EQUAL(verdict.data.next_token, expected.next_token);
    CHECK_EQUAL(verdict.data.num_accepted, expected.num_accepted());
    CHECK_EQUAL(verdict.tokens[0], -7);

    const SamplingParams params;
    LogitRows logits(rows.core(), tree, params, {}, nullptr);
    CHECK_OK(treespec_verify_logits(c_tree, &c_rows, nullptr, nullptr, nullptr, &verdict.data));
    CHECK_EQUAL(
        verdict.data.next_token,
        verify(name, tree, logits, DraftLaw(tree.draft_probs), Coins(RoundKey{})).next_token);
  });
}

void auto_is_greedy_at_temperature_0() {
  // A drawn tree without its law: above temperature 0 nothing that "auto" stands for can verify it.
  const int32_t token[2] = {kRoot, 3}, parent[2] = {-1, 0}, offset[3] = {0, 1, 1}, draw = 1;
  auto data = sized<treespec_tree_data>();
  data.num_nodes = 2;
  data.token = token;
  data.parent = parent;
  data.draw_offset = offset;
  data.draw = &draw;
  data.num_draws = 1;
  data.proposal = TREESPEC_IID;
  const auto tree = make<treespec_tree>(treespec_tree_create, &data);
  const float logits[8] = {0.0f, 1.0f, 2.0f, 3.0f, 5.0f, 1.0f, 2.0f, 3.0f};
  const treespec_rows rows{logits, TREESPEC_FLOAT32, 0, 2, 4, 4};
  auto sampling = initial<treespec_sampling>(treespec_sampling_init);
  auto processing = sized<treespec_logit_options>();
  processing.sampling = &sampling;
  CVerdict verdict(2);
  CHECK_FAILS(
      TREESPEC_INVALID_ARGUMENT, "draft_probs must be given",
      treespec_verify_logits(tree.get(), &rows, nullptr, &processing, nullptr, &verdict.data));
  sampling.temperature = 0.0;
  CHECK_OK(treespec_verify_logits(tree.get(), &rows, nullptr, &processing, nullptr, &verdict.data));
  CHECK(verdict.data.num_accepted == 1 && verdict.nodes[0] == 1 && verdict.data.next_token == 0);
}

void a_law_that_is_given_stands_in_for_the_trees_own() {
  Random random(6);
  int32_t differences = 0;
  for_every_tree(41, [&](const TokenTree& tree, const treespec_tree* c_tree, const RoundKey& key) {
    const Rows rows(random_laws(random, tree.num_nodes(), tree), kVocab, DType::kFloat64);
    const Rows law(random_laws(random, tree.num_nodes(), tree), kVocab, DType::kFloat32);
    const treespec_rows c_rows = rows.c(), c_law = law.c();
    ProbabilityRows target(rows.core(), tree.num_nodes());
    const std::string_view name = auto_verifier(tree.proposal, false);
    auto options = sized<treespec_verify_options>();
    options.key = {key.seed, key.sequence_id, key.position};
    CVerdict verdict(tree.num_nodes());
    CHECK_OK(treespec_verify(c_tree, &c_rows, &c_law, &options, &verdict.data));
    CHECK(verdict.equals(verify(name, tree, target, DraftLaw(law.core()), Coins(key))));
    const Verdict own = verify(name, tree, target, DraftLaw(tree.draft_probs), Coins(key));
    if (!verdict.equals(own)) ++differences;
  });
  CHECK(differences > 5);
}

void a_row_is_sampled_as_the_core_does() {
  Random random(7);
  for (uint32_t i = 0; i < 200; ++i) {
    std::vector<double> logits;
    for (int32_t t = 0; t < 3 * kVocab; ++t) logits.push_back(4.0 * unit(random));
    const Rows rows(logits, kVocab, i % 2 == 0 ? DType::kFloat32 : DType::kFloat64);
    const treespec_rows c_rows = rows.c();
    SamplingParams params;
    params.temperature = i % 5 == 0 ? 0.0 : 0.8;
    params.top_p = 0.9;
    params.frequency_penalty = 0.3;
    auto sampling = initial<treespec_sampling>(treespec_sampling_init);
    sampling.temperature = params.temperature;
    sampling.top_p = 0.9;
    sampling.frequency_penalty = 0.3;
    const std::vector<int32_t> prompt{1, 4, 4};
    const uint32_t allowed = 0x5f7;
    auto processing = sized<treespec_logit_options>();
    processing.sampling = &sampling;
    processing.prefix_ids = prompt.data();
    processing.num_prefix_ids = 3;
    processing.prompt_length = 1;
    processing.allowed = &allowed;
    processing.num_allowed_words = 1;
    TargetRow law;
    process_logits(rows.core(), 1, params, {prompt, 1}, {}, &allowed, {}, law);
    const treespec_key key{i, 2, 3};
    int32_t token = -1;
    CHECK_OK(treespec_sample(&c_rows, 1, &processing, &key, &token));
    CHECK_EQUAL(token, sample_at_position(law, i, 2, 3));
  }
}

void rows_of_a_cache_move_as_the_core_moves_them() {
  constexpr int64_t kHeads = 3, kRows = 9, kStride = 5, kBytes = 4;
  std::vector<char> cache(kHeads * kRows * kStride);
  for (size_t i = 0; i < cache.size(); ++i) cache[i] = static_cast<char>(i * 37);
  std::vector<char> expected = cache;
  const std::vector<int32_t> nodes{0, 2, 5};
  const KvBuffer core{expected.data(), kHeads, kRows * kStride, kStride, kBytes, kRows};
  const treespec_kv_buffer buffer{cache.data(), kHeads, kRows * kStride, kStride, kBytes, kRows};
  commit_kv(ArrayView<const KvBuffer>(&core, 1), 3, nodes);
  CHECK_OK(treespec_commit_kv(&buffer, 1, 3, nodes.data(), 3));
  CHECK(cache == expected);
  CHECK_OK(treespec_commit_kv(nullptr, 0, 0, nullptr, 0));
}

// --- Threads -------------------------------------------------------------------------------------

void a_builder_serves_many_threads_and_each_has_its_own_error() {
  const auto builder = c_builder(
      "kary", {{"proposal", std::string("iid")}, {"expansion", std::vector<int64_t>{3, 2}}});
  std::vector<int32_t> wrong(4, 0);
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      const RandomModel model(t, kVocab);
      const auto core = make_builder(
          "kary", {{"proposal", std::string("iid")}, {"expansion", std::vector<int64_t>{3, 2}}});
      CModel scores(model);
      const auto source = make<treespec_source>(treespec_expander_create, CModel::expand,
                                                static_cast<void*>(&scores));
      const std::string text = "thread " + std::to_string(t);
      for (uint32_t i = 0; i < 100; ++i) {
        treespec_set_error(text.c_str());
        const RoundKey key{t, 0, i};
        const auto options = c_build_options(9, key);
        const auto tree =
            make<treespec_tree>(treespec_tree_build, builder.get(), source.get(), &options);
        ModelExpander expander(model, kRoot);
        TokenTree expected = build_tree(*core, "kary", expander, 9, key);
        expected.token[0] = kRoot;
        if (!same_tree(tree.get(), expected)) ++wrong[t];
        treespec_set_error(text.c_str());
        std::this_thread::yield();
        if (text != treespec_last_error()) ++wrong[t];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int32_t count : wrong) CHECK_EQUAL(count, 0);
}

}  // namespace

int main() {
  names_are_those_of_the_tables();
  a_builder_says_what_it_reads_and_makes();
  every_builder_grows_the_tree_of_the_core();
  a_tree_ends_at_the_depth_that_is_asked_for();
  lists_are_ranked_and_linked_as_the_core_does();
  an_expander_may_give_lists_in_place_of_rows();
  masks_and_positions_are_those_of_the_core();
  every_verifier_decides_as_the_core_on_probabilities();
  every_verifier_decides_as_the_core_on_logits();
  without_options_a_tree_is_verified_by_auto();
  auto_is_greedy_at_temperature_0();
  a_law_that_is_given_stands_in_for_the_trees_own();
  a_row_is_sampled_as_the_core_does();
  rows_of_a_cache_move_as_the_core_moves_them();
  a_builder_serves_many_threads_and_each_has_its_own_error();
  return 0;
}
