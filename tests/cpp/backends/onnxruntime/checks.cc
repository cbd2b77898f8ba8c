// SPDX-License-Identifier: Apache-2.0
// OrtModel, OrtTarget and OrtDraft as a service uses them. Arguments: folders of an exported
// target, of an autoregressive drafter, of a block drafter that reads its features, and one to
// write to.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "treespec/batch_decoder.h"
#include "treespec/decoder.h"
#include "treespec/error.h"
#include "treespec/onnxruntime.h"

namespace {

using namespace treespec;  // NOLINT
namespace fs = std::filesystem;
using Tokens = std::vector<int32_t>;

struct Models {
  std::shared_ptr<const OrtModel> target, causal, block;
};

Tokens prompt(int32_t number) {
  Tokens token_ids;
  for (int32_t i = 0; i < 12 + number; ++i) token_ids.push_back(3 + (i * i + 31 * number) % 60);
  return token_ids;
}

GenerateOptions options(int32_t max_new_tokens, uint64_t seed = 5) {
  GenerateOptions one;
  one.max_new_tokens = max_new_tokens;
  one.sampling.temperature = 0.8;
  one.seed = seed;
  return one;
}

DecoderOptions recipe() {
  DecoderOptions one;
  one.node_budget = 8;
  return one;
}

void a_generation_ends_where_it_is_told_and_the_next_starts_afresh(const Models& models) {
  OrtTarget target(models.target);
  for (const auto& drafter : {models.causal, models.block}) {
    OrtDraft draft(drafter, models.target->manifest());
    const SpeculativeDecoder decoder(target, &draft, recipe());
    const Tokens whole = decoder.generate(prompt(0), options(40)).token_ids;
    CHECK_EQUAL(whole.size(), size_t{40});

    GenerateOptions stopped = options(40);
    stopped.stop_token_ids = {whole[20]};
    GenerateResult result = decoder.generate(prompt(0), stopped);
    CHECK(result.stop_reason == StopReason::kStopToken);
    CHECK(result.token_ids.size() <= 21 && result.token_ids.back() == whole[20]);
    CHECK(std::equal(result.token_ids.begin(), result.token_ids.end(), whole.begin()));

    GenerateOptions cancelled = options(40);
    int64_t received = 0;
    cancelled.on_tokens = [&](ArrayView<const int32_t> token_ids) {
      return (received += token_ids.size()) < 10;
    };
    result = decoder.generate(prompt(0), cancelled);
    CHECK(result.stop_reason == StopReason::kCancelled);
    CHECK_EQUAL(static_cast<int64_t>(result.token_ids.size()), received);

    GenerateOptions failing = options(40);
    failing.stop_when = [](ArrayView<const int32_t> output) -> bool {
      if (output.size() > 15) throw std::logic_error("the callback failed");
      return false;
    };
    CHECK_THROWS(std::logic_error, decoder.generate(prompt(0), failing));
    CHECK_THROWS(InvalidArgument, decoder.generate(prompt(0), options(100000)));
    CHECK(decoder.generate(prompt(0), options(40)).token_ids == whole);
  }
}

/// Every thread with a target and a drafter of its own, all on the same models.
void threads_share_models(const Models& models) {
  constexpr int32_t kThreads = 4;
  const auto generate = [&](int32_t number) {
    OrtTarget target(models.target);
    OrtDraft draft(number % 2 == 0 ? models.causal : models.block, models.target->manifest());
    const SpeculativeDecoder decoder(target, &draft, recipe());
    return decoder.generate(prompt(number), options(30)).token_ids;
  };
  std::vector<Tokens> serial;
  for (int32_t i = 0; i < kThreads; ++i) serial.push_back(generate(i));
  std::vector<Tokens> side_by_side(kThreads);
  std::vector<std::thread> threads;
  for (int32_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] { side_by_side[static_cast<size_t>(i)] = generate(i); });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(side_by_side == serial);
}

void threads_share_a_batch(const Models& models) {
  for (const auto& drafter : {models.causal, models.block}) {
    BatchOptions settings;
    settings.size = 2;
    BatchDecoder batch(models.target, drafter, recipe(), settings);
    std::vector<Tokens> texts(3);
    std::vector<std::thread> threads;
    for (int32_t i = 0; i < 3; ++i) {
      threads.emplace_back([&, i] {
        texts[static_cast<size_t>(i)] = batch.generate(prompt(i), options(25)).token_ids;
      });
    }
    for (std::thread& thread : threads) thread.join();
    OrtTarget target(models.target);
    const SpeculativeDecoder plain(target, nullptr);
    for (int32_t i = 0; i < 3; ++i) {
      CHECK(texts[static_cast<size_t>(i)] == plain.generate(prompt(i), options(25)).token_ids);
    }
  }
}

void check_refused(const std::string& word, const std::function<void()>& work) {
  try {
    work();
  } catch (const std::exception& error) {
    if (std::string(error.what()).find(word) != std::string::npos) return;
    test::fail(__FILE__, __LINE__, "no word of " + word + " in: " + error.what());
  }
  test::fail(__FILE__, __LINE__, "nothing is refused for " + word);
}

void wrong_folders_roles_and_pairs_are_refused(const Models& models, const fs::path& folder,
                                               const fs::path& scratch) {
  const ExportManifest& manifest = models.target->manifest();
  check_refused("treespec export", [&] { OrtModel::load(scratch.string()); });
  check_refused("threads", [&] { OrtModel::load(folder.string(), {-1}); });
  check_refused("exported as one", [&] { OrtTarget{models.causal}; });
  check_refused("exported as one", [&] { OrtDraft(models.target, manifest); });
  ExportManifest without_features = manifest;
  without_features.layers.clear();
  check_refused("features", [&] { OrtDraft(models.block, without_features); });
  ExportManifest small = manifest;
  small.vocab_size = 50;
  OrtDraft cut(models.causal, small);
  CHECK_EQUAL(cut.vocab_size(), 50);

  // A manifest beside another graph, of the same size.
  const fs::path copy = scratch / "copy";
  fs::create_directory(copy);
  for (const auto& file : fs::directory_iterator(folder)) {
    if (file.is_regular_file()) fs::copy(file.path(), copy / file.path().filename());
  }
  const auto size = fs::file_size(copy / "model.onnx");
  std::ofstream(copy / "model.onnx") << std::string(size, 'x');
  check_refused("ONNX Runtime", [&] { OrtModel::load(copy.string()); });
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 5) throw std::invalid_argument("usage: ort_check TARGET CAUSAL BLOCK SCRATCH");
  const auto load = [](const char* folder) { return OrtModel::load(folder, {1}); };
  const Models models{load(argv[1]), load(argv[2]), load(argv[3])};
  a_generation_ends_where_it_is_told_and_the_next_starts_afresh(models);
  threads_share_models(models);
  threads_share_a_batch(models);
  wrong_folders_roles_and_pairs_are_refused(models, argv[1], argv[4]);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "ort_check: %s\n", error.what());
  return 1;
}
