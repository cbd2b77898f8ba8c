// SPDX-License-Identifier: Apache-2.0
// Compiled once for each type of logits, apart from who reads the sums: nothing in cuda/ takes
// a compiler longer.
#include "row_sums.cuh"

namespace treespec::device {
namespace {

/// One warp per block of a row.
template <class Element>
struct SumRows {
  static constexpr int kThreads = 128;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  static constexpr size_t kSharedBytes = kWarps * kMarkWords * sizeof(uint32_t);

  Rows<Element> rows;
  Trees trees;
  DraftLaw law;
  Temperatures temperatures;
  ScoreChanges changes;
  const uint32_t* use_table;
  RowSums out;

  TREESPEC_DEVICE void operator()() const {
    const int64_t item = int64_t{simt::block()} * kWarps + simt::warp();
    if (item >= rows.num_rows * rows.num_blocks) return;
    const int64_t r = item / rows.num_blocks;
    const int32_t b = static_cast<int32_t>(r / trees.max_nodes);
    if (r % trees.max_nodes >= trees.num_nodes[b]) return;
    const auto begin = static_cast<int32_t>((item % rows.num_blocks) * kBlock);
    const auto* row = rows.row(r);
    const auto node = static_cast<int32_t>(r % trees.max_nodes);
    const auto changed = NodeChanges::of(changes, use_table, trees, rows.size, b, node);
    if (changed.any()) return sum_changed(row, changed, begin, item, b);
    LogitBlock<Element> block;
    block.load(row, begin, rows.size);
    sum(block, item, b);
  }

  TREESPEC_DEVICE_CALL void sum_changed(const typename Element::Stored* row,
                                        const NodeChanges& changed, int32_t begin, int64_t item,
                                        int32_t b) const {
    const auto score = [&](int32_t token) {
      return changed.apply(Element::value(row[token]), token);
    };
    sum(ComputedBlock<decltype(score)>(begin, rows.size, score), item, b);
  }

  /// `item`: counts the blocks of all rows.
  template <class Block>
  TREESPEC_DEVICE void sum(const Block& block, int64_t item, int32_t b) const {
    const int64_t r = item / rows.num_blocks;
    const auto begin = static_cast<int32_t>((item % rows.num_blocks) * kBlock);
    const float top = simt::warp_reduce(block.own_top(), simt::Max{});
    const bool sound = !simt::any(block.has_nan());
    const double temperature = temperatures.of(b);
    int32_t arg = 0;
    double mass = 0.0;
    if (temperature == 0.0) {
      arg = simt::warp_reduce(block.first_equal(top), simt::Min{});
    } else if (top > kLowest) {
      uint8_t left_out[kSteps] = {};
      // The sums of a row that will be truncated are those of the whole.
      const bool truncated = is_truncated(temperatures.sampling[b], rows.size);
      if (!truncated && drew(r, b)) {
        auto* bits = reinterpret_cast<uint32_t*>(simt::shared_memory()) + simt::warp() * kMarkWords;
        mark_law(LawRow::of(law, r), begin, bits, left_out);
      }
      mass = block.exp_sum(top, 1.0 / temperature, left_out);
    }
    if (simt::lane() != 0) return;
    out.top[item] = sound ? top : std::numeric_limits<float>::quiet_NaN();
    out.sum[item] = mass;
    out.arg[item] = arg;
  }

  TREESPEC_DEVICE bool drew(int64_t r, int32_t b) const {
    if (law.row_of_node == nullptr) return false;
    const int32_t* offset =
        trees.draw_offset + int64_t{b} * (trees.max_nodes + 1) + r % trees.max_nodes;
    return offset[1] > offset[0];
  }
};

}  // namespace

void sum_rows(Stream stream, const RowsToSum& input, const RowSums& out) {
  const Trees& trees = input.trees;
  with_element(input.logits.dtype, [&](auto element) {
    using Sum = SumRows<decltype(element)>;
    const auto rows = rows_of<decltype(element)>(input.logits, trees.max_nodes, trees.num_nodes);
    const int64_t warps = rows.num_rows * rows.num_blocks;
    simt::launch(
        stream, {(warps + Sum::kWarps - 1) / Sum::kWarps, 1, Sum::kSharedBytes},
        Sum{rows, trees, input.law, input.temperatures, input.changes, input.use_table, out});
  });
}

}  // namespace treespec::device
