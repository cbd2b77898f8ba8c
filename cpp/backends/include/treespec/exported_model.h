// SPDX-License-Identifier: Apache-2.0
// Models that `treespec export` has written, as TargetModel and DraftModel, on whatever runtime
// runs their graphs: onnxruntime.h and tensorrt.h load them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "treespec/array_view.h"
#include "treespec/decoder.h"

namespace treespec {

/// A boolean mask input of a graph, `[B, 1, N, keys]`.
struct MaskInput {
  std::string name;
  int32_t window = 0;  ///< > 0: keys with query position - key position >= window are hidden
};

/// Keys or values of a layer.
struct CacheInput {
  std::string name;    ///< input, `[B, heads, rows, width]`
  std::string output;  ///< the same with the new rows written, or the new rows alone
  int64_t heads = 0;
  int64_t width = 0;
};

/// What a DFlash graph is built for.
struct BlockShape {
  int32_t depth = 0;            ///< D: depths a block has guesses for
  int32_t slots = 0;            ///< T: slots of a block, the root's included
  int32_t width = 0;            ///< K: ranked children of a row
  int32_t num_previous = 0;     ///< R: previous tokens told apart; 0: marginals, one row a depth
  bool causal = false;          ///< a slot sees earlier slots only
  bool windows_causal = false;  ///< so it does in layers with a window
};

enum class ModelRole : uint8_t { kTarget, kDrafter };
enum class ModelKind : uint8_t { kCausalLm, kDFlash };
/// kInPlace: the graph writes the new rows into the cache it is given. kNewRows: it gives them out.
enum class CacheStyle : uint8_t { kInPlace, kNewRows };

/// `treespec.json` of an exported folder.
struct ExportManifest {
  std::string folder;  ///< where it was read from
  ModelRole role = ModelRole::kTarget;
  ModelKind kind = ModelKind::kCausalLm;
  std::string model;              ///< where it came from
  DType dtype = DType::kFloat32;  ///< of weights, cache, logits and features
  CacheStyle cache_style = CacheStyle::kInPlace;
  int32_t vocab_size = 0;
  int32_t max_context = 0;  ///< positions it may be asked for
  int32_t max_nodes = 0;    ///< most nodes of a tree, its root included
  std::vector<MaskInput> masks;
  std::vector<CacheInput> cache;
  std::vector<int32_t> eos_token_ids;
  /// Target layers whose outputs are the features, `layers_width` numbers a row: given by a target,
  /// read by a drafter.
  std::vector<int32_t> layers;
  int64_t layers_width = 0;
  std::optional<BlockShape> block;  ///< of kDFlash
  std::string graph;                ///< file name of the ONNX graph

  /// Throws std::runtime_error when there is none, or it is of another format or version,
  /// incomplete, or a file it names is missing or of another size.
  static ExportManifest load(const std::string& folder);
};

class GraphRunner;

/// A loaded graph with its weights. Shared, immutable, and safe to use from several threads.
class ExportedModel {
 public:
  virtual ~ExportedModel() = default;
  const ExportManifest& manifest() const { return manifest_; }
  /// A place to run it, for one sequence; what a runtime has to implement (graph_runner.h).
  virtual std::unique_ptr<GraphRunner> make_runner() const = 0;

 protected:
  explicit ExportedModel(ExportManifest manifest) : manifest_(std::move(manifest)) {}

 private:
  ExportManifest manifest_;
};

/// Settings of ExportedTarget.
struct ExportedTargetOptions {
  /// Whether `states` gives features, when the model has them. Without a drafter that reads them
  /// they are not worth their copies.
  bool features = true;
  int32_t prefill_rows = 256;  ///< >= 1; most prompt tokens of a forward
};

/// An exported target: one sequence with its cache, which grows with the text and is used again by
/// the next generation. One thread at a time; models are shared between threads.
class ExportedTarget final : public TargetModel {
 public:
  /// Throws InvalidArgument unless the model was exported as a target.
  explicit ExportedTarget(std::shared_ptr<const ExportedModel> model,
                          const ExportedTargetOptions& options = {});
  ~ExportedTarget() override;
  int32_t vocab_size() const override;
  int32_t max_context() const override;
  /// These throw InvalidArgument for positions beyond the manifest's max_context, trees of more
  /// than its max_nodes, token ids outside the vocabulary, and a step that does not continue what
  /// is committed; std::runtime_error when the runtime fails. The next `prefill` starts afresh.
  RowsView prefill(ArrayView<const int32_t> token_ids) override;
  RowsView forward(const TreeStep& step) override;
  void commit(ArrayView<const int32_t> nodes) override;
  /// Rows `[.., layers_width]` of the manifest's dtype.
  RowsView states() override;
  const ExportManifest& manifest() const;

 private:
  std::shared_ptr<const ExportedModel> model_;
  std::unique_ptr<TargetModel> target_;
};

/// Settings of ExportedDraft.
struct ExportedDraftOptions {
  /// Temperature of the draft law, > 0. Nothing: 1 for deterministic trees, which only rank tokens;
  /// the request's temperature, top-k and top-p for sampled ones.
  std::optional<double> temperature;
  int32_t prefill_rows = 256;  ///< >= 1; most committed rows of a forward
};

/// An exported drafter: one sequence. Autoregressive models are an Expander with one forward a
/// level; DFlash gives Marginals, TreeFlash Transitions, both in one forward. One thread at a time.
class ExportedDraft final : public DraftModel {
 public:
  /// `target`: the manifest of the model it drafts for. Throws InvalidArgument unless the model was
  /// exported as a drafter and reads what the target gives: the same layers, of the same dtype.
  /// Token ids that the target lacks are never proposed, those that the drafter lacks are read as
  /// its token 0.
  ExportedDraft(std::shared_ptr<const ExportedModel> model, const ExportManifest& target,
                const ExportedDraftOptions& options = {});
  ~ExportedDraft() override;
  int32_t vocab_size() const override;
  int32_t max_context() const override;
  /// These throw InvalidArgument for states of another shape or dtype than the model reads, and for
  /// positions beyond its max_context; std::runtime_error when the runtime fails. The next `begin`
  /// starts afresh.
  void begin(ArrayView<const int32_t> prompt, const RowsView& states) override;
  CandidateSource& draft(const DraftRequest& request) override;
  void observe(ArrayView<const int32_t> token_ids, const RowsView& states) override;
  const ExportManifest& manifest() const;

 private:
  std::shared_ptr<const ExportedModel> model_;
  std::unique_ptr<DraftModel> draft_;  // of the model's kind
};

}  // namespace treespec
