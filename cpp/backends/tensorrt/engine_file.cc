// SPDX-License-Identifier: Apache-2.0
#include "engine_file.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

#include "treespec/error.h"

namespace treespec::tensorrt {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* kFormat = "treespec-engine";
constexpr int kVersion = 1;

template <class... Parts>
[[noreturn]] void fail(Parts&&... parts) {
  throw std::runtime_error(detail::message("TensorRtModel: ", std::forward<Parts>(parts)...));
}

Json read_json(const fs::path& path) {
  std::ifstream file(path);
  if (!file) fail(path.string(), " must be there");
  try {
    return Json::parse(file);
  } catch (const Json::exception& error) {
    fail(path.string(), " must be a JSON file: ", error.what());
  }
}

Profile read_profile(const Json& fields) {
  Profile profile;
  fields.at("name").get_to(profile.name);
  for (const auto& [axis, sizes] : fields.at("axes").items()) {
    profile.axes[axis] = {sizes.at(0).get<int64_t>(), sizes.at(2).get<int64_t>()};
  }
  return profile;
}

EngineFile read_fields(const Json& fields) {
  EngineFile file;
  fields.at("bytes").get_to(file.bytes);
  const Json& spec = fields.at("spec");
  spec.at("model").get_to(file.model);
  spec.at("tensorrt").get_to(file.version);
  spec.at("compute_capability").get_to(file.compute_capability);
  spec.at("gpu").get_to(file.gpu);
  spec.at("max_context").get_to(file.max_context);
  spec.at("max_nodes").get_to(file.max_nodes);
  spec.at("max_batch").get_to(file.max_batch);
  spec.at("capacity").get_to(file.capacity);
  for (const Json& one : spec.at("profiles")) file.profiles.push_back(read_profile(one));
  return file;
}

/// Checksums of the files that an engine is made of, from the manifest.
std::map<std::string, std::string> model_files(const ExportManifest& manifest) {
  const Json fields = read_json(fs::path(manifest.folder) / "treespec.json");
  std::map<std::string, std::string> files;
  for (const auto& [name, file] : fields.at("files").items()) {
    if (name.rfind(manifest.graph, 0) == 0) files[name] = file.at("sha256");
  }
  return files;
}

/// What keeps an engine from being used; empty: nothing.
std::string differences(const EngineFile& file, const Runtime& runtime,
                        const std::map<std::string, std::string>& model) {
  std::string text;
  const auto compare = [&](const char* name, const std::string& found, const std::string& wanted) {
    if (found == wanted) return;
    text += detail::message(text.empty() ? "" : ", ", name, " must be ", wanted, ", got ", found);
  };
  compare("TensorRT", file.version, runtime.version);
  compare("compute capability", file.compute_capability, runtime.compute_capability);
  compare("GPU", file.gpu, runtime.gpu);
  if (file.model != model) text += text.empty() ? "another model" : ", another model";
  return text;
}

}  // namespace

bool Profile::admits(const std::map<std::string, int64_t>& sizes) const {
  return std::all_of(sizes.begin(), sizes.end(), [&](const auto& one) {
    const auto axis = axes.find(one.first);
    return axis != axes.end() && axis->second.least <= one.second &&
           one.second <= axis->second.most;
  });
}

EngineFile read_engine_file(const std::string& plan) {
  const fs::path path = fs::path(plan).replace_extension(".json");
  const Json fields = read_json(path);
  EngineFile file;
  try {
    if (fields.at("format") != kFormat || fields.at("version") != kVersion) {
      fail(path.string(), " must be of format ", kFormat, " and version ", kVersion);
    }
    file = read_fields(fields);
  } catch (const Json::exception& error) {
    fail(path.string(), " must be complete: ", error.what());
  }
  std::error_code missing;
  const auto bytes = fs::file_size(plan, missing);
  if (missing) fail(plan, " must be there, as ", path.string(), " says");
  if (static_cast<int64_t>(bytes) != file.bytes) {
    fail(plan, " must have ", file.bytes, " bytes, as ", path.string(), " says, got ", bytes);
  }
  file.plan = plan;
  return file;
}

EngineFile find_engine(const ExportManifest& manifest, const Runtime& runtime,
                       const std::string& plan) {
  const auto model = model_files(manifest);
  if (!plan.empty()) {
    EngineFile file = read_engine_file(plan);
    const std::string found = differences(file, runtime, model);
    if (!found.empty()) fail(plan, " does not fit: ", found);
    return file;
  }
  const fs::path folder = fs::path(manifest.folder) / "engines";
  std::vector<fs::path> plans;
  if (fs::is_directory(folder)) {
    for (const auto& entry : fs::directory_iterator(folder)) {
      if (entry.path().extension() == ".plan") plans.push_back(entry.path());
    }
  }
  std::sort(plans.begin(), plans.end());
  std::vector<EngineFile> fitting;
  std::string others;
  for (const fs::path& one : plans) {
    EngineFile file = read_engine_file(one.string());
    const std::string found = differences(file, runtime, model);
    if (found.empty()) {
      fitting.push_back(std::move(file));
    } else {
      others += detail::message("; ", one.filename().string(), ": ", found);
    }
  }
  if (fitting.empty()) {
    fail("no engine in ", folder.string(), " fits TensorRT ", runtime.version, " and ", runtime.gpu,
         "; build one with `treespec export --format tensorrt`", others);
  }
  if (fitting.size() > 1) {
    std::string names;
    for (const EngineFile& one : fitting) names += " " + fs::path(one.plan).filename().string();
    fail("plan must name one of the engines that fit:", names);
  }
  return std::move(fitting.front());
}

}  // namespace treespec::tensorrt
