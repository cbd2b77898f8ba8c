// SPDX-License-Identifier: Apache-2.0
// treespec.json: what is read, and what is refused, with words that say why.
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "treespec/exported_model.h"

namespace {

using namespace treespec;  // NOLINT
namespace fs = std::filesystem;

const std::string kTarget = R"({
  "format": "treespec-export", "version": 1, "role": "target", "kind": "causal_lm",
  "model": "tiny", "model_type": "llama", "dtype": "float16", "cache_style": "new_rows",
  "vocab_size": 64, "max_context": 160, "max_nodes": 32,
  "masks": [{"name": "attention_mask", "window": null}, {"name": "masked", "window": 5}],
  "cache": [{"name": "cache_keys_0", "output": "new_keys_0", "heads": 2, "width": 8}],
  "eos_token_ids": [1, 2], "layers": [0, 1], "layers_width": 64, "block": null,
  "graph": "model.onnx", "opset": 24, "treespec_version": "0.1.0",
  "files": {"model.onnx": {"bytes": 5, "sha256": "not read"}}})";

const std::string kBlock =
    R"({"depth": 3, "slots": 4, "width": 5, "num_previous": 2, "predicts_next": false,
        "causal": true, "windows_causal": false})";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t place = text.find(from);
  CHECK(place != std::string::npos);
  return text.replace(place, from.size(), to);
}

/// A folder with a manifest and a graph of five bytes, removed at the end.
class Folder {
 public:
  explicit Folder(const std::string& manifest) {
    fs::create_directory(path_);
    std::ofstream(path_ / "treespec.json") << manifest;
    std::ofstream(path_ / "model.onnx") << "graph";
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { fs::remove_all(path_); }
  std::string name() const { return path_.string(); }

 private:
  fs::path path_ = fs::temp_directory_path() /
                   ("treespec-manifest-test-" + std::to_string(reinterpret_cast<uintptr_t>(this)));
};

void a_manifest_is_read_in_full() {
  const Folder folder(kTarget);
  const ExportManifest m = ExportManifest::load(folder.name());
  CHECK_EQUAL(m.folder, folder.name());
  CHECK(m.role == ModelRole::kTarget && m.kind == ModelKind::kCausalLm);
  CHECK(m.dtype == DType::kFloat16 && m.cache_style == CacheStyle::kNewRows);
  CHECK(m.vocab_size == 64 && m.max_context == 160 && m.max_nodes == 32);
  CHECK(m.masks.size() == 2 && m.masks[0].window == 0 && m.masks[1].window == 5);
  CHECK(m.cache.size() == 1 && m.cache[0].output == "new_keys_0");
  CHECK(m.cache[0].heads == 2 && m.cache[0].width == 8);
  CHECK((m.eos_token_ids == std::vector<int32_t>{1, 2}));
  CHECK((m.layers == std::vector<int32_t>{0, 1}) && m.layers_width == 64);
  CHECK(!m.block && m.graph == "model.onnx");
}

void the_shape_of_a_block_drafter_is_read() {
  const std::string drafter =
      replaced(replaced(kTarget, "\"causal_lm\"", "\"dflash\""), "\"target\"", "\"drafter\"");
  const Folder folder(replaced(drafter, "\"block\": null", "\"block\": " + kBlock));
  const ExportManifest m = ExportManifest::load(folder.name());
  CHECK(m.role == ModelRole::kDrafter && m.kind == ModelKind::kDFlash && m.block);
  CHECK(m.block->depth == 3 && m.block->slots == 4 && m.block->width == 5);
  CHECK(m.block->num_previous == 2 && m.block->causal && !m.block->windows_causal);
}

void check_refused(const std::string& manifest, const std::string& word) {
  const Folder folder(manifest);
  try {
    ExportManifest::load(folder.name());
  } catch (const std::runtime_error& error) {
    CHECK(std::string(error.what()).find(word) != std::string::npos);
    return;
  }
  test::fail(__FILE__, __LINE__, "a manifest was taken, but should be refused for its " + word);
}

void what_is_no_manifest_is_refused() {
  CHECK_THROWS(std::runtime_error, ExportManifest::load("/no/such/folder"));
  check_refused("", "complete");
  check_refused("[]", "complete");
  check_refused(replaced(kTarget, "treespec-export", "another"), "format");
  check_refused(replaced(kTarget, "\"version\": 1", "\"version\": 2"), "version");
  check_refused(replaced(kTarget, "\"vocab_size\": 64, ", ""), "vocab_size");
  check_refused(replaced(kTarget, "\"vocab_size\": 64", "\"vocab_size\": 0"), "vocab_size");
  check_refused(replaced(kTarget, "\"vocab_size\": 64", "\"vocab_size\": \"64\""), "complete");
  check_refused(replaced(kTarget, "\"target\"", "\"teacher\""), "role");
  check_refused(replaced(kTarget, "causal_lm", "encoder"), "kind");
  check_refused(replaced(kTarget, "float16", "int8"), "dtype");
  check_refused(replaced(kTarget, "new_rows", "paged"), "cache_style");
  check_refused(replaced(kTarget, "\"heads\": 2", "\"heads\": 0"), "heads");
  check_refused(replaced(kTarget, "\"layers_width\": 64", "\"layers_width\": 0"), "layers_width");
  check_refused(replaced(kTarget, "\"block\": null", "\"block\": " + kBlock), "block");
  check_refused(replaced(kTarget, "\"causal_lm\"", "\"dflash\""), "block");
}

void a_file_that_is_missing_or_cut_is_refused() {
  check_refused(replaced(kTarget, "\"bytes\": 5", "\"bytes\": 6"), "6 bytes");
  check_refused(replaced(kTarget, "{\"model.onnx\": {", "{\"model.onnx.data\": {"),
                "model.onnx.data");
}

}  // namespace

int main() {
  a_manifest_is_read_in_full();
  the_shape_of_a_block_drafter_is_read();
  what_is_no_manifest_is_refused();
  a_file_that_is_missing_or_cut_is_refused();
  return 0;
}
