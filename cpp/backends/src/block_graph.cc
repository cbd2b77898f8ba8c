// SPDX-License-Identifier: Apache-2.0
#include "block_graph.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "element_type.h"
#include "treespec/error.h"

namespace treespec::exported {

/// The shape of a run: sequences first ... first + count - 1, num_features context rows each.
struct BlockGraph::Frame {
  int64_t first, count, num_features;
};

int64_t num_lists(const BlockShape& block) {
  const int64_t depth = block.depth;
  return block.num_previous == 0 ? depth : 1 + (depth - 1) * block.num_previous;
}

BlockGraph::BlockGraph(std::shared_ptr<const ExportedModel> model, int64_t batch)
    : model_(std::move(model)),
      block_(*manifest().block),
      runner_(model_->make_runner()),
      cache_(*runner_, manifest(), batch),
      in_place_(manifest().cache_style == CacheStyle::kInPlace),
      used_(static_cast<size_t>(batch), 0) {
  check_batch(*runner_, manifest(), batch);
}

int64_t BlockGraph::max_rows(int64_t wanted) const {
  const int64_t limit = runner_->limits().max_rows;
  return limit > 0 ? std::min(limit, wanted) : wanted;
}

void BlockGraph::restart(int64_t sequence, int64_t rows) {
  used_[static_cast<size_t>(sequence)] = 0;
  cache_.restart(sequence, rows);
}

void BlockGraph::release(int64_t sequence) {
  used_[static_cast<size_t>(sequence)] = 0;
  cache_.release(sequence);
}

void BlockGraph::check(const BlockRequest& request) const {
  const ExportManifest& m = manifest();
  cache_.check_present(request.sequence);
  const int64_t root = request.length + request.num_features;
  TREESPEC_CHECK(root < m.max_context, "ExportedModel: positions must be below the max_context ",
                 m.max_context, " of '", m.folder, "', got ", root);
}

int64_t BlockGraph::length(const Frame& frame, int64_t b) const {
  const BlockRequest* request = by_sequence_[static_cast<size_t>(b)];
  return request != nullptr ? request->length : used_[static_cast<size_t>(frame.first + b)];
}

BlockGraph::Frame BlockGraph::frame(ArrayView<const BlockRequest> requests) {
  const auto by_place = [](const BlockRequest& a, const BlockRequest& b) {
    return a.sequence < b.sequence;
  };
  const auto [first, last] = std::minmax_element(requests.begin(), requests.end(), by_place);
  Frame frame{first->sequence, last->sequence - first->sequence + 1, 0};
  by_sequence_.assign(static_cast<size_t>(frame.count), nullptr);
  for (const BlockRequest& request : requests) {
    by_sequence_[static_cast<size_t>(request.sequence - frame.first)] = &request;
    frame.num_features = std::max(frame.num_features, request.num_features);
  }
  frame.num_features = runner_->padded_rows(frame.num_features);
  return frame;
}

void BlockGraph::run(ArrayView<const BlockRequest> requests, double temperature,
                     std::vector<BlockOutput>& outputs) {
  const Frame frame = this->frame(requests);
  int64_t longest = 0;
  for (int64_t b = 0; b < frame.count; ++b) longest = std::max(longest, length(frame, b));
  cache_.reserve(longest + frame.num_features + block_.slots);
  cache_.bind(frame.first, frame.count, frame.num_features + block_.slots);
  fill_rows(frame, temperature);
  fill_masks(frame);

  const int64_t lists = num_lists(block_), width = block_.width;
  const int64_t owners = (block_.depth - 1) * int64_t{block_.num_previous};
  runner_->want("token", ElementType::kInt64, {frame.count, lists, width});
  runner_->want("logprob", ElementType::kFloat32, {frame.count, lists, width});
  if (block_.num_previous > 0) {
    runner_->want("owner", ElementType::kInt64,
                  {frame.count, block_.depth - 1, block_.num_previous});
  }
  runner_->run();

  outputs.clear();
  for (const BlockRequest& request : requests) {
    const int64_t b = request.sequence - frame.first;
    cache_.store(request.sequence, 0, request.length, request.num_features);
    used_[static_cast<size_t>(request.sequence)] = request.length + request.num_features;
    BlockOutput output;
    output.token = static_cast<const int64_t*>(runner_->output("token")) + b * lists * width;
    output.logprob = static_cast<const float*>(runner_->output("logprob")) + b * lists * width;
    if (block_.num_previous > 0) {
      output.owner = static_cast<const int64_t*>(runner_->output("owner")) + b * owners;
    }
    outputs.push_back(output);
  }
}

void BlockGraph::fill_rows(const Frame& frame, double temperature) {
  const ExportManifest& m = manifest();
  const int64_t count = frame.count, num_features = frame.num_features, slots = block_.slots;
  auto* features = static_cast<char*>(
      runner_->input("features", element_type(m.dtype), {count, num_features, m.layers_width}));
  auto* positions = input_of<int64_t>(*runner_, "feature_positions", {count, num_features});
  auto* root = input_of<int64_t>(*runner_, "root", {count});
  auto* block_positions = input_of<int64_t>(*runner_, "block_positions", {count, slots});
  auto* write = in_place_ ? input_of<int64_t>(*runner_, "write_index", {count}) : nullptr;
  *input_of<float>(*runner_, "temperature", {1}) = static_cast<float>(temperature);

  const int64_t row_bytes = m.layers_width * size_of(m.dtype);
  std::memset(features, 0, static_cast<size_t>(count * num_features * row_bytes));
  for (int64_t b = 0; b < count; ++b) {
    const BlockRequest* request = by_sequence_[static_cast<size_t>(b)];
    const int64_t start = length(frame, b);
    const int64_t own = request != nullptr ? request->num_features : 0;
    if (own > 0) {
      std::memcpy(features + b * num_features * row_bytes, request->features,
                  static_cast<size_t>(own * row_bytes));
    }
    for (int64_t i = 0; i < num_features; ++i) positions[b * num_features + i] = start + i;
    for (int64_t i = 0; i < slots; ++i) block_positions[b * slots + i] = start + own + i;
    root[b] = request != nullptr ? request->root : 0;
    if (in_place_) write[b] = start;
  }
}

void BlockGraph::fill_masks(const Frame& frame) {
  const int64_t slots = block_.slots, num_features = frame.num_features;
  const int64_t keys = cache_.capacity() + (in_place_ ? 0 : num_features + slots);
  for (const MaskInput& mask : manifest().masks) {
    const bool causal = block_.causal || (mask.window > 0 && block_.windows_causal);
    const int64_t window = mask.window > 0 ? mask.window : INT64_MAX;
    auto* row = input_of<bool>(*runner_, mask.name.c_str(), {frame.count, 1, slots, keys});
    std::fill_n(row, frame.count * slots * keys, false);
    for (int64_t b = 0; b < frame.count; ++b) {
      const BlockRequest* request = by_sequence_[static_cast<size_t>(b)];
      const int64_t start = length(frame, b);
      const int64_t own = request != nullptr ? request->num_features : 0;
      const int64_t fresh = in_place_ ? start : cache_.capacity();  // key of the first new row
      for (int64_t i = 0; i < slots; ++i, row += keys) {
        // Positions start ... start + own - 1 are new context, those behind are the block.
        const int64_t position = start + own + i;
        const int64_t hidden = std::max<int64_t>(0, position - window + 1);
        std::fill(row + std::min(hidden, start), row + start, true);
        const int64_t seen = std::clamp<int64_t>(hidden - start, 0, own);
        std::fill(row + fresh + seen, row + fresh + own, true);
        bool* block = row + fresh + num_features;
        const int64_t first = std::clamp<int64_t>(hidden - start - own, 0, i);
        std::fill(block + first, block + (causal ? i + 1 : slots), true);
      }
    }
  }
}

namespace {

class SingleSequence final : public BlockSequence {
 public:
  explicit SingleSequence(std::shared_ptr<const ExportedModel> model)
      : graph_(std::move(model), 1) {}
  const ExportManifest& manifest() const override { return graph_.manifest(); }
  int64_t max_rows(int64_t wanted) const override { return graph_.max_rows(wanted); }
  void restart(int64_t rows) override { graph_.restart(0, rows); }
  BlockOutput run(const BlockRequest& request, double temperature) override {
    graph_.check(request);
    graph_.run({&request, 1}, temperature, outputs_);
    return outputs_[0];
  }

 private:
  BlockGraph graph_;
  std::vector<BlockOutput> outputs_;
};

}  // namespace

std::unique_ptr<BlockSequence> make_block_sequence(std::shared_ptr<const ExportedModel> model) {
  return std::make_unique<SingleSequence>(std::move(model));
}

}  // namespace treespec::exported
