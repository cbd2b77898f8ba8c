// SPDX-License-Identifier: Apache-2.0
// Exported models as TensorRT engines. Needs the component `tensorrt` of the CMake package.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "treespec/exported_model.h"

namespace treespec {

/// How an engine is found and run.
struct TensorRtOptions {
  int32_t device = 0;  ///< number of the GPU
  /// The plan to load, with its description beside it; empty: the one of the folder `engines` in
  /// the model's that fits. Loading a plan can run code: load only what you have built yourself.
  std::string plan;
  bool cuda_graphs = true;  ///< replay a run whose shapes and addresses recur as one CUDA graph
};

/// A folder of `treespec export --format tensorrt`, whose engine was built for this GPU and this
/// version of TensorRT, 10.15 or later.
class TensorRtModel final : public ExportedModel {
 public:
  /// Throws InvalidArgument for bad options; std::runtime_error for a folder that is not an
  /// exported model, when no engine fits (with what differs) or several do, or TensorRT refuses.
  static std::shared_ptr<const TensorRtModel> load(const std::string& folder,
                                                   const TensorRtOptions& options = {});
  ~TensorRtModel() override;
  /// Has a stream, buffers and execution contexts of its own; the weights are shared.
  std::unique_ptr<GraphRunner> make_runner() const override;

 private:
  struct Loaded;
  TensorRtModel(ExportManifest manifest, std::unique_ptr<Loaded> loaded);
  std::unique_ptr<Loaded> loaded_;
};

/// One sequence of a target, and of a drafter: they work on any runtime's models.
using TensorRtTarget = ExportedTarget;
using TensorRtDraft = ExportedDraft;

}  // namespace treespec
