// SPDX-License-Identifier: Apache-2.0
// Exported models on a fake engine: profiles, contexts, graphs, order of work, batches, what is
// refused; and which engine of a folder is taken.
#include "engine_runner.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "engine.h"
#include "engine_file.h"
#include "fake_model.h"
#include "treespec/batch_decoder.h"
#include "treespec/error.h"
#include "treespec/exported_model.h"

namespace {

using namespace treespec;            // NOLINT
using namespace treespec::tensorrt;  // NOLINT
using namespace treespec::test;      // NOLINT
namespace fs = std::filesystem;

/// What fakes shall do, and what they have done.
struct World {
  FakeState graph;
  int contexts = 0, captures = 0, replays = 0, runs = 0;
  std::vector<int> profiles;  // of the contexts made
  std::vector<std::string> warnings;
  std::string capture_error, run_error;
  std::string alias = "cache_keys_0";  // what present_keys_0 is written in place of
};

/// Work is done when somebody waits, in the order it was queued.
class FakeQueue final : public Queue {
 public:
  explicit FakeQueue(World& world) : world_(world) {}
  ~FakeQueue() override { finish(); }

  void put(std::function<void()> work) {
    (recording_ != nullptr ? *recording_ : waiting_).push_back(std::move(work));
  }
  void* allocate(int64_t bytes) override {
    const auto size = static_cast<size_t>((bytes + kAlignment - 1) / kAlignment * kAlignment);
    void* data = std::aligned_alloc(kAlignment, size);
    std::memset(data, 0x7f, size);  // floats near the largest
    clear(data, bytes);
    return data;
  }
  void release(void* data) noexcept override {
    finish();
    std::free(data);
  }
  void clear(void* data, int64_t bytes) override {
    put([=] { std::memset(data, 0, static_cast<size_t>(bytes)); });
  }
  void copy(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t bytes,
            int64_t count) override {
    put([=] { host_.copy(to, to_stride, from, from_stride, bytes, count); });
  }
  void commit(ArrayView<const KvBuffer> buffers, int64_t base,
              ArrayView<const int32_t> nodes) override {
    const std::vector<KvBuffer> kept(buffers.begin(), buffers.end());
    const std::vector<int32_t> path(nodes.begin(), nodes.end());
    put([=] { host_.commit(kept, base, path); });
  }
  void* allocate_host(int64_t bytes) override { return std::malloc(static_cast<size_t>(bytes)); }
  void release_host(void* data) noexcept override { std::free(data); }
  void upload(void* device, const void* host, int64_t bytes) override {
    put([=] { std::memcpy(device, host, static_cast<size_t>(bytes)); });
  }
  void download(void* host, const void* device, int64_t bytes) override {
    std::memset(host, 0x7f, static_cast<size_t>(bytes));  // what is read too early
    upload(host, device, bytes);
  }
  std::unique_ptr<Replay> capture(Context& context) override {
    if (!world_.capture_error.empty()) throw std::runtime_error(world_.capture_error);
    auto recorded = std::make_shared<std::vector<std::function<void()>>>();
    recording_ = recorded.get();
    context.enqueue();
    recording_ = nullptr;
    ++world_.captures;
    return std::make_unique<Recording>(*this, std::move(recorded));
  }
  void finish() override {
    for (const auto& work : std::exchange(waiting_, {})) work();
  }

 private:
  class Recording final : public Replay {
   public:
    using Work = std::shared_ptr<std::vector<std::function<void()>>>;
    Recording(FakeQueue& queue, Work work) : queue_(queue), work_(std::move(work)) {}
    void enqueue() override {
      ++queue_.world_.replays;
      for (const auto& one : *work_) queue_.put(one);
    }

   private:
    FakeQueue& queue_;
    Work work_;
  };
  World& world_;
  mutable exported::HostMemory host_;
  std::vector<std::function<void()>> waiting_;
  std::vector<std::function<void()>>* recording_ = nullptr;
};

/// Checks what TensorRT would, and computes with the fake graph.
class FakeEngine final : public Engine {
 public:
  FakeEngine(const ExportManifest& manifest, const EngineFile& file, World& world)
      : manifest_(manifest), file_(file), world_(world) {}
  int64_t scratch_bytes() const override { return 1000; }
  std::string alias_of(const std::string& output) const override {
    if (output == "present_keys_0") return world_.alias;
    return "cache" + output.substr(std::string("present").size());
  }
  void warn(const std::string& text) override { world_.warnings.push_back(text); }

  std::unique_ptr<Context> make_context(int profile, const std::vector<Binding>& bindings,
                                        void* scratch, Queue& queue) override {
    CHECK(scratch != nullptr);
    ++world_.contexts;
    world_.profiles.push_back(profile);
    std::set<std::string> names;
    for (const Binding& one : bindings) {
      CHECK(names.insert(one.name).second);
      CHECK(one.data != nullptr);
    }
    for (const CacheInput& cache : manifest_.cache) {
      const Binding& in = find(bindings, cache.name);
      CHECK_EQUAL(in.data, find(bindings, cache.output).data);
      CHECK_EQUAL(in.shape.size[2], file_.capacity);
    }
    if (!manifest_.block && !manifest_.layers.empty()) CHECK(names.count("features") == 1);
    return std::make_unique<Run>(*this, bindings, static_cast<FakeQueue&>(queue));
  }

 private:
  static const Binding& find(const std::vector<Binding>& bindings, const std::string& name) {
    for (const Binding& one : bindings) {
      if (one.name == name) return one;
    }
    std::fprintf(stderr, "%s is not bound\n", name.c_str());
    std::exit(1);
  }

  class Run final : public Context {
   public:
    Run(FakeEngine& engine, std::vector<Binding> bindings, FakeQueue& queue)
        : engine_(engine), bindings_(std::move(bindings)), queue_(queue) {}
    void enqueue() override {
      if (!engine_.world_.run_error.empty()) throw std::runtime_error(engine_.world_.run_error);
      queue_.put([this] {
        ++engine_.world_.runs;
        FakeRunner runner(engine_.manifest_, engine_.world_.graph);
        static const std::set<std::string> kOutputs{"logits", "token", "logprob", "owner"};
        for (const Binding& one : bindings_) {
          const bool present = one.name.rfind("present", 0) == 0;
          const bool features = one.name == "features" && !engine_.manifest_.block;
          const char* name = one.name.c_str();
          if (present || features || kOutputs.count(one.name) > 0) {
            runner.bind_output(name, one.data, ElementType::kFloat32, one.shape);
          } else {
            runner.bind_input(name, one.data, ElementType::kFloat32, one.shape);
          }
        }
        runner.run();
      });
    }

   private:
    FakeEngine& engine_;
    std::vector<Binding> bindings_;
    FakeQueue& queue_;
  };

  const ExportManifest& manifest_;
  const EngineFile& file_;
  World& world_;
};

EngineFile engine_file(const ExportManifest& manifest) {
  EngineFile file;
  file.plan = "fake.plan";
  file.capacity = 1152;
  file.max_context = manifest.max_context, file.max_nodes = manifest.max_nodes;
  file.max_batch = 2;
  if (manifest.block) {
    file.profiles = {{"round", {{"batch", {1, 2}}, {"features", {1, 4}}}},
                     {"prefill", {{"batch", {1, 2}}, {"features", {1, 100}}}}};
    return file;
  }
  const auto profile = [](const char* name, int64_t nodes, int64_t rows) {
    return Profile{name, {{"batch", {1, 2}}, {"nodes", {1, nodes}}, {"logit_rows", {1, rows}}}};
  };
  file.profiles = {profile("decode", 1, 1), profile("tree of 16", 16, 16),
                   profile("tree of 64", 64, 64), profile("prefill", 100, 2)};
  return file;
}

class EngineModel final : public ExportedModel {
 public:
  EngineModel(ExportManifest manifest, World& world, bool cuda_graphs = true)
      : ExportedModel(std::move(manifest)),
        file_(engine_file(this->manifest())),
        world_(world),
        engine_(std::make_shared<FakeEngine>(this->manifest(), file_, world)),
        cuda_graphs_(cuda_graphs) {}
  std::unique_ptr<GraphRunner> make_runner() const override {
    return std::make_unique<EngineRunner>(manifest(), file_, engine_,
                                          std::make_unique<FakeQueue>(world_), cuda_graphs_);
  }

 private:
  EngineFile file_;
  World& world_;
  std::shared_ptr<FakeEngine> engine_;
  bool cuda_graphs_;
};

ExportManifest target_manifest() { return fake_manifest(ModelRole::kTarget, CacheStyle::kInPlace); }

std::vector<ExportManifest> drafter_manifests() {
  return {fake_manifest(ModelRole::kDrafter, CacheStyle::kInPlace),
          fake_block_manifest(CacheStyle::kInPlace, 0),
          fake_block_manifest(CacheStyle::kInPlace, 2)};
}

Tokens prompt(int32_t size) {
  Tokens tokens;
  for (int32_t i = 0; i < size; ++i) tokens.push_back(i * 7 % kFakeVocab);
  return tokens;
}

Tokens generate(std::shared_ptr<const ExportedModel> target, DraftModel* draft, double temperature,
                const char* builder = "opt_tree", bool features = true) {
  ExportedTargetOptions settings;
  settings.features = features;
  ExportedTarget model(std::move(target), settings);
  DecoderOptions recipe;
  recipe.builder = builder;
  recipe.node_budget = 12;
  GenerateOptions how;
  how.max_new_tokens = 60;
  how.sampling.temperature = temperature;
  how.seed = 5;
  return SpeculativeDecoder(model, draft, recipe).generate(prompt(150), how).token_ids;
}

/// The same text on the fake graph alone.
Tokens expected(double temperature) {
  FakeState state;
  return generate(std::make_shared<FakeModel>(target_manifest(), state), nullptr, temperature);
}

void texts_are_those_of_the_graph_for_every_drafter() {
  for (const double temperature : {0.0, 0.9}) {
    const Tokens text = expected(temperature);
    World world;
    const auto target = std::make_shared<EngineModel>(target_manifest(), world);
    CHECK(generate(target, nullptr, temperature) == text);
    for (const ExportManifest& manifest : drafter_manifests()) {
      World own;
      ExportedDraft draft(std::make_shared<EngineModel>(manifest, own), target->manifest());
      for (const char* builder : {"opt_tree", "chain"}) {
        CHECK(generate(target, &draft, temperature, builder) == text);
      }
      CHECK(own.runs > 10);
    }
    CHECK(world.replays > 10);
  }
}

void an_output_that_nobody_reads_has_its_memory() {
  World world;
  const auto target = std::make_shared<EngineModel>(target_manifest(), world);
  CHECK(generate(target, nullptr, 0.0, "opt_tree", false) == expected(0.0));
}

void runs_take_the_narrowest_profile() {
  World world;
  const auto target = std::make_shared<EngineModel>(target_manifest(), world);
  generate(target, nullptr, 0.0);
  // A prompt of 150 in chunks of 100 and 50 tokens, then one token at a time.
  CHECK((std::vector<int>{3, 2, 0} == world.profiles));
}

/// A chain of `size` tokens behind `length` committed ones.
RowsView forward(ExportedTarget& target, int32_t size, int32_t length) {
  TokenTree tree;
  tree.token = prompt(size);
  for (int32_t i = 0; i < size; ++i) tree.parent.push_back(i - 1), tree.depth.push_back(i);
  return target.forward({tree, {}, {}, length});
}

void a_run_that_recurs_is_replayed() {
  World world;
  ExportedTarget target(std::make_shared<EngineModel>(target_manifest(), world));
  target.prefill(prompt(20));
  const int made = world.contexts;
  for (const int32_t size : {20, 5, 5, 5, 9, 30}) {
    CHECK_EQUAL(forward(target, size, 20).num_rows, size);  // padded to 16, and to 64
  }
  CHECK_EQUAL(world.contexts, made + 2);
  CHECK_EQUAL(world.captures, 2);
  CHECK_EQUAL(world.replays, 4);
}

void without_graphs_nothing_is_captured() {
  World world;
  const auto target = std::make_shared<EngineModel>(target_manifest(), world, false);
  CHECK(generate(target, nullptr, 0.0) == expected(0.0));
  CHECK_EQUAL(world.captures, 0);
}

void a_capture_that_fails_is_said_once() {
  World world;
  world.capture_error = "not permitted";
  const auto target = std::make_shared<EngineModel>(target_manifest(), world);
  CHECK(generate(target, nullptr, 0.0) == expected(0.0));
  CHECK_EQUAL(world.warnings.size(), 1u);
  CHECK(world.warnings[0].find("capturing failed: not permitted") != std::string::npos);
}

void a_run_that_fails_does_not_spoil_the_next_text() {
  World world;
  ExportedTarget target(std::make_shared<EngineModel>(target_manifest(), world));
  target.prefill(prompt(20));
  world.run_error = "an illegal memory access";
  CHECK_THROWS(std::runtime_error, forward(target, 5, 20));
  world.run_error.clear();
  target.prefill(prompt(20));
  CHECK_EQUAL(forward(target, 5, 20).num_rows, 5);
}

void engines_that_do_not_write_in_place_are_refused() {
  for (const char* alias : {"", "cache_values_0"}) {
    World world;
    world.alias = alias;
    const EngineModel model(target_manifest(), world);
    CHECK_THROWS(std::runtime_error, model.make_runner());
  }
}

/// The runner itself, with inputs as CausalGraph gives them.
struct Direct {
  Direct() : model(target_manifest(), world), runner(model.make_runner()) {
    for (const CacheInput& cache : model.manifest().cache) {
      const Shape shape{1, cache.heads, 1152, cache.width};
      memory.push_back(runner->memory().allocate(shape.num_elements() * 4));
      bind(cache, memory.back(), shape);
    }
  }
  ~Direct() {
    for (void* data : memory) runner->memory().release(data);
  }
  void bind(const CacheInput& cache, void* data, const Shape& shape) {
    runner->bind_input(cache.name.c_str(), data, ElementType::kFloat32, shape);
    runner->bind_output(cache.output.c_str(), data, ElementType::kFloat32, shape);
  }
  void run(int64_t nodes, int64_t write_index) {
    const auto fill = [&](const char* name, std::initializer_list<int64_t> shape, int64_t value) {
      auto* data = static_cast<int64_t*>(runner->input(name, ElementType::kInt64, Shape(shape)));
      for (int64_t i = 0; i < Shape(shape).num_elements(); ++i) data[i] = value;
    };
    fill("input_ids", {1, nodes}, 3);
    fill("position_ids", {1, nodes}, 0);
    fill("logit_rows", {1}, 0);
    fill("write_index", {1}, write_index);
    for (const MaskInput& mask : model.manifest().masks) {
      const Shape shape{1, 1, nodes, 1152};
      auto* rows = static_cast<bool*>(runner->input(mask.name.c_str(), ElementType::kBool, shape));
      std::memset(rows, 0, static_cast<size_t>(shape.num_elements()));
      for (int64_t i = 0; i < nodes; ++i) rows[i * 1152 + write_index + i] = true;
    }
    runner->want("logits", ElementType::kFloat32, {1, 1, kFakeVocab});
    runner->run();
  }
  World world;
  EngineModel model;
  std::unique_ptr<GraphRunner> runner;
  std::vector<void*> memory;
};

void rows_behind_the_cache_are_refused() {
  Direct direct;
  CHECK_THROWS(std::runtime_error, direct.run(4, 1149));
  CHECK_EQUAL(direct.world.contexts, 0);
  direct.run(1, 1151);
  CHECK_EQUAL(direct.world.runs, 1);
}

void sizes_that_fit_no_profile_are_refused() {
  Direct direct;
  CHECK_THROWS(std::runtime_error, direct.run(101, 0));
  direct.run(1, 0);
  CHECK_EQUAL(direct.runner->limits().max_rows, 100);
  CHECK_EQUAL(direct.runner->limits().cache_rows, 1152);
}

void contexts_of_memory_that_was_used_longest_ago_are_forgotten() {
  Direct direct;
  const CacheInput& cache = direct.model.manifest().cache[0];
  const Shape shape{1, cache.heads, 1152, cache.width};
  constexpr int64_t kPlaces = 65;  // one more than are kept
  const int64_t bytes = shape.num_elements() * 4 + kPlaces * kAlignment;
  char* memory = static_cast<char*>(direct.runner->memory().allocate(bytes));
  const auto run_at = [&](int64_t place) {
    direct.bind(cache, memory + place * kAlignment, shape);
    direct.run(1, 0);
  };
  for (int64_t place = 0; place < kPlaces - 1; ++place) run_at(place);
  run_at(0);
  const int made = direct.world.contexts;
  run_at(kPlaces - 1);
  CHECK_EQUAL(direct.world.contexts, made + 1);
  run_at(0);
  CHECK_EQUAL(direct.world.contexts, made + 1);
  run_at(1);
  CHECK_EQUAL(direct.world.contexts, made + 2);
  direct.runner->memory().release(memory);
}

void memory_that_is_not_aligned_is_refused() {
  Direct direct;
  const CacheInput& cache = direct.model.manifest().cache[0];
  direct.bind(cache, static_cast<char*>(direct.memory[0]) + 16, {1, cache.heads, 1152, 2});
  CHECK_THROWS(std::runtime_error, direct.run(1, 0));
}

// --- several texts at a time ---------------------------------------------------------------------

void texts_at_a_time_are_as_good_as_alone() {
  const std::vector<Tokens> prompts{prompt(3), prompt(400), prompt(990 - 60), prompt(170)};
  GenerateOptions how;
  how.max_new_tokens = 60;
  how.sampling.temperature = 0.9;
  DecoderOptions recipe;
  recipe.node_budget = 9;
  BatchOptions size;
  size.size = 2;
  for (const ExportManifest& manifest : drafter_manifests()) {
    FakeState state;
    World world, own;
    const auto plain = std::make_shared<FakeModel>(target_manifest(), state);
    const auto target = std::make_shared<EngineModel>(target_manifest(), world);
    BatchDecoder decoder(target, std::make_shared<EngineModel>(manifest, own), recipe, size);
    const auto results = decoder.generate_all(prompts, {how});
    for (size_t i = 0; i < prompts.size(); ++i) {
      ExportedTarget alone(plain);
      const SpeculativeDecoder single(alone, nullptr, recipe);
      CHECK(results[i].token_ids == single.generate(prompts[i], how).token_ids);
    }
  }
}

void more_texts_at_a_time_than_the_engine_takes_are_refused() {
  World world;
  const auto target = std::make_shared<EngineModel>(target_manifest(), world);
  BatchOptions size;
  size.size = 3;
  CHECK_THROWS(InvalidArgument, BatchDecoder(target, nullptr, {}, size));
}

// --- engines on disk -----------------------------------------------------------------------------

const Runtime kHere{"10.15.1.29", "9.0", "A GPU"};

/// A folder with a manifest and engines.
struct Folder {
  Folder() : path(fs::temp_directory_path() / ("treespec_engines_" + std::to_string(next++))) {
    fs::remove_all(path);
    fs::create_directories(path / "engines");
    write(path / "treespec.json",
          R"({"files": {"model.onnx": {"sha256": "a1"}, "model.onnx.data": {"sha256": "b2"},)"
          R"( "tokenizer.json": {"sha256": "c3"}}})");
    manifest = target_manifest();
    manifest.folder = path.string();
    manifest.graph = "model.onnx";
  }
  ~Folder() { fs::remove_all(path); }

  static void write(const fs::path& file, const std::string& text) {
    std::ofstream(file, std::ios::binary) << text;
  }
  std::string add(const std::string& key, const Runtime& runtime, const char* data_checksum = "b2",
                  const std::string& bytes = "4") {
    const fs::path plan = path / "engines" / (key + ".plan");
    write(plan, "plan");
    write(
        path / "engines" / (key + ".json"),
        R"({"format": "treespec-engine", "version": 1, "bytes": )" + bytes +
            R"(, "sha256": "d4", "spec": {"model": {"model.onnx": "a1", "model.onnx.data": ")" +
            data_checksum + R"("}, "kind": "causal_lm", "dtype": "float32", "max_context": 100,)" +
            R"( "max_nodes": 16, "max_batch": 2, "capacity": 128, "profiles": [{"name": "decode",)" +
            R"( "axes": {"batch": [1, 2, 2], "nodes": [1, 1, 1]}}], "settings": {},)" +
            R"( "tensorrt": ")" + runtime.version + R"(", "compute_capability": ")" +
            runtime.compute_capability + R"(", "gpu": ")" + runtime.gpu + R"("}})");
    return plan.string();
  }
  EngineFile find(const std::string& plan = "") const { return find_engine(manifest, kHere, plan); }
  /// What is said when no engine is taken.
  std::string refusal(const std::string& plan = "") const {
    try {
      find(plan);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "";
  }
  bool refused(const std::string& text, const std::string& plan = "") const {
    return refusal(plan).find(text) != std::string::npos;
  }

  static inline int next = 0;
  fs::path path;
  ExportManifest manifest;
};

void the_engine_that_fits_is_found() {
  Folder folder;
  folder.add("old", {"10.14.0.1", "9.0", "A GPU"});
  const std::string plan = folder.add("new", kHere);
  const EngineFile file = folder.find();
  CHECK_EQUAL(file.plan, plan);
  CHECK_EQUAL(file.capacity, 128);
  CHECK_EQUAL(file.max_nodes, 16);
  CHECK(file.profiles.size() == 1 && file.profiles[0].admits({{"batch", 2}, {"nodes", 1}}));
  CHECK(!file.profiles[0].admits({{"batch", 3}, {"nodes", 1}}));
  CHECK(!file.profiles[0].admits({{"features", 1}}));
  CHECK_EQUAL(folder.find(plan).plan, plan);
}

void engines_that_do_not_fit_are_named_with_what_differs() {
  Folder folder;
  CHECK(folder.refused("no engine in"));
  const std::string old = folder.add("old", {"10.14.0.1", "8.9", "A GPU"});
  folder.add("other", kHere, "b3");
  CHECK(
      folder.refused("old.plan: TensorRT must be 10.15.1.29, got 10.14.0.1, compute capability "
                     "must be 9.0, got 8.9"));
  CHECK(folder.refused("other.plan: another model"));
  CHECK(folder.refused("old.plan does not fit: TensorRT must be 10.15.1.29", old));
}

void of_several_engines_one_must_be_named() {
  Folder folder;
  const std::string first = folder.add("first", kHere);
  folder.add("second", kHere);
  CHECK(folder.refused("plan must name one of the engines that fit: first.plan second.plan"));
  CHECK_EQUAL(folder.find(first).plan, first);
}

void broken_engines_are_refused() {
  Folder folder;
  const std::string plan = folder.add("one", kHere, "b2", "5");
  CHECK(folder.refused("must have 5 bytes"));
  folder.add("one", kHere);
  CHECK_EQUAL(folder.refusal(), "");
  fs::remove(plan);
  CHECK(folder.refused("must be there, as", plan));
  folder.add("one", kHere);
  const fs::path description = folder.path / "engines" / "one.json";
  Folder::write(description, R"({"format": "treespec-engine", "version": 1, "bytes": 4})");
  CHECK(folder.refused("must be complete"));
  Folder::write(description, R"({"format": "treespec-export", "version": 1})");
  CHECK(folder.refused("must be of format treespec-engine and version 1"));
  Folder::write(description, "{");
  CHECK(folder.refused("must be a JSON file"));
  fs::remove(description);
  CHECK(folder.refused("one.json must be there"));
}

}  // namespace

int main() {
  texts_are_those_of_the_graph_for_every_drafter();
  an_output_that_nobody_reads_has_its_memory();
  runs_take_the_narrowest_profile();
  a_run_that_recurs_is_replayed();
  without_graphs_nothing_is_captured();
  a_capture_that_fails_is_said_once();
  a_run_that_fails_does_not_spoil_the_next_text();
  engines_that_do_not_write_in_place_are_refused();
  rows_behind_the_cache_are_refused();
  sizes_that_fit_no_profile_are_refused();
  contexts_of_memory_that_was_used_longest_ago_are_forgotten();
  memory_that_is_not_aligned_is_refused();
  texts_at_a_time_are_as_good_as_alone();
  more_texts_at_a_time_than_the_engine_takes_are_refused();
  the_engine_that_fits_is_found();
  engines_that_do_not_fit_are_named_with_what_differs();
  of_several_engines_one_must_be_named();
  broken_engines_are_refused();
}
