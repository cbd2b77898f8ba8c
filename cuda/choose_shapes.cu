// SPDX-License-Identifier: Apache-2.0
// The selector's network: a block takes a sequence, a thread some outputs of every layer. An output
// adds its inputs in ascending order, as on the CPU, and neighbouring threads read neighbouring
// weights.
#include <algorithm>
#include <cstdint>
#include <simt.cuh>

#include "block_reduce.cuh"
#include "checks.h"
#include "shared/ranking.hd.h"
#include "shared/selector.hd.h"
#include "treespec/device/selector.h"

namespace treespec::device {
namespace {

struct ChooseShape {
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / simt::kWarpSize;

  Selector selector;
  SelectorInputs inputs;
  int32_t* chosen;
  uint32_t* status;
  int32_t widest;  // of the rows that pass through shared memory

  TREESPEC_DEVICE void operator()() const {
    auto* words = reinterpret_cast<uint64_t*>(simt::shared_memory());
    auto* row = reinterpret_cast<float*>(words + kWarps);
    float* next = row + widest;
    const float* parameters = join(selector.parameters, row, next);
    const SelectorSizes& sizes = selector.sizes;
    int32_t inner = sizes.num_states * sizes.projection_width + sizes.num_scalars;
    for (int32_t l = 0; l < sizes.num_layers; ++l) {
      const int32_t outputs = sizes.layer_width[l];
      const float* bias = parameters + int64_t{inner} * outputs;
      const bool last = l + 1 == sizes.num_layers;
      for (int32_t j = simt::thread(); j < outputs; j += kThreads) {
        const float sum = linear(row, inner, outputs, parameters, bias, j);
        next[j] = last ? sum : shared::gelu(sum);
      }
      simt::sync_block();
      parameters = bias + outputs;
      inner = outputs;
      float* const spent = row;
      row = next;
      next = spent;
    }
    write_best(row, words);
  }

 private:
  TREESPEC_DEVICE static float linear(const float* x, int32_t inputs_of, int32_t outputs,
                                      const float* weight, const float* bias, int32_t j) {
    float sum = bias[j];
    for (int32_t i = 0; i < inputs_of; ++i) sum += x[i] * weight[int64_t{i} * outputs + j];
    return sum;
  }

  /// Fills `row` with normalised states and standardised scalars; what parameters come after.
  TREESPEC_DEVICE const float* join(const float* parameters, float* row, float* projected) const {
    const SelectorSizes& sizes = selector.sizes;
    const int32_t width = sizes.projection_width;
    const int64_t b = simt::block();
    for (int32_t s = 0; s < sizes.num_states; ++s) {
      const int32_t size = sizes.state_width[s];
      const float* state = inputs.state[s] + b * size;
      const float* bias = parameters + int64_t{size} * width;
      for (int32_t j = simt::thread(); j < width; j += kThreads) {
        projected[j] = linear(state, size, width, parameters, bias, j);
      }
      simt::sync_block();
      // Every thread sums for itself: a few hundred numbers in one order, and no exchange.
      const shared::Moments of = shared::moments(projected, width);
      const float* scale = bias + width;
      const float* shift = scale + width;
      for (int32_t j = simt::thread(); j < width; j += kThreads) {
        row[s * width + j] = shared::normalised(projected[j], of, scale[j], shift[j]);
      }
      simt::sync_block();
      parameters = shift + width;
    }
    const float* inverse_deviation = parameters + sizes.num_scalars;
    for (int32_t i = simt::thread(); i < sizes.num_scalars; i += kThreads) {
      row[sizes.num_states * width + i] = shared::standardised(
          inputs.scalars[b * sizes.num_scalars + i], parameters[i], inverse_deviation[i]);
    }
    simt::sync_block();
    return inverse_deviation + sizes.num_scalars;
  }

  TREESPEC_DEVICE void write_best(const float* score, uint64_t* scratch) const {
    const int32_t b = simt::block();
    uint64_t best = UINT64_MAX;
    int32_t odd = 0;
    for (int32_t a = simt::thread(); a < selector.sizes.layer_width[selector.sizes.num_layers - 1];
         a += kThreads) {
      if (selector.num_nodes[a] > inputs.node_budget[b]) continue;
      if (selector.depth[a] > inputs.max_depth[b]) continue;
      odd |= score[a] != score[a] ? 1 : 0;
      const uint64_t word = shared::rank_word(score[a], a);
      if (word < best) best = word;
    }
    best = simt::block_reduce<kThreads>(best, UINT64_MAX, simt::Min{}, scratch);
    odd = simt::block_reduce<kThreads>(odd, 0, simt::Max{}, reinterpret_cast<int32_t*>(scratch));
    if (simt::thread() != 0) return;
    const bool found = odd == 0 && best != UINT64_MAX;
    chosen[b] = found ? shared::token_of_word(best) : -1;
    if (!found) simt::atomic_or(status + b, odd != 0 ? kNotANumber : kOutOfBounds);
  }
};

}  // namespace

void choose_shapes(Stream stream, const Selector& selector, const SelectorInputs& inputs,
                   int32_t* chosen, uint32_t* status) {
  constexpr const char* kWho = "choose_shapes";
  check_selector(selector.sizes);
  check_batch(kWho, "inputs.batch", inputs.batch);
  check_pointer(kWho, "selector.parameters", selector.parameters);
  check_pointer(kWho, "selector.num_nodes", selector.num_nodes);
  check_pointer(kWho, "selector.depth", selector.depth);
  for (int32_t s = 0; s < selector.sizes.num_states; ++s) {
    check_pointer(kWho, "inputs.state", inputs.state[s]);
  }
  if (selector.sizes.num_scalars > 0) check_pointer(kWho, "inputs.scalars", inputs.scalars);
  check_pointer(kWho, "inputs.node_budget", inputs.node_budget);
  check_pointer(kWho, "inputs.max_depth", inputs.max_depth);
  check_pointer(kWho, "chosen", chosen);
  check_pointer(kWho, "status", status);
  const SelectorSizes& sizes = selector.sizes;
  int32_t widest = std::max(sizes.joined_width(), sizes.projection_width);
  for (int32_t l = 0; l < sizes.num_layers; ++l) widest = std::max(widest, sizes.layer_width[l]);
  const size_t shared_bytes =
      ChooseShape::kWarps * sizeof(uint64_t) + 2 * static_cast<size_t>(widest) * sizeof(float);
  simt::launch(stream, {inputs.batch, 1, shared_bytes},
               ChooseShape{selector, inputs, chosen, status, widest});
}

}  // namespace treespec::device
