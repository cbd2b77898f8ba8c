// SPDX-License-Identifier: Apache-2.0
#include "merged_graph.h"

namespace treespec::exported {
namespace {

// Rows from which on a request is a prompt's: merged with the few rows of a tree it would make a
// forward of as many rows for every sequence.
constexpr int64_t kPromptRows = 65;

}  // namespace

class MergedCausalGraph::Sequence final : public CausalSequence {
 public:
  Sequence(MergedCausalGraph& graph, LockStep& step, int64_t place)
      : merged_(graph), step_(step), place_(place) {}

  const ExportManifest& manifest() const override { return merged_.graph_.manifest(); }
  int64_t max_rows(int64_t wanted) const override { return merged_.graph_.max_rows(wanted); }
  void restart(int64_t rows) override {
    const LockStep::Lock held = step_.lock();
    merged_.graph_.restart(place_, rows);
  }
  SegmentOutput run(const Segment& segment) override {
    LockStep::Lock held = step_.lock();
    PendingSegment request;
    request.segment = segment;
    request.segment.sequence = request.place = place_;
    merged_.graph_.check(request.segment);  // here: nobody else's forward must fail by it
    merged_.push(request);
    step_.wait(held, request);
    return request.output;
  }
  void commit(int64_t base, ArrayView<const int32_t> nodes) override {
    const LockStep::Lock held = step_.lock();
    merged_.graph_.commit(place_, base, nodes);
  }

 private:
  MergedCausalGraph& merged_;
  LockStep& step_;
  int64_t place_;
};

std::unique_ptr<CausalSequence> MergedCausalGraph::sequence(LockStep& step, int64_t place) {
  return std::make_unique<Sequence>(*this, step, place);
}

void MergedCausalGraph::release(LockStep& step, int64_t place) {
  const LockStep::Lock held = step.lock();
  graph_.release(place);
}

bool MergedCausalGraph::mergeable(const PendingSegment& a, const PendingSegment& b) const {
  const bool prompt = a.segment.size() >= kPromptRows;
  return prompt == (b.segment.size() >= kPromptRows) &&
         (prompt || a.segment.all_logits == b.segment.all_logits);
}

void MergedCausalGraph::run_together(const std::vector<PendingSegment*>& requests) {
  segments_.clear();
  for (const PendingSegment* one : requests) segments_.push_back(one->segment);
  graph_.run(segments_, outputs_);
  for (size_t i = 0; i < requests.size(); ++i) requests[i]->output = outputs_[i];
}

class MergedBlockGraph::Sequence final : public BlockSequence {
 public:
  Sequence(MergedBlockGraph& graph, LockStep& step, int64_t place)
      : merged_(graph), step_(step), place_(place) {}

  const ExportManifest& manifest() const override { return merged_.graph_.manifest(); }
  int64_t max_rows(int64_t wanted) const override { return merged_.graph_.max_rows(wanted); }
  void restart(int64_t rows) override {
    const LockStep::Lock held = step_.lock();
    merged_.graph_.restart(place_, rows);
  }
  BlockOutput run(const BlockRequest& block, double temperature) override {
    LockStep::Lock held = step_.lock();
    PendingBlock request;
    request.block = block;
    request.block.sequence = request.place = place_;
    request.temperature = temperature;
    merged_.graph_.check(request.block);
    merged_.push(request);
    step_.wait(held, request);
    return request.output;
  }

 private:
  MergedBlockGraph& merged_;
  LockStep& step_;
  int64_t place_;
};

std::unique_ptr<BlockSequence> MergedBlockGraph::sequence(LockStep& step, int64_t place) {
  return std::make_unique<Sequence>(*this, step, place);
}

void MergedBlockGraph::release(LockStep& step, int64_t place) {
  const LockStep::Lock held = step.lock();
  graph_.release(place);
}

bool MergedBlockGraph::mergeable(const PendingBlock& a, const PendingBlock& b) const {
  return a.temperature == b.temperature &&
         (a.block.num_features >= kPromptRows) == (b.block.num_features >= kPromptRows);
}

void MergedBlockGraph::run_together(const std::vector<PendingBlock*>& requests) {
  blocks_.clear();
  for (const PendingBlock* one : requests) blocks_.push_back(one->block);
  graph_.run(blocks_, requests[0]->temperature, outputs_);
  for (size_t i = 0; i < requests.size(); ++i) requests[i]->output = outputs_[i];
}

}  // namespace treespec::exported
