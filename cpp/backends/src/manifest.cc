// SPDX-License-Identifier: Apache-2.0
// treespec.json; the format is export/manifest.py's.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "treespec/error.h"
#include "treespec/exported_model.h"

namespace treespec {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* kFileName = "treespec.json";
constexpr const char* kFormat = "treespec-export";
constexpr int kVersion = 1;

template <class... Parts>
[[noreturn]] void fail(Parts&&... parts) {
  throw std::runtime_error(detail::message("ExportManifest: ", std::forward<Parts>(parts)...));
}

/// One of the words that a field may be.
template <class T>
T choice(const Json& fields, const char* name,
         std::initializer_list<std::pair<const char*, T>> words) {
  const auto found = fields.at(name).get<std::string>();
  for (const auto& [word, value] : words) {
    if (found == word) return value;
  }
  fail(name, " must be one this version knows, got '", found, "'");
}

BlockShape block_shape(const Json& fields) {
  BlockShape block;
  fields.at("depth").get_to(block.depth);
  fields.at("slots").get_to(block.slots);
  fields.at("width").get_to(block.width);
  fields.at("num_previous").get_to(block.num_previous);
  fields.at("causal").get_to(block.causal);
  fields.at("windows_causal").get_to(block.windows_causal);
  return block;
}

ExportManifest read(const Json& fields) {
  ExportManifest m;
  m.role = choice<ModelRole>(fields, "role",
                             {{"target", ModelRole::kTarget}, {"drafter", ModelRole::kDrafter}});
  m.kind = choice<ModelKind>(fields, "kind",
                             {{"causal_lm", ModelKind::kCausalLm}, {"dflash", ModelKind::kDFlash}});
  m.dtype = choice<DType>(
      fields, "dtype",
      {{"float32", DType::kFloat32}, {"float16", DType::kFloat16}, {"bfloat16", DType::kBFloat16}});
  m.cache_style =
      choice<CacheStyle>(fields, "cache_style",
                         {{"in_place", CacheStyle::kInPlace}, {"new_rows", CacheStyle::kNewRows}});
  fields.at("model").get_to(m.model);
  fields.at("vocab_size").get_to(m.vocab_size);
  fields.at("max_context").get_to(m.max_context);
  fields.at("max_nodes").get_to(m.max_nodes);
  for (const Json& one : fields.at("masks")) {
    const Json& window = one.at("window");
    m.masks.push_back({one.at("name"), window.is_null() ? 0 : window.get<int32_t>()});
  }
  for (const Json& one : fields.at("cache")) {
    m.cache.push_back({one.at("name"), one.at("output"), one.at("heads"), one.at("width")});
  }
  fields.at("eos_token_ids").get_to(m.eos_token_ids);
  fields.at("layers").get_to(m.layers);
  fields.at("layers_width").get_to(m.layers_width);
  if (!fields.at("block").is_null()) m.block = block_shape(fields.at("block"));
  fields.at("graph").get_to(m.graph);
  return m;
}

void check(const ExportManifest& m) {
  const auto positive = [](const char* name, int64_t value) {
    if (value < 1) fail(name, " must be at least 1, got ", value);
  };
  positive("vocab_size", m.vocab_size);
  positive("max_context", m.max_context);
  positive("max_nodes", m.max_nodes);
  if (m.masks.empty() || m.cache.empty()) fail("masks and cache must not be empty");
  for (const CacheInput& one : m.cache) {
    positive("heads of a cache", one.heads);
    positive("width of a cache", one.width);
  }
  if (m.layers.empty() != (m.layers_width == 0)) {
    fail("layers_width must be 0 without layers and positive with, got ", m.layers_width);
  }
  if ((m.kind == ModelKind::kDFlash) != m.block.has_value()) {
    fail("block must be given for kind 'dflash' and for no other");
  }
  if (!m.block) return;
  positive("layers_width of a dflash model", m.layers_width);
  positive("depth", m.block->depth);
  positive("slots", m.block->slots);
  positive("width", m.block->width);
}

/// Sizes alone: a checksum of all weights would take longer than loading them.
void check_files(const Json& fields, const fs::path& folder) {
  for (const auto& [name, recorded] : fields.at("files").items()) {
    std::error_code error;
    const std::uintmax_t size = fs::file_size(folder / name, error);
    if (error) fail((folder / name).string(), " must be there, as ", kFileName, " says");
    const auto bytes = recorded.at("bytes").get<std::uintmax_t>();
    if (size != bytes) fail((folder / name).string(), " must have ", bytes, " bytes, got ", size);
  }
}

}  // namespace

ExportManifest ExportManifest::load(const std::string& folder) {
  const fs::path path = fs::path(folder) / kFileName;
  std::ifstream file(path);
  if (!file) {
    fail("folder must hold a model that `treespec export` has written, but there is no ",
         path.string());
  }
  try {
    const Json fields = Json::parse(file);
    const auto format = fields.at("format").get<std::string>();
    if (format != kFormat) fail("format must be '", kFormat, "', got '", format, "'");
    const auto version = fields.at("version").get<int>();
    if (version != kVersion) {
      fail("version must be ", kVersion, ", which this treespec reads, got ", version);
    }
    ExportManifest manifest = read(fields);
    check(manifest);
    check_files(fields, folder);
    manifest.folder = folder;
    return manifest;
  } catch (const Json::exception& error) {
    fail(path.string(), " must be complete: ", error.what());
  }
}

}  // namespace treespec
