// SPDX-License-Identifier: Apache-2.0
// Exported models without a runtime: a "graph" whose cache rows say which token stands where, so
// that a run can tell whether every query sees exactly what its mask and its place mean.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "host_memory.h"
#include "toy_models.h"
#include "treespec/exported_model.h"
#include "treespec/graph_runner.h"

namespace treespec::test {

constexpr int32_t kFakeVocab = 23;
constexpr uint64_t kFakeTable = 77;
constexpr int64_t kFakeHeads = 2;

/// What a FakeModel shall do, and what it has done.
struct FakeState {
  GraphLimits limits;
  uint64_t table = kFakeTable;
  std::atomic<int> num_runs{0};
  std::atomic<int> fail_at_run{-1};                 ///< the run that throws, counted from 1
  std::atomic<int> fail_at_allocation{-1};          ///< so many more succeed
  std::mutex mutex;                                 ///< of the record
  std::vector<std::pair<int64_t, int64_t>> shapes;  ///< sequences and rows of every run
};

inline void expect(bool condition, const char* what) {
  if (!condition) throw std::logic_error(std::string("fake graph: ") + what);
}

class FakeMemory final : public CacheMemory {
 public:
  explicit FakeMemory(FakeState& state) : state_(state) {}
  void* allocate(int64_t bytes) override {
    if (state_.fail_at_allocation >= 0 && state_.fail_at_allocation-- == 0) throw std::bad_alloc();
    return host_.allocate(bytes);
  }
  void release(void* data) noexcept override { host_.release(data); }
  void clear(void* data, int64_t bytes) override { host_.clear(data, bytes); }
  void copy(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t bytes,
            int64_t count) override {
    host_.copy(to, to_stride, from, from_stride, bytes, count);
  }
  void commit(ArrayView<const KvBuffer> buffers, int64_t base,
              ArrayView<const int32_t> nodes) override {
    host_.commit(buffers, base, nodes);
  }

 private:
  FakeState& state_;
  exported::HostMemory host_;
};

/// A row of a cache is (token, position) in the first head, the same plus 1000 in the second.
class FakeRunner : public GraphRunner {
 public:
  FakeRunner(const ExportManifest& manifest, FakeState& state)
      : manifest_(manifest), state_(state), memory_(state) {}

  GraphLimits limits() const override { return state_.limits; }
  CacheMemory& memory() override { return memory_; }
  void* input(const char* name, ElementType type, const Shape& shape) override {
    return own(inputs_, name, type, shape);
  }
  void want(const char* name, ElementType type, const Shape& shape) override {
    own(outputs_, name, type, shape);
  }
  void bind_input(const char* name, void* data, ElementType, const Shape& shape) override {
    inputs_.insert_or_assign(name, Tensor{{}, data, shape});
  }
  void bind_output(const char* name, void* data, ElementType, const Shape& shape) override {
    outputs_.insert_or_assign(name, Tensor{{}, data, shape});
  }
  const void* output(const char* name) const override { return outputs_.at(name).data; }

  void run() override {
    const bool block = manifest_.kind == ModelKind::kDFlash;
    const Shape& rows = inputs_.at(block ? "features" : "input_ids").shape;
    {
      const std::lock_guard<std::mutex> held(state_.mutex);
      state_.shapes.emplace_back(rows.size[0], rows.size[1]);
    }
    if (++state_.num_runs == state_.fail_at_run) throw std::runtime_error("fake graph: failed");
    expect(state_.limits.max_rows == 0 || rows.size[1] <= state_.limits.max_rows, "too many rows");
    for (int64_t b = 0; b < rows.size[0]; ++b) block ? run_block(b) : run_causal(b);
  }

 private:
  struct Tensor {
    std::vector<char> own;
    void* data;
    Shape shape;
  };
  using Tensors = std::map<std::string, Tensor, std::less<>>;

  static void* own(Tensors& tensors, const char* name, ElementType type, const Shape& shape) {
    Tensor tensor{std::vector<char>(static_cast<size_t>(shape.num_elements() * size_of(type)), 77),
                  nullptr, shape};
    tensor.data = tensor.own.data();
    return tensors.insert_or_assign(name, std::move(tensor)).first->second.data;
  }
  template <class T>
  T* in(const std::string& name) {
    return static_cast<T*>(inputs_.at(name).data);
  }
  bool in_place() const { return manifest_.cache_style == CacheStyle::kInPlace; }
  int64_t capacity() const { return inputs_.at(manifest_.cache[0].name).shape.size[2]; }

  /// Writes row i of sequence b: in place behind `write_index`, else as new row i.
  void write(int64_t b, int64_t i, int64_t num_rows, float token, float position) {
    for (const CacheInput& cache : manifest_.cache) {
      const Tensor& out = outputs_.at(cache.output);
      const int64_t rows = in_place() ? capacity() : num_rows;
      const int64_t row = in_place() ? in<int64_t>("write_index")[b] + i : i;
      expect(out.shape.size[2] == rows, "a cache output must have its rows");
      if (row >= rows) continue;  // as runtimes do
      for (int64_t head = 0; head < kFakeHeads; ++head) {
        float* at = static_cast<float*>(out.data) + ((b * kFakeHeads + head) * rows + row) * 2;
        at[0] = token + 1000.0f * static_cast<float>(head);
        at[1] = position;
      }
    }
  }

  using Seen = std::vector<std::pair<int64_t, int32_t>>;

  /// (position, token) of what a query sees. Paths lie in the order of their positions.
  Seen seen(int64_t b, int64_t num_rows, const bool* mask) {
    Seen tokens;
    const int64_t keys = capacity() + (in_place() ? 0 : num_rows);
    for (int64_t key = 0; key < keys; ++key) {
      if (!mask[key]) continue;
      int32_t token = -1;
      int64_t position = -1;
      for (const CacheInput& cache : manifest_.cache) {
        const bool fresh = key >= capacity();
        const Tensor& tensor = fresh ? outputs_.at(cache.output) : inputs_.at(cache.name);
        const int64_t rows = fresh ? num_rows : capacity(), row = fresh ? key - capacity() : key;
        for (int64_t head = 0; head < kFakeHeads; ++head) {
          const float* at =
              static_cast<const float*>(tensor.data) + ((b * kFakeHeads + head) * rows + row) * 2;
          const auto found = static_cast<int32_t>(at[0]) - 1000 * static_cast<int32_t>(head);
          expect(token < 0 || found == token, "heads and layers must agree on a row");
          token = found;
          position = static_cast<int64_t>(at[1]);
        }
      }
      expect(tokens.empty() || tokens.back().first < position, "positions must ascend");
      tokens.emplace_back(position, token);
    }
    return tokens;
  }

  static void expect_positions(const Seen& tokens, int64_t begin, int64_t end) {
    expect(static_cast<int64_t>(tokens.size()) == end - begin, "a query sees too much or little");
    expect(tokens.empty() || (tokens[0].first == begin && tokens.back().first == end - 1),
           "a query sees the wrong positions");
  }

  void run_causal(int64_t b) {
    const int64_t n = inputs_.at("input_ids").shape.size[1];
    const int64_t* ids = in<int64_t>("input_ids") + b * n;
    const int64_t* positions = in<int64_t>("position_ids") + b * n;
    for (int64_t i = 0; i < n; ++i) {
      write(b, i, n, static_cast<float>(ids[i]), static_cast<float>(positions[i]));
    }
    std::vector<Tokens> texts;  // the last two tokens that each row sees, itself the last
    for (int64_t i = 0; i < n; ++i) texts.push_back(text_of(b, i, n, positions[i]));
    const int64_t num_logits = inputs_.at("logit_rows").shape.size[0];
    auto* logits = static_cast<float*>(outputs_.at("logits").data) + b * num_logits * kFakeVocab;
    for (int64_t r = 0; r < num_logits; ++r) {
      const Tokens& text = texts[static_cast<size_t>(in<int64_t>("logit_rows")[r])];
      for (int32_t t = 0; t < kFakeVocab; ++t) {
        *logits++ = static_cast<float>(table_logit(state_.table, text[0], text[1], t));
      }
    }
    const auto features = outputs_.find("features");
    if (features == outputs_.end()) return;
    auto* feature = static_cast<float*>(features->second.data) + b * n * 2;
    for (int64_t i = 0; i < n; ++i) {
      *feature++ = static_cast<float>(ids[i]);
      *feature++ = static_cast<float>(positions[i]);
    }
  }

  Tokens text_of(int64_t b, int64_t i, int64_t n, int64_t position) {
    Tokens text;
    for (const MaskInput& mask : manifest_.masks) {
      const int64_t keys = inputs_.at(mask.name).shape.size[3];
      expect(keys == capacity() + (in_place() ? 0 : n), "a mask must be as wide as the keys");
      const Seen tokens = seen(b, n, in<bool>(mask.name) + (b * n + i) * keys);
      const int64_t begin = mask.window > 0 ? std::max<int64_t>(0, position - mask.window + 1) : 0;
      expect_positions(tokens, begin, position + 1);
      text = {position > 0 ? tokens[tokens.size() - 2].second : 0, tokens.back().second};
    }
    return text;
  }

  /// The guess of depth d, whatever stands before it: token (root + d + 1) and two that are worse.
  void run_block(int64_t b) {
    const BlockShape& block = *manifest_.block;
    const int64_t count = inputs_.at("features").shape.size[1], slots = block.slots;
    const float* features = in<float>("features") + b * count * 2;
    const int64_t* positions = in<int64_t>("feature_positions") + b * count;
    const int64_t* block_positions = in<int64_t>("block_positions") + b * slots;
    const int64_t root = in<int64_t>("root")[b];
    int64_t own = 0;  // features that are no padding
    for (int64_t i = 0; i < count; ++i) {
      if (positions[i] < block_positions[0]) {
        ++own;
        expect(static_cast<int64_t>(features[2 * i + 1]) == positions[i], "a feature is misplaced");
      }
      write(b, i, count + slots, features[2 * i], static_cast<float>(positions[i]));
    }
    for (int64_t i = 0; i < slots; ++i) {
      write(b, count + i, count + slots, static_cast<float>(root),
            static_cast<float>(block_positions[i]));
    }
    for (const MaskInput& mask : manifest_.masks) {
      const int64_t keys = inputs_.at(mask.name).shape.size[3];
      for (int64_t i = 0; i < slots && own > 0; ++i) {
        const int64_t position = block_positions[i];
        const Seen tokens = seen(b, count + slots, in<bool>(mask.name) + (b * slots + i) * keys);
        const bool causal = block.causal || (mask.window > 0 && block.windows_causal);
        const int64_t begin =
            mask.window > 0 ? std::max<int64_t>(0, position - mask.window + 1) : 0;
        expect_positions(tokens, begin, causal ? position + 1 : block_positions[0] + slots);
      }
    }
    write_lists(b, static_cast<int32_t>(root), in<float>("temperature")[0]);
  }

  void write_lists(int64_t b, int32_t root, float temperature) {
    const BlockShape& block = *manifest_.block;
    const Shape& shape = outputs_.at("token").shape;
    const int64_t lists = shape.size[1], width = shape.size[2];
    auto* token = static_cast<int64_t*>(outputs_.at("token").data) + b * lists * width;
    auto* logprob = static_cast<float*>(outputs_.at("logprob").data) + b * lists * width;
    for (int64_t list = 0; list < lists; ++list) {
      for (int64_t k = 0; k < width; ++k) {
        *token++ = (root + list + 1 + k) % kFakeVocab;
        *logprob++ = -0.5f - static_cast<float>(k) / temperature;
      }
    }
    if (block.num_previous == 0) return;
    auto* owner = static_cast<int64_t*>(outputs_.at("owner").data) +
                  b * (block.depth - 1) * block.num_previous;
    for (int64_t i = 0; i < (block.depth - 1) * block.num_previous; ++i) {
      owner[i] = (root + 1 + i) % kFakeVocab;
    }
  }

  const ExportManifest& manifest_;
  FakeState& state_;
  FakeMemory memory_;
  Tensors inputs_, outputs_;
};

class FakeModel final : public ExportedModel {
 public:
  FakeModel(ExportManifest manifest, FakeState& state)
      : ExportedModel(std::move(manifest)), state_(state) {}
  std::unique_ptr<GraphRunner> make_runner() const override {
    return std::make_unique<FakeRunner>(manifest(), state_);
  }

 private:
  FakeState& state_;
};

/// Two layers' worth of caches, a window beside the full mask.
inline ExportManifest fake_manifest(ModelRole role, CacheStyle style) {
  ExportManifest m;
  m.folder = "fake";
  m.role = role;
  m.cache_style = style;
  m.vocab_size = kFakeVocab;
  m.max_context = 1000;
  m.max_nodes = 64;
  m.masks = {{"attention_mask", 0}, {"attention_mask_window_5", 5}};
  const std::string prefix = style == CacheStyle::kInPlace ? "present" : "new";
  for (const char* name : {"_keys_0", "_values_0"}) {
    m.cache.push_back({std::string("cache") + name, prefix + name, kFakeHeads, 2});
  }
  if (role == ModelRole::kTarget) {
    m.layers = {1, 2};
    m.layers_width = 2;
  }
  return m;
}

/// A drafter of blocks: marginals, or transitions for `num_previous` > 0.
inline ExportManifest fake_block_manifest(CacheStyle style, int32_t num_previous) {
  ExportManifest m = fake_manifest(ModelRole::kDrafter, style);
  m.kind = ModelKind::kDFlash;
  m.layers = {1, 2};
  m.layers_width = 2;
  m.block = BlockShape{3, 4, 5, num_previous, false, true};
  return m;
}

}  // namespace treespec::test
