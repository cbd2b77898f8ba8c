// SPDX-License-Identifier: Apache-2.0
// NgramDraft and SuffixDraft: the indexes as drafters of a decoder.
#include "treespec/drafts.h"

namespace treespec {
namespace {

template <class Index>
Trie draft_trie(const Index& index, const DraftRequest& request) {
  const ScoredTrie nodes = index.draft(request.max_depth, request.node_budget);
  return {nodes.parent, nodes.token, nodes.logprob};
}

}  // namespace

void NgramDraft::begin(ArrayView<const int32_t> prompt, const RowsView&) {
  index_.clear();
  index_.append(prompt);
}
CandidateSource& NgramDraft::draft(const DraftRequest& request) {
  return trie_.emplace(draft_trie(index_, request));
}
void NgramDraft::observe(ArrayView<const int32_t> token_ids, const RowsView&) {
  index_.append(token_ids);
}

void SuffixDraft::begin(ArrayView<const int32_t> prompt, const RowsView&) {
  index_.clear();
  index_.append(prompt);
}
CandidateSource& SuffixDraft::draft(const DraftRequest& request) {
  return trie_.emplace(draft_trie(index_, request));
}
void SuffixDraft::observe(ArrayView<const int32_t> token_ids, const RowsView&) {
  index_.append(token_ids);
}

}  // namespace treespec
