// SPDX-License-Identifier: Apache-2.0
// Exported models on ONNX Runtime. Needs the component `onnxruntime` of the CMake package.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "treespec/exported_model.h"

namespace treespec {

/// How a graph is run.
struct OrtOptions {
  /// Threads of one operator, the caller's included; 0: as many as there are cores. Sequences that
  /// run side by side share them.
  int32_t threads = 0;
  /// Whether idle threads wait busily: faster where nothing else runs, many times slower where
  /// cores are shared.
  bool spinning = false;
};

/// A folder of `treespec export` in an ONNX Runtime session on the CPU.
class OrtModel final : public ExportedModel {
 public:
  /// Throws InvalidArgument for bad options, std::runtime_error for a folder that is not an
  /// exported model or a graph that ONNX Runtime refuses, Unsupported for bfloat16, which has no
  /// kernels on a CPU.
  static std::shared_ptr<const OrtModel> load(const std::string& folder,
                                              const OrtOptions& options = {});
  ~OrtModel() override;
  std::unique_ptr<GraphRunner> make_runner() const override;

 private:
  struct Session;
  OrtModel(ExportManifest manifest, const OrtOptions& options);
  std::unique_ptr<Session> session_;
};

/// One sequence of a target, and of a drafter: they work on any runtime's models.
using OrtTarget = ExportedTarget;
using OrtDraft = ExportedDraft;

}  // namespace treespec
