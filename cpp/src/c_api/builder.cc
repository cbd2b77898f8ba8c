// SPDX-License-Identifier: Apache-2.0
#include "c_api/builder.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "c_api/structs.h"

namespace {

using namespace treespec;     // NOLINT
using namespace treespec::c;  // NOLINT

treespec_build_options default_build_options() {
  treespec_build_options options{};
  options.struct_size = sizeof(options);
  options.node_budget = DecoderOptions{}.node_budget;
  options.max_depth = INT32_MAX;
  return options;
}

void set_option(const char* who, treespec_options* options, const char* name, OptionValue value) {
  required(who, "options", options)
      .values.insert_or_assign(&required(who, "name", name), std::move(value));
}

const char* text_or_null(ArrayView<const BuilderInfo> table, int64_t i,
                         std::string_view BuilderInfo::* member) {
  return i >= 0 && i < table.size() ? (table[i].*member).data() : nullptr;  // literals
}

}  // namespace

namespace treespec::c {
namespace {

/// Tokens that are possible: distinct, in [0, 2^31 - 1).
void check_tokens(const char* who, const CandidateRow& row, int64_t place,
                  std::vector<int32_t>& seen) {
  seen.clear();
  for (int32_t k = 0; k < row.size; ++k) {
    if (std::isinf(row.logprob[k])) continue;
    TREESPEC_CHECK(row.token[k] >= 0 && row.token[k] < INT32_MAX, who,
                   ": token must be in [0, 2^31 - 1), got ", row.token[k], " in row ", place);
    seen.push_back(row.token[k]);
  }
  std::sort(seen.begin(), seen.end());
  const auto twin = std::adjacent_find(seen.begin(), seen.end());
  TREESPEC_CHECK(twin == seen.end(), who, ": tokens of a row must be distinct, got ", *twin,
                 " twice in row ", place);
}

void check_ranked(const char* who, const CandidateRow& row, int64_t place) {
  for (int32_t k = 1; k < row.size; ++k) {
    const float before = row.logprob[k - 1], after = row.logprob[k];
    const bool falls = before > after;
    const bool tie =
        before == after && (std::isinf(after) || row.token_of(k - 1) < row.token_of(k));
    TREESPEC_CHECK(falls || tie, who,
                   ": logprob of ranked rows must fall, equal ones by ascending token, got ",
                   before, " before ", after, " in row ", place);
  }
}

}  // namespace

treespec_build_options build_options_of(const char* who, const treespec_build_options* given) {
  const auto options = read_optional_struct(who, "options", given, default_build_options());
  check_reserved(who, "options", options.reserved);
  size32(who, "options.node_budget", options.node_budget, 0);
  size32(who, "options.max_depth", options.max_depth, 0);
  return options;
}

std::unique_ptr<TreeGrowth> begin_growth(const treespec_builder& builder,
                                         const treespec_build_options& options, int32_t max_depth) {
  return builder.builder->begin(options.node_budget, std::min(options.max_depth, max_depth),
                                key_of(options.key));
}

treespec_tree* finish_growth(TreeGrowth& growth, int32_t root_token) {
  auto tree = std::make_unique<TokenTree>(growth.finish());
  tree->token[0] = root_token;
  return owned(std::move(tree));
}

treespec_tree* grow(const treespec_builder& builder, CandidateSource& source,
                    const treespec_build_options& options) {
  check_source(*builder.builder, builder.name, source.kind());
  const auto growth = begin_growth(builder, options, source.max_depth());
  while (!growth->frontier().empty()) growth->supply(source.rows(growth->frontier()));
  return finish_growth(*growth, options.root_token);
}

std::vector<CandidateRow> candidate_rows(const char* who, const treespec_candidates& batch,
                                         int64_t num_rows) {
  TREESPEC_CHECK(batch.num_rows == num_rows, who, ": rows must be one per frontier node (",
                 num_rows, "), got ", batch.num_rows);
  const int32_t width = size32(who, "rows.width", batch.width, 0);
  check_row_stride(who, "rows", num_rows, width, batch.row_stride);
  TREESPEC_CHECK(batch.logprob != nullptr || width == 0, who, ": rows.logprob must not be NULL");
  TREESPEC_CHECK(batch.ranked == 0 || batch.ranked == 1, who, ": rows.ranked must be 0 or 1, got ",
                 batch.ranked);
  check_reserved(who, "rows", batch.reserved);
  std::vector<CandidateRow> rows;
  std::vector<int32_t> seen;
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t at = width > 0 ? i * batch.row_stride : 0;  // NULL has no offset
    const CandidateRow row{batch.token != nullptr ? batch.token + at : nullptr, batch.logprob + at,
                           nullptr, width, batch.ranked != 0};
    if (row.token != nullptr) check_tokens(who, row, i, seen);
    if (row.ranked) check_ranked(who, row, i);
    rows.push_back(row);
  }
  return rows;
}

std::vector<treespec_frontier_node> c_frontier(ArrayView<const FrontierNode> nodes,
                                               int32_t root_token) {
  std::vector<treespec_frontier_node> out;
  for (const FrontierNode& node : nodes) {
    out.push_back({node.index, node.parent, node.depth == 0 ? root_token : node.token, node.depth});
  }
  return out;
}

}  // namespace treespec::c

struct treespec_growth {
  std::unique_ptr<TreeGrowth> growth;
  int32_t root_token;
  std::vector<treespec_frontier_node> frontier;
  bool failed = false;  // in the middle of its rows

  void look_up_frontier() { frontier = c_frontier(growth->frontier(), root_token); }
};

int64_t treespec_num_builders(void) { return builders().size(); }
const char* treespec_builder_name(int64_t i) {
  return text_or_null(builders(), i, &BuilderInfo::name);
}
const char* treespec_builder_summary(int64_t i) {
  return text_or_null(builders(), i, &BuilderInfo::summary);
}

treespec_status treespec_options_create(treespec_options** options) {
  return guarded(__func__, [&](const char* who) {
    treespec_options*& out = new_handle(who, "options", options);
    out = new treespec_options;
  });
}

void treespec_options_free(treespec_options* options) { delete options; }

treespec_status treespec_options_set_integer(treespec_options* options, const char* name,
                                             int64_t value) {
  return guarded(__func__, [&](const char* who) { set_option(who, options, name, value); });
}

treespec_status treespec_options_set_number(treespec_options* options, const char* name,
                                            double value) {
  return guarded(__func__, [&](const char* who) { set_option(who, options, name, value); });
}

treespec_status treespec_options_set_text(treespec_options* options, const char* name,
                                          const char* value) {
  return guarded(__func__, [&](const char* who) {
    set_option(who, options, name, std::string(&required(who, "value", value)));
  });
}

treespec_status treespec_options_set_integers(treespec_options* options, const char* name,
                                              const int64_t* values, int64_t size) {
  return guarded(__func__, [&](const char* who) {
    const auto given = view(who, "values", values, size);
    set_option(who, options, name, std::vector<int64_t>(given.begin(), given.end()));
  });
}

treespec_status treespec_options_set_table(treespec_options* options, const char* name,
                                           const double* values, const int64_t* row_sizes,
                                           int64_t num_rows) {
  return guarded(__func__, [&](const char* who) {
    OptionTable table;
    for (const int64_t size : view(who, "row_sizes", row_sizes, num_rows)) {
      const auto row = view(who, "values", values, size);
      table.emplace_back(row.begin(), row.end());
      if (size > 0) values += size;
    }
    set_option(who, options, name, std::move(table));
  });
}

treespec_status treespec_builder_create(const char* name, const treespec_options* options,
                                        treespec_builder** builder) {
  return guarded(__func__, [&](const char* who) {
    treespec_builder*& out = new_handle(who, "builder", builder);
    const std::string known = &required(who, "name", name);
    out = new treespec_builder{
        known, make_builder(known, options != nullptr ? options->values : BuilderOptions{})};
  });
}

void treespec_builder_free(treespec_builder* builder) { delete builder; }

treespec_status treespec_builder_get_info(const treespec_builder* builder,
                                          treespec_builder_info* info) {
  return guarded(__func__, [&](const char* who) {
    const TreeBuilder& recipe = *required(who, "builder", builder).builder;
    treespec_builder_info known{};
    known.proposal = static_cast<treespec_proposal>(recipe.proposal());
    known.makes_chains = recipe.makes_chains();
    for (const auto kind : {SourceKind::kMarginals, SourceKind::kTransitions, SourceKind::kExpander,
                            SourceKind::kTrie}) {
      if (recipe.accepts(kind)) known.source_kinds |= 1u << static_cast<uint32_t>(kind);
    }
    write_struct(who, "info", info, known);
  });
}

treespec_status treespec_build_options_init(treespec_build_options* options, size_t struct_size) {
  return init_struct(__func__, "options", options, struct_size, default_build_options());
}

treespec_status treespec_tree_build(const treespec_builder* builder, treespec_source* source,
                                    const treespec_build_options* options, treespec_tree** tree) {
  return guarded(__func__, [&](const char* who) {
    treespec_tree*& out = new_handle(who, "tree", tree);
    const treespec_builder& recipe = required(who, "builder", builder);
    const treespec_source& candidates = required(who, "source", source);
    const treespec_build_options known = build_options_of(who, options);
    if (candidates.root_token != nullptr) *candidates.root_token = known.root_token;
    out = grow(recipe, *candidates.source, known);
  });
}

treespec_status treespec_growth_create(const treespec_builder* builder,
                                       const treespec_build_options* options,
                                       treespec_growth** growth) {
  return guarded(__func__, [&](const char* who) {
    treespec_growth*& out = new_handle(who, "growth", growth);
    const treespec_builder& recipe = required(who, "builder", builder);
    check_source(*recipe.builder, recipe.name, SourceKind::kExpander);
    const treespec_build_options known = build_options_of(who, options);
    auto made = std::make_unique<treespec_growth>();
    made->growth = begin_growth(recipe, known, INT32_MAX);
    made->root_token = known.root_token;
    made->look_up_frontier();
    out = made.release();
  });
}

void treespec_growth_free(treespec_growth* growth) { delete growth; }

treespec_status treespec_growth_get_frontier(const treespec_growth* growth,
                                             const treespec_frontier_node** nodes,
                                             int64_t* num_nodes) {
  return guarded(__func__, [&](const char* who) {
    const auto& frontier = required(who, "growth", growth).frontier;
    required(who, "nodes", nodes);
    required(who, "num_nodes", num_nodes) = static_cast<int64_t>(frontier.size());
    *nodes = frontier.data();
  });
}

treespec_status treespec_growth_supply(treespec_growth* growth, const treespec_candidates* rows) {
  return guarded(__func__, [&](const char* who) {
    treespec_growth& growing = required(who, "growth", growth);
    TREESPEC_CHECK(!growing.failed, who, ": growth must not have failed before, free it");
    TREESPEC_CHECK(!growing.frontier.empty(), who, ": the tree is grown, it takes no more rows");
    const auto known = candidate_rows(who, required(who, "rows", rows),
                                      static_cast<int64_t>(growing.frontier.size()));
    growing.failed = true;  // until the builder has taken them all
    growing.growth->supply(known);
    growing.look_up_frontier();
    growing.failed = false;
  });
}

treespec_status treespec_growth_finish(treespec_growth* growth, treespec_tree** tree) {
  return guarded(__func__, [&](const char* who) {
    treespec_tree*& out = new_handle(who, "tree", tree);
    treespec_growth& growing = required(who, "growth", growth);
    TREESPEC_CHECK(!growing.failed, who, ": growth must not have failed before, free it");
    out = finish_growth(*growing.growth, growing.root_token);
  });
}
