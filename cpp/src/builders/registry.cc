// SPDX-License-Identifier: Apache-2.0
// The table of tree builders. A new one is its file, its maker in registry.h and a row here.
#include "builders/registry.h"

#include <string>

#include "treespec/error.h"

namespace treespec {
namespace {

constexpr BuilderInfo kBuilders[] = {
    {"chain", "one path of the most likely (or drawn) tokens", make_chain},
    {"kary", "fixed expansion vector, as in SpecInfer; top-k, i.i.d. or without replacement",
     make_kary},
    {"sequoia", "the fixed shape of largest measured acceptance by sibling rank (Sequoia)",
     make_sequoia},
    {"medusa_choices", "a fixed list of rank paths, or the best one for the heads' accuracies",
     make_medusa_choices},
    {"top_plus_one",
     "fixed expansion vector; the likeliest tokens and, last, one drawn from the rest",
     make_top_plus_one},
    {"opt_tree", "the tree of largest expected acceptance, layer by layer (OPT-Tree)",
     make_opt_tree},
    {"eagle2", "beam of the best nodes per layer, then the best of all (EAGLE-2)", make_eagle2},
    {"dtree", "the likeliest prefixes of one-pass drafters, best first (DDTree)", make_dtree},
    {"dyspec", "draws where the verifier will most likely look (DySpec)", make_dyspec},
    {"dyspec_threshold", "every draw of at least a given value, layer by layer (DySpec)",
     make_dyspec_threshold},
    {"rollouts", "K independent drawn paths", make_rollouts},
    {"delayed", "a drawn trunk, then K drawn branches (delayed tree expansion)", make_delayed},
    {"trie", "the best nodes of a scored trie (n-gram and suffix drafters)", make_trie},
};

std::string readers_of(SourceKind kind) {
  std::string names;
  for (const BuilderInfo& info : builders()) {
    if (!info.make({})->accepts(kind)) continue;
    names.append(names.empty() ? "" : ", ").append(info.name);
  }
  return names;
}

}  // namespace

ArrayView<const BuilderInfo> builders() {
  return {kBuilders, static_cast<int64_t>(std::size(kBuilders))};
}

std::unique_ptr<TreeBuilder> make_builder(std::string_view name, const BuilderOptions& options) {
  std::string known;
  for (const BuilderInfo& info : builders()) {
    if (info.name == name) return info.make(options);
    known.append(known.empty() ? "" : ", ").append(info.name);
  }
  throw InvalidArgument(
      detail::message("make_builder: name must be one of ", known, "; got \"", name, "\""));
}

void check_source(const TreeBuilder& builder, std::string_view name, SourceKind kind) {
  TREESPEC_CHECK(builder.accepts(kind), name, ": source must be one it can read, got ",
                 source_name(kind), "; builders that read it: ", readers_of(kind));
}

TokenTree build_tree(const TreeBuilder& builder, std::string_view name, CandidateSource& source,
                     int32_t node_budget, const RoundKey& key) {
  check_source(builder, name, source.kind());
  TREESPEC_CHECK(node_budget >= 0, name, ": node_budget must be >= 0, got ", node_budget);
  const std::unique_ptr<TreeGrowth> growth = builder.begin(node_budget, source.max_depth(), key);
  while (!growth->frontier().empty()) growth->supply(source.rows(growth->frontier()));
  return growth->finish();
}

}  // namespace treespec
