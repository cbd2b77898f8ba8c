// SPDX-License-Identifier: Apache-2.0
// Engines on disk: KEY.plan, and KEY.json that says what it was built for. The format is
// export/engine_cache.py's.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "treespec/exported_model.h"

namespace treespec::tensorrt {

/// Shapes that an engine is tuned for: least and largest size by axis of the graph.
struct Profile {
  struct Range {
    int64_t least = 0, most = 0;
  };
  std::string name;
  std::map<std::string, Range, std::less<>> axes;

  bool admits(const std::map<std::string, int64_t>& sizes) const;
};

/// What an engine is, and where.
struct EngineFile {
  std::string plan;
  int64_t bytes = 0;
  std::map<std::string, std::string> model;  ///< checksums of graph and weights by file name
  std::string version, compute_capability, gpu;
  int32_t max_context = 0, max_nodes = 0;
  int64_t max_batch = 0, capacity = 0;
  std::vector<Profile> profiles;
};

/// What runs here.
struct Runtime {
  std::string version, compute_capability, gpu;
};

/// The description of a plan. Throws std::runtime_error when there is none, or it is of another
/// format, incomplete, or the plan is missing or of another size.
EngineFile read_engine_file(const std::string& plan);

/// The engine of a model that fits the runtime: `plan`, or the only one in the folder `engines`.
/// Throws std::runtime_error when there is none or several, naming them and what differs.
EngineFile find_engine(const ExportManifest& manifest, const Runtime& runtime,
                       const std::string& plan);

}  // namespace treespec::tensorrt
