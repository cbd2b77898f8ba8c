// SPDX-License-Identifier: Apache-2.0
#include "causal_graph.h"

#include <algorithm>
#include <utility>

#include "element_type.h"
#include "treespec/error.h"

namespace treespec::exported {

/// The shape of a forward: sequences first ... first + count - 1, num_rows rows each.
struct CausalGraph::Frame {
  int64_t first, count, num_rows;
};

CausalGraph::CausalGraph(std::shared_ptr<const ExportedModel> model, int64_t batch, bool features)
    : model_(std::move(model)),
      runner_(model_->make_runner()),
      cache_(*runner_, manifest(), batch),
      in_place_(manifest().cache_style == CacheStyle::kInPlace),
      features_(features && !manifest().layers.empty()),
      used_(static_cast<size_t>(batch), 0) {
  check_batch(*runner_, manifest(), batch);
}

int64_t CausalGraph::max_rows(int64_t wanted) const {
  const int64_t limit = runner_->limits().max_rows;
  return limit > 0 ? std::min(limit, wanted) : wanted;
}

void CausalGraph::restart(int64_t sequence, int64_t rows) {
  used_[static_cast<size_t>(sequence)] = 0;
  cache_.restart(sequence, rows);
}

void CausalGraph::release(int64_t sequence) {
  used_[static_cast<size_t>(sequence)] = 0;
  cache_.release(sequence);
}

void CausalGraph::check(const Segment& segment) const {
  const ExportManifest& m = manifest();
  cache_.check_present(segment.sequence);
  const int64_t limit = max_rows(segment.size());
  TREESPEC_CHECK(segment.size() <= limit, "ExportedModel: rows of a forward must be at most the ",
                 limit, " that '", m.folder, "' was built for, got ", segment.size());
  TREESPEC_CHECK(!segment.all_logits || segment.size() <= m.max_nodes,
                 "ExportedModel: trees must have at most the ", m.max_nodes,
                 " nodes with their root that '", m.folder, "' was exported for, got ",
                 segment.size(), "; lower node_budget, or raise max_nodes");
  const int64_t depth = segment.depth.empty()
                            ? segment.size() - 1
                            : *std::max_element(segment.depth.begin(), segment.depth.end());
  TREESPEC_CHECK(segment.prefix + depth < m.max_context,
                 "ExportedModel: positions must be below the max_context ", m.max_context, " of '",
                 m.folder, "', got ", segment.prefix + depth);
}

int64_t CausalGraph::write_index(int64_t sequence, const Segment* segment) const {
  return segment != nullptr ? segment->write_index() : used_[static_cast<size_t>(sequence)];
}

CausalGraph::Frame CausalGraph::frame(ArrayView<const Segment> segments) {
  const auto by_place = [](const Segment& a, const Segment& b) { return a.sequence < b.sequence; };
  const auto [first, last] = std::minmax_element(segments.begin(), segments.end(), by_place);
  Frame frame{first->sequence, last->sequence - first->sequence + 1, 0};
  by_sequence_.assign(static_cast<size_t>(frame.count), nullptr);
  logit_rows_.clear();
  bool all_logits = false;
  for (const Segment& segment : segments) {
    by_sequence_[static_cast<size_t>(segment.sequence - frame.first)] = &segment;
    frame.num_rows = std::max(frame.num_rows, segment.size());
    all_logits |= segment.all_logits;
    logit_rows_.push_back(segment.size() - 1);
  }
  frame.num_rows = runner_->padded_rows(frame.num_rows);
  if (all_logits) {
    logit_rows_.resize(static_cast<size_t>(frame.num_rows));
    for (int64_t i = 0; i < frame.num_rows; ++i) logit_rows_[static_cast<size_t>(i)] = i;
  } else {
    std::sort(logit_rows_.begin(), logit_rows_.end());
    logit_rows_.erase(std::unique(logit_rows_.begin(), logit_rows_.end()), logit_rows_.end());
  }
  return frame;
}

void CausalGraph::run(ArrayView<const Segment> segments, std::vector<SegmentOutput>& outputs) {
  const Frame frame = this->frame(segments);
  int64_t rows = 0;
  for (int64_t b = 0; b < frame.count; ++b) {
    const Segment* segment = by_sequence_[static_cast<size_t>(b)];
    rows = std::max(rows, write_index(frame.first + b, segment) + frame.num_rows);
  }
  cache_.reserve(rows);
  cache_.bind(frame.first, frame.count, frame.num_rows);
  fill_rows(frame);
  fill_masks(frame);

  const ExportManifest& m = manifest();
  const ElementType type = element_type(m.dtype);
  const auto num_logits = static_cast<int64_t>(logit_rows_.size());
  runner_->want("logits", type, {frame.count, num_logits, m.vocab_size});
  if (features_) runner_->want("features", type, {frame.count, frame.num_rows, m.layers_width});
  runner_->run();

  const auto* logits = static_cast<const char*>(runner_->output("logits"));
  const auto* features =
      features_ ? static_cast<const char*>(runner_->output("features")) : nullptr;
  outputs.clear();
  for (const Segment& segment : segments) {
    const int64_t n = segment.size(), b = segment.sequence - frame.first;
    cache_.store(segment.sequence, 0, segment.write_index(), n);
    used_[static_cast<size_t>(segment.sequence)] = segment.write_index() + n;
    const auto last = std::lower_bound(logit_rows_.begin(), logit_rows_.end(), n - 1);
    const int64_t row = segment.all_logits ? 0 : last - logit_rows_.begin();
    SegmentOutput output;
    output.logits = {logits + (b * num_logits + row) * m.vocab_size * size_of(type), m.dtype,
                     segment.all_logits ? n : 1, m.vocab_size, m.vocab_size};
    if (features_) {
      output.features = {features + b * frame.num_rows * m.layers_width * size_of(type), m.dtype, n,
                         m.layers_width, m.layers_width};
    }
    outputs.push_back(output);
  }
}

void CausalGraph::fill_rows(const Frame& frame) {
  const Shape shape{frame.count, frame.num_rows};
  auto* ids = input_of<int64_t>(*runner_, "input_ids", shape);
  auto* positions = input_of<int64_t>(*runner_, "position_ids", shape);
  std::fill_n(ids, shape.num_elements(), 0);
  std::fill_n(positions, shape.num_elements(), 0);
  for (int64_t b = 0; b < frame.count; ++b, ids += frame.num_rows, positions += frame.num_rows) {
    const Segment* segment = by_sequence_[static_cast<size_t>(b)];
    if (segment == nullptr) continue;
    std::copy(segment->token.begin(), segment->token.end(), ids);
    for (int64_t i = 0; i < segment->size(); ++i) {
      const int64_t depth = segment->depth.empty() ? i : segment->depth[segment->first() + i];
      positions[i] = segment->prefix + depth;
    }
  }
  const auto num_logits = static_cast<int64_t>(logit_rows_.size());
  std::copy_n(logit_rows_.data(), num_logits,
              input_of<int64_t>(*runner_, "logit_rows", {num_logits}));
  if (!in_place_) return;
  auto* index = input_of<int64_t>(*runner_, "write_index", {frame.count});
  for (int64_t b = 0; b < frame.count; ++b) {
    index[b] = write_index(frame.first + b, by_sequence_[static_cast<size_t>(b)]);
  }
}

void CausalGraph::fill_masks(const Frame& frame) {
  const int64_t keys = cache_.capacity() + (in_place_ ? 0 : frame.num_rows);
  const Shape shape{frame.count, 1, frame.num_rows, keys};
  for (const MaskInput& mask : manifest().masks) {
    auto* row = input_of<bool>(*runner_, mask.name.c_str(), shape);
    std::fill_n(row, shape.num_elements(), false);
    for (int64_t b = 0; b < frame.count; ++b) {
      const Segment* segment = by_sequence_[static_cast<size_t>(b)];
      const int64_t fresh = in_place_ ? write_index(frame.first + b, segment) : cache_.capacity();
      for (int64_t i = 0; i < frame.num_rows; ++i, row += keys) {
        row[fresh + i] = true;  // also of padding, which must see something
        if (segment != nullptr && i < segment->size()) {
          fill_row(*segment, i, mask.window, row);
        }
      }
    }
  }
}

/// What new row i of a segment sees beside itself.
void CausalGraph::fill_row(const Segment& segment, int64_t i, int64_t window, bool* row) const {
  const int64_t first = segment.first(), prefix = segment.prefix;
  const int64_t depth = segment.depth.empty() ? i : segment.depth[first + i];
  // Prefix rows stand at their positions; a window hides those `window` or more behind.
  const int64_t hidden =
      window > 0 ? std::clamp<int64_t>(prefix + depth - window + 1, 0, prefix) : 0;
  std::fill(row + hidden, row + prefix, true);
  // New rows that are not in the cache yet stand behind it.
  bool* fresh = row + (in_place_ ? prefix + first : cache_.capacity());
  if (segment.parent.empty()) {
    const int64_t seen = window > 0 ? std::max<int64_t>(0, i - window + 1) : 0;
    std::fill(fresh + seen, fresh + i, true);
    return;
  }
  for (int64_t j = segment.parent[first + i]; j >= 0; j = segment.parent[j]) {
    if (window > 0 && depth - segment.depth[j] >= window) break;
    (j < first ? row[prefix + j] : fresh[j - first]) = true;
  }
}

namespace {

class SingleSequence final : public CausalSequence {
 public:
  SingleSequence(std::shared_ptr<const ExportedModel> model, bool features)
      : graph_(std::move(model), 1, features) {}
  const ExportManifest& manifest() const override { return graph_.manifest(); }
  int64_t max_rows(int64_t wanted) const override { return graph_.max_rows(wanted); }
  void restart(int64_t rows) override { graph_.restart(0, rows); }
  SegmentOutput run(const Segment& segment) override {
    graph_.check(segment);
    graph_.run({&segment, 1}, outputs_);
    return outputs_[0];
  }
  void commit(int64_t base, ArrayView<const int32_t> nodes) override {
    graph_.commit(0, base, nodes);
  }

 private:
  CausalGraph graph_;
  std::vector<SegmentOutput> outputs_;
};

}  // namespace

std::unique_ptr<CausalSequence> make_sequence(std::shared_ptr<const ExportedModel> model,
                                              bool features) {
  return std::make_unique<SingleSequence>(std::move(model), features);
}

}  // namespace treespec::exported
