// SPDX-License-Identifier: Apache-2.0
#include "engine_runner.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "element_type.h"
#include "treespec/error.h"

namespace treespec::tensorrt {
namespace {

// A few sizes of trees and prompts, each with one and all rows of logits, for a few slots.
constexpr size_t kMaxPrepared = 64;

constexpr const char* kFeatures = "features";

template <class... Parts>
[[noreturn]] void fail(Parts&&... parts) {
  throw std::runtime_error(detail::message("TensorRtModel: ", std::forward<Parts>(parts)...));
}

// Memory grows by doubling: every move means new contexts.
constexpr int64_t kLeastBytes = 4096;

int64_t rounded(int64_t bytes) {
  int64_t size = kLeastBytes;
  while (size < bytes) size *= 2;
  return size;
}

bool same(const Binding& a, const Binding& b) {
  return a.data == b.data && a.name == b.name && a.shape.rank == b.shape.rank &&
         std::equal(a.shape.size, a.shape.size + a.shape.rank, b.shape.size);
}

}  // namespace

EngineRunner::EngineRunner(const ExportManifest& manifest, const EngineFile& file,
                           std::shared_ptr<Engine> engine, std::unique_ptr<Queue> queue,
                           bool cuda_graphs)
    : manifest_(manifest),
      file_(file),
      engine_(std::move(engine)),
      queue_(std::move(queue)),
      cuda_graphs_(cuda_graphs),
      scratch_(*queue_, std::max<int64_t>(engine_->scratch_bytes(), 1)) {
  const char* axis = manifest.block ? "features" : "nodes";
  for (const Profile& profile : file.profiles) {
    const auto found = profile.axes.find(axis);
    if (found != profile.axes.end()) row_sizes_.push_back(found->second.most);
  }
  std::sort(row_sizes_.begin(), row_sizes_.end());
  for (const CacheInput& cache : manifest.cache) {
    const std::string alias = engine_->alias_of(cache.output);
    if (alias != cache.name) {
      fail(cache.output, " must be written in place of ", cache.name, ", but is ",
           alias.empty() ? "a tensor of its own" : "that of " + alias);
    }
  }
}

EngineRunner::~EngineRunner() = default;

GraphLimits EngineRunner::limits() const {
  GraphLimits limits;
  limits.cache_rows = file_.capacity;
  limits.max_rows = row_sizes_.empty() ? 0 : row_sizes_.back();
  limits.max_batch = file_.max_batch;
  return limits;
}

int64_t EngineRunner::padded_rows(int64_t rows) const {
  const auto size = std::lower_bound(row_sizes_.begin(), row_sizes_.end(), rows);
  return size == row_sizes_.end() ? rows : *size;
}

EngineRunner::Tensor& EngineRunner::resized(Tensors& tensors, const char* name, ElementType type,
                                            const Shape& shape) {
  Tensor& tensor = tensors.try_emplace(name).first->second;
  tensor.shape = shape;
  tensor.bytes = shape.num_elements() * size_of(type);
  if (tensor.device.bytes() < tensor.bytes) {
    tensor.device = {};  // before the new one is there: never both
    tensor.host = {nullptr, {queue_.get()}};
    tensor.device = exported::CacheBlock(*queue_, rounded(tensor.bytes));
    tensor.host.reset(queue_->allocate_host(tensor.device.bytes()));
  }
  return tensor;
}

void* EngineRunner::input(const char* name, ElementType type, const Shape& shape) {
  return resized(inputs_, name, type, shape).host.get();
}

void EngineRunner::want(const char* name, ElementType type, const Shape& shape) {
  resized(outputs_, name, type, shape);
}

void EngineRunner::bind_input(const char* name, void* data, ElementType, const Shape& shape) {
  bound_.insert_or_assign(name, Binding{name, data, shape});
}

void EngineRunner::bind_output(const char* name, void* data, ElementType, const Shape& shape) {
  bound_.insert_or_assign(name, Binding{name, data, shape});
}

const void* EngineRunner::output(const char* name) const { return outputs_.at(name).host.get(); }

void EngineRunner::run() {
  const auto sizes = this->sizes();
  check_room(sizes);
  const int profile = choose(sizes);
  Prepared& prepared = prepare(profile, bindings());
  for (const auto& [name, tensor] : inputs_) {
    queue_->upload(tensor.device.data(), tensor.host.get(), tensor.bytes);
  }
  enqueue(prepared);
  for (const auto& [name, tensor] : outputs_) {
    queue_->download(tensor.host.get(), tensor.device.data(), tensor.bytes);
  }
  queue_->finish();
}

/// Sizes by axis of the graph.
std::map<std::string, int64_t> EngineRunner::sizes() const {
  if (manifest_.block) {
    const Shape& rows = inputs_.at("feature_positions").shape;
    return {{"batch", rows.size[0]}, {"features", rows.size[1]}};
  }
  const Shape& rows = inputs_.at("input_ids").shape;
  return {{"batch", rows.size[0]},
          {"nodes", rows.size[1]},
          {"logit_rows", inputs_.at("logit_rows").shape.size[0]}};
}

/// TensorRT would drop rows behind the end of a cache without a word, and real ones with them.
void EngineRunner::check_room(const std::map<std::string, int64_t>& sizes) const {
  const int64_t rows = manifest_.block ? sizes.at("features") + manifest_.block->slots  //
                                       : sizes.at("nodes");
  const auto* index = static_cast<const int64_t*>(inputs_.at("write_index").host.get());
  const int64_t end = *std::max_element(index, index + sizes.at("batch")) + rows;
  if (end > file_.capacity) {
    fail("rows must end at ", file_.capacity, ", which the engine is built for, got ", end);
  }
}

/// The first profile, that is the narrowest, that takes the sizes.
int EngineRunner::choose(const std::map<std::string, int64_t>& sizes) const {
  for (size_t i = 0; i < file_.profiles.size(); ++i) {
    if (file_.profiles[i].admits(sizes)) return static_cast<int>(i);
  }
  std::ostringstream text;
  for (const auto& [axis, size] : sizes) text << ' ' << axis << ' ' << size;
  fail("sizes must fit a profile of the engine ", file_.plan, ", got", text.str());
}

/// Where all tensors are, in a fixed order. An engine computes every output, also those nobody
/// wants.
std::vector<Binding> EngineRunner::bindings() {
  std::vector<Binding> all;
  if (!manifest_.block && !manifest_.layers.empty() && outputs_.count(kFeatures) == 0) {
    const Shape& rows = inputs_.at("input_ids").shape;
    const Shape shape{rows.size[0], rows.size[1], manifest_.layers_width};
    const ElementType type = exported::element_type(manifest_.dtype);
    all.push_back({kFeatures, resized(unwanted_, kFeatures, type, shape).device.data(), shape});
  }
  for (const auto& [name, binding] : bound_) all.push_back(binding);
  for (const Tensors* tensors : {&inputs_, &outputs_}) {
    for (const auto& [name, tensor] : *tensors) {
      all.push_back({name, tensor.device.data(), tensor.shape});
    }
  }
  return all;
}

/// A context for these shapes and addresses, and for no others: a captured graph relies on the
/// state of the context it came from.
EngineRunner::Prepared& EngineRunner::prepare(int profile, std::vector<Binding> bindings) {
  const auto found = std::find_if(prepared_.begin(), prepared_.end(), [&](const Prepared& one) {
    return one.profile == profile && std::equal(one.bindings.begin(), one.bindings.end(),
                                                bindings.begin(), bindings.end(), same);
  });
  if (found != prepared_.end()) {
    prepared_.splice(prepared_.begin(), prepared_, found);
    return prepared_.front();
  }
  for (const Binding& one : bindings) {
    if (reinterpret_cast<uintptr_t>(one.data) % kAlignment != 0) {
      fail(one.name, " must be at a multiple of ", kAlignment);
    }
  }
  auto context = engine_->make_context(profile, bindings, scratch_.data(), *queue_);
  prepared_.push_front({profile, std::move(bindings), std::move(context), nullptr});
  if (prepared_.size() > kMaxPrepared) prepared_.pop_back();
  return prepared_.front();
}

/// From the second time on as a CUDA graph.
void EngineRunner::enqueue(Prepared& prepared) {
  if (cuda_graphs_ && prepared.runs > 0 && !prepared.replay) {
    try {
      prepared.replay = queue_->capture(*prepared.context);
    } catch (const std::runtime_error& error) {
      cuda_graphs_ = false;
      engine_->warn(detail::message("runs without CUDA graphs, capturing failed: ", error.what()));
    }
  }
  ++prepared.runs;
  prepared.replay ? prepared.replay->enqueue() : prepared.context->enqueue();
}

}  // namespace treespec::tensorrt
