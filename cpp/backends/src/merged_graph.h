// SPDX-License-Identifier: Apache-2.0
// Graphs whose sequences run in lock-step, one forward for all that ask.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include "block_graph.h"
#include "causal_graph.h"
#include "lock_step.h"

namespace treespec::exported {

/// A queue that runs the request that has waited longest, and all that can share its forward. One
/// forward, not more: the next one overwrites what this one says. Which thread came first does not
/// matter, so that a batch repeats itself.
template <class Request>
class MergingQueue : public RequestQueue {
 public:
  explicit MergingQueue(int64_t size) {
    pending_.reserve(static_cast<size_t>(size));
    together_.reserve(static_cast<size_t>(size));
  }
  void push(Request& request) { pending_.push_back(&request); }
  bool empty() const final { return pending_.empty(); }

  int64_t run() noexcept final {
    together_.clear();
    const auto earlier = [](const Request* a, const Request* b) {
      return a->since != b->since ? a->since < b->since : a->place < b->place;
    };
    const Request& first = **std::min_element(pending_.begin(), pending_.end(), earlier);
    for (Request* one : pending_) {
      if (mergeable(first, *one)) together_.push_back(one);
    }
    std::exception_ptr error;
    try {
      run_together(together_);
    } catch (...) {
      error = std::current_exception();
    }
    for (Request* one : together_) {
      one->error = error;
      one->done = true;
    }
    const auto is_done = [](const Request* one) { return one->done; };
    pending_.erase(std::remove_if(pending_.begin(), pending_.end(), is_done), pending_.end());
    return static_cast<int64_t>(together_.size());
  }

 private:
  virtual bool mergeable(const Request& a, const Request& b) const = 0;
  virtual void run_together(const std::vector<Request*>& requests) = 0;

  std::vector<Request*> pending_, together_;
};

struct PendingSegment : Pending {
  Segment segment;
  SegmentOutput output;
};

/// A causal graph for sequences of one LockStep.
class MergedCausalGraph final : public MergingQueue<PendingSegment> {
 public:
  MergedCausalGraph(std::shared_ptr<const ExportedModel> model, int64_t size, bool features)
      : MergingQueue(size), graph_(std::move(model), size, features) {}

  std::unique_ptr<CausalSequence> sequence(LockStep& step, int64_t place);
  void release(LockStep& step, int64_t place);

 private:
  class Sequence;
  bool mergeable(const PendingSegment& a, const PendingSegment& b) const override;
  void run_together(const std::vector<PendingSegment*>& requests) override;

  CausalGraph graph_;
  std::vector<Segment> segments_;
  std::vector<SegmentOutput> outputs_;
};

struct PendingBlock : Pending {
  BlockRequest block;
  double temperature = 1.0;
  BlockOutput output;
};

/// A DFlash graph for sequences of one LockStep.
class MergedBlockGraph final : public MergingQueue<PendingBlock> {
 public:
  MergedBlockGraph(std::shared_ptr<const ExportedModel> model, int64_t size)
      : MergingQueue(size), graph_(std::move(model), size) {}

  std::unique_ptr<BlockSequence> sequence(LockStep& step, int64_t place);
  void release(LockStep& step, int64_t place);

 private:
  class Sequence;
  bool mergeable(const PendingBlock& a, const PendingBlock& b) const override;
  void run_together(const std::vector<PendingBlock*>& requests) override;

  BlockGraph graph_;
  std::vector<BlockRequest> blocks_;
  std::vector<BlockOutput> outputs_;
};

}  // namespace treespec::exported
