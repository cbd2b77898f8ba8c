// SPDX-License-Identifier: Apache-2.0
// Sources from C own their arrays: a caller with a garbage collector cannot easily lend them.
#include "treespec/source.h"

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <utility>
#include <vector>

#include "c_api/border.h"
#include "c_api/builder.h"
#include "c_api/handles.h"
#include "treespec/error.h"

namespace treespec::c {
namespace {

struct Arrays {
  std::vector<int32_t> token;
  std::vector<float> logprob;
  std::vector<int32_t> next;
};

/// A table together with the arrays that it borrows.
template <class Table>
class OwningTable final : public CandidateSource {
 public:
  template <class Make>
  OwningTable(Arrays arrays, Make&& make)
      : arrays_(std::move(arrays)), table_(make(std::as_const(arrays_))) {}
  SourceKind kind() const override { return table_.kind(); }
  int32_t max_depth() const override { return table_.max_depth(); }
  ArrayView<const CandidateRow> rows(ArrayView<const FrontierNode> nodes) override {
    return table_.rows(nodes);
  }

 private:
  const Arrays arrays_;
  Table table_;
};

/// Asks a callback; what it gave is borrowed until the next call.
class CallbackExpander final : public Expander {
 public:
  CallbackExpander(treespec_expand expand, void* user) : expand_(expand), user_(user) {}

  ArrayView<const CandidateRow> rows(ArrayView<const FrontierNode> nodes) override {
    frontier_ = c_frontier(nodes, root_token);
    treespec_candidates batch{};
    batch.num_rows = nodes.size();
    call_back("expand", false, expand_, user_, frontier_.data(), nodes.size(), &batch);
    rows_ = candidate_rows("expand", batch, nodes.size());
    return rows_;
  }

  int32_t root_token = 0;

 private:
  treespec_expand expand_;
  void* user_;
  std::vector<treespec_frontier_node> frontier_;
  std::vector<CandidateRow> rows_;
};

/// A product of sizes, each checked.
int64_t elements(const char* who, std::initializer_list<std::pair<const char*, int64_t>> sizes) {
  int64_t product = 1;
  for (const auto& [name, size] : sizes) {
    product *= size32(who, name, size, 0);
    TREESPEC_CHECK(product <= INT32_MAX, who, ": arrays must have fewer than 2^31 elements, got ",
                   name, " ", size);
  }
  return product;
}

treespec_source* table(std::unique_ptr<CandidateSource> source) {
  return new treespec_source{std::move(source), nullptr};
}

treespec_source* transitions(Arrays arrays, int64_t depth, int64_t num_lists, int64_t width) {
  return table(std::make_unique<OwningTable<Transitions>>(std::move(arrays), [&](const Arrays& a) {
    return Transitions(a.token.data(), a.logprob.data(), a.next.data(), static_cast<int32_t>(depth),
                       static_cast<int32_t>(num_lists), static_cast<int32_t>(width));
  }));
}

}  // namespace
}  // namespace treespec::c

using namespace treespec;     // NOLINT
using namespace treespec::c;  // NOLINT

treespec_status treespec_marginals_create(const int32_t* token, const float* logprob, int64_t depth,
                                          int64_t width, treespec_source** source) {
  return guarded(__func__, [&](const char* who) {
    treespec_source*& out = new_handle(who, "source", source);
    const int64_t size = elements(who, {{"depth", depth}, {"width", width}});
    Arrays arrays{copied(who, "token", token, size), copied(who, "logprob", logprob, size), {}};
    out = table(std::make_unique<OwningTable<Marginals>>(std::move(arrays), [&](const Arrays& a) {
      return Marginals(a.token.data(), a.logprob.data(), static_cast<int32_t>(depth),
                       static_cast<int32_t>(width));
    }));
  });
}

treespec_status treespec_marginals_create_from_logits(const treespec_rows* logits, int64_t width,
                                                      double temperature,
                                                      treespec_source** source) {
  return guarded(__func__, [&](const char* who) {
    treespec_source*& out = new_handle(who, "source", source);
    const RowsView rows = rows_of(who, "logits", logits);
    out = table(std::make_unique<Marginals>(
        Marginals::from_logits(rows, size32(who, "width", width, 1), temperature)));
  });
}

treespec_status treespec_transitions_create(const int32_t* token, const float* logprob,
                                            const int32_t* next, int64_t depth, int64_t num_lists,
                                            int64_t width, treespec_source** source) {
  return guarded(__func__, [&](const char* who) {
    treespec_source*& out = new_handle(who, "source", source);
    const int64_t size =
        elements(who, {{"depth", depth}, {"num_lists", num_lists}, {"width", width}});
    out = transitions({copied(who, "token", token, size), copied(who, "logprob", logprob, size),
                       copied(who, "next", next, size)},
                      depth, num_lists, width);
  });
}

treespec_status treespec_transitions_create_linked(const int32_t* token, const float* logprob,
                                                   const int32_t* owner, int64_t depth,
                                                   int64_t num_lists, int64_t width,
                                                   treespec_source** source) {
  return guarded(__func__, [&](const char* who) {
    treespec_source*& out = new_handle(who, "source", source);
    TREESPEC_CHECK(depth >= 1 && num_lists >= 1 && width >= 1, who,
                   ": depth, num_lists and width must be >= 1, got ", depth, ", ", num_lists,
                   " and ", width);
    const auto size = static_cast<size_t>(
        elements(who, {{"depth", depth}, {"num_lists", num_lists}, {"width", width}}));
    const int64_t given = (1 + (depth - 1) * num_lists) * width;
    view(who, "token", token, given);
    view(who, "logprob", logprob, given);
    view(who, "owner", owner, (depth - 1) * num_lists);
    Arrays linked{std::vector<int32_t>(size), std::vector<float>(size), std::vector<int32_t>(size)};
    link_transitions(token, logprob, owner, static_cast<int32_t>(depth),
                     static_cast<int32_t>(num_lists), static_cast<int32_t>(width),
                     linked.token.data(), linked.logprob.data(), linked.next.data());
    out = transitions(std::move(linked), depth, num_lists, width);
  });
}

treespec_status treespec_trie_create(const int32_t* parent, const int32_t* token,
                                     const float* logprob, int64_t size, treespec_source** source) {
  return guarded(__func__, [&](const char* who) {
    treespec_source*& out = new_handle(who, "source", source);
    const auto parents = view(who, "parent", parent, size);
    const auto tokens = view(who, "token", token, size);
    const auto scores = view(who, "logprob", logprob, size);
    out = table(std::make_unique<Trie>(parents, tokens, scores));
  });
}

treespec_status treespec_expander_create(treespec_expand expand, void* user,
                                         treespec_source** source) {
  return guarded(__func__, [&](const char* who) {
    treespec_source*& out = new_handle(who, "source", source);
    require_callback(who, "expand", expand);
    auto expander = std::make_unique<CallbackExpander>(expand, user);
    int32_t* const root_token = &expander->root_token;
    out = new treespec_source{std::move(expander), root_token};
  });
}

void treespec_source_free(treespec_source* source) { delete source; }
