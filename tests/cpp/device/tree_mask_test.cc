// SPDX-License-Identifier: Apache-2.0
// Layouts and masks of the device are bit for bit those of the CPU.
#include "treespec/device/tree_mask.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "check.h"
#include "device/device_memory.h"
#include "device/random_trees.h"
#include "treespec/error.h"
#include "treespec/tree_mask.h"

namespace {

using namespace treespec;  // NOLINT
using test::DeviceArray;
using test::DeviceTrees;
using Ints = std::vector<int32_t>;

/// Trees of different sizes and shapes, with prefixes.
struct Batch {
  std::vector<TokenTree> trees;
  int32_t max_nodes;
  Ints prefix;

  Batch(std::mt19937& random, int size, int32_t largest, int32_t longest_prefix)
      : max_nodes(largest + static_cast<int32_t>(random() % 5)) {
    for (int b = 0; b < size; ++b) {
      const auto nodes = 1 + static_cast<int32_t>(random() % static_cast<uint32_t>(largest));
      trees.push_back(test::random_tree(random, nodes, static_cast<int>(random() % 4)));
      prefix.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(longest_prefix + 1)));
    }
  }
  size_t num_nodes() const { return trees.size() * static_cast<size_t>(max_nodes); }
};

/// The layout of a batch on the device, made by the op under test.
struct Layout {
  DeviceTrees trees;
  DeviceArray<int32_t> prefix;
  DeviceArray<uint32_t> bits;
  DeviceArray<int32_t> position, first_child, next_sibling;
  DeviceArray<uint32_t> status;

  explicit Layout(const Batch& batch)
      : trees(batch.trees, batch.max_nodes),
        prefix(batch.prefix),
        bits(batch.num_nodes() * static_cast<size_t>(device::mask_words(batch.max_nodes))),
        position(batch.num_nodes()),
        first_child(batch.num_nodes()),
        next_sibling(batch.num_nodes()),
        status(std::vector<uint32_t>(batch.trees.size(), 0)) {
    device::tree_layout(Stream{}, trees.view(), prefix.data(), view(), status.data());
  }
  device::TreeLayout view() const {
    return {bits.data(), position.data(), first_child.data(), next_sibling.data()};
  }
  void check_status() const {
    for (const uint32_t s : status.to_host()) CHECK_EQUAL(s, uint32_t{device::kOk});
  }
};

void check_layout(const Batch& batch) {
  const Layout layout(batch);
  layout.check_status();
  const auto bits = layout.bits.to_host();
  const Ints position = layout.position.to_host();
  const Ints first_child = layout.first_child.to_host();
  const Ints next_sibling = layout.next_sibling.to_host();
  const auto words = static_cast<size_t>(device::mask_words(batch.max_nodes));
  for (size_t b = 0; b < batch.trees.size(); ++b) {
    const TokenTree& tree = batch.trees[b];
    const auto n = static_cast<size_t>(tree.num_nodes());
    const size_t own_words = (n + 31) / 32;
    const std::vector<uint32_t> expected = ancestor_mask(tree.parent);
    const Ints expected_position = tree_positions(tree.depth, batch.prefix[b]);
    Ints child(static_cast<size_t>(batch.max_nodes), -1), sibling = child, last = child;
    for (size_t i = 1; i < n; ++i) {
      const auto p = static_cast<size_t>(tree.parent[i]);
      const auto id = static_cast<int32_t>(i);
      if (last[p] < 0) child[p] = id;
      if (last[p] >= 0) sibling[static_cast<size_t>(last[p])] = id;
      last[p] = id;
    }
    for (size_t i = 0; i < static_cast<size_t>(batch.max_nodes); ++i) {
      const size_t node = b * static_cast<size_t>(batch.max_nodes) + i;
      for (size_t w = 0; w < words; ++w) {
        const uint32_t own = i / 32 == w ? 1u << i % 32 : 0u;
        const uint32_t want = i >= n ? own : w < own_words ? expected[i * own_words + w] : 0u;
        CHECK_EQUAL(bits[node * words + w], want);
      }
      CHECK_EQUAL(position[node], i < n ? expected_position[i] : batch.prefix[b]);
      CHECK_EQUAL(first_child[node], child[i]);
      CHECK_EQUAL(next_sibling[node], sibling[i]);
    }
  }
}

/// Row of the CPU's mask, made `columns` wide.
template <class T>
std::vector<T> expected_row(const std::vector<T>& cpu, size_t row, size_t cpu_width, size_t columns,
                            T hidden) {
  std::vector<T> out(cpu.begin() + static_cast<int64_t>(row * cpu_width),
                     cpu.begin() + static_cast<int64_t>((row + 1) * cpu_width));
  out.resize(columns, hidden);
  return out;
}

/// Compares masks of element type T; `fill` is the CPU's form, `out` the device's.
template <class T, class Fill>
void check_rows(const Batch& batch, const device::MaskShape& shape, const std::vector<T>& out,
                T hidden, const Fill& fill) {
  const auto columns = static_cast<size_t>(shape.columns);
  const auto rows = static_cast<size_t>(batch.max_nodes - shape.first);
  for (size_t b = 0; b < batch.trees.size(); ++b) {
    const TokenTree& tree = batch.trees[b];
    const int32_t n = tree.num_nodes();
    const int32_t first = std::min(shape.first, n);
    const auto width = static_cast<size_t>(batch.prefix[b] + n);
    std::vector<T> cpu(static_cast<size_t>(n - first) * width);
    fill(tree, first, batch.prefix[b], cpu.data());
    // Padding nodes have the root's row but for the tree's part, where they see themselves alone.
    std::vector<T> root(static_cast<size_t>(n) * width);
    fill(tree, 0, batch.prefix[b], root.data());
    for (size_t r = 0; r < rows; ++r) {
      const size_t node = r + static_cast<size_t>(shape.first);
      std::vector<T> want;
      if (node < static_cast<size_t>(n)) {
        want = expected_row(cpu, r, width, columns, hidden);
      } else {
        want = expected_row(root, 0, width, columns, hidden);
        const auto tree_begin = static_cast<size_t>(batch.prefix[b]);
        const T visible = want[tree_begin];
        want[tree_begin] = hidden;
        if (tree_begin + node < columns) want[tree_begin + node] = visible;
      }
      const T* got = out.data() + (b * rows + r) * columns;
      CHECK(std::memcmp(got, want.data(), columns * sizeof(T)) == 0);
    }
  }
}

void check_masks(std::mt19937& random, const Batch& batch) {
  const Layout layout(batch);
  const int32_t longest = *std::max_element(batch.prefix.begin(), batch.prefix.end());
  device::MaskShape shape;
  shape.columns = longest + batch.max_nodes + static_cast<int32_t>(random() % 3);
  if (random() % 2 == 0) shape.columns = (shape.columns + 15) / 16 * 16;  // the wide path
  shape.first = static_cast<int32_t>(random() % static_cast<uint32_t>(batch.max_nodes + 1)) *
                static_cast<int32_t>(random() % 2);
  shape.window = static_cast<int32_t>(random() % 8) * static_cast<int32_t>(random() % 2);
  const auto size = batch.trees.size() * static_cast<size_t>(batch.max_nodes - shape.first) *
                    static_cast<size_t>(shape.columns);

  const DeviceArray<uint8_t> visible(size);
  device::bool_mask(Stream{}, layout.trees.view(), layout.view(), layout.prefix.data(), shape,
                    visible.data(), layout.status.data());
  check_rows<uint8_t>(batch, shape, visible.to_host(), 0,
                      [&](const TokenTree& tree, int32_t first, int32_t prefix, uint8_t* out) {
                        bool_mask(tree.parent, tree.depth, first, prefix, shape.window, out);
                      });
  const auto check_additive = [&](DType dtype, auto hidden) {
    using T = decltype(hidden);
    const DeviceArray<T> added(size);
    device::additive_mask(Stream{}, layout.trees.view(), layout.view(), layout.prefix.data(), shape,
                          dtype, added.data(), layout.status.data());
    check_rows<T>(batch, shape, added.to_host(), hidden,
                  [&](const TokenTree& tree, int32_t first, int32_t prefix, T* out) {
                    additive_mask(tree.parent, tree.depth, first, prefix, shape.window, dtype, out);
                  });
  };
  check_additive(DType::kFloat32, uint32_t{0xFF7FFFFF});
  check_additive(DType::kFloat64, uint64_t{0xFFEFFFFFFFFFFFFF});
  check_additive(DType::kFloat16, uint16_t{0xFBFF});
  check_additive(DType::kBFloat16, uint16_t{0xFF7F});
  layout.check_status();
}

void check_orders(const Batch& batch) {
  const DeviceTrees trees(batch.trees, batch.max_nodes);
  const DeviceArray<uint32_t> status(std::vector<uint32_t>(batch.trees.size(), 0));
  const DeviceArray<int32_t> rank(batch.num_nodes()), end(batch.num_nodes());
  device::preorder_intervals(Stream{}, trees.view(), rank.data(), end.data(), status.data());

  std::vector<SequenceIds> expected_ids;
  size_t capacity = 1;
  for (const TokenTree& tree : batch.trees) {
    expected_ids.push_back(sequence_ids(tree.parent));
    capacity = std::max(capacity, expected_ids.back().id.size());
  }
  const auto offsets = static_cast<size_t>(batch.max_nodes) + 1;
  const DeviceArray<int32_t> offset(batch.trees.size() * offsets);
  const DeviceArray<int32_t> id(batch.trees.size() * capacity);
  device::sequence_ids(Stream{}, trees.view(), static_cast<int32_t>(capacity), offset.data(),
                       id.data(), status.data());
  for (const uint32_t s : status.to_host()) CHECK_EQUAL(s, uint32_t{device::kOk});

  const Ints ranks = rank.to_host(), ends = end.to_host();
  const Ints all_offsets = offset.to_host(), all_ids = id.to_host();
  for (size_t b = 0; b < batch.trees.size(); ++b) {
    const auto n = static_cast<size_t>(batch.trees[b].num_nodes());
    const Intervals expected = preorder_intervals(batch.trees[b].parent);
    for (size_t i = 0; i < static_cast<size_t>(batch.max_nodes); ++i) {
      const size_t node = b * static_cast<size_t>(batch.max_nodes) + i;
      CHECK_EQUAL(ranks[node], i < n ? expected.rank[i] : static_cast<int32_t>(i));
      CHECK_EQUAL(ends[node], i < n ? expected.end[i] : static_cast<int32_t>(i) + 1);
    }
    const SequenceIds& ids = expected_ids[b];
    for (size_t i = 0; i < offsets; ++i) {
      CHECK_EQUAL(all_offsets[b * offsets + i], ids.offset[std::min(i, n)]);
    }
    for (size_t i = 0; i < ids.id.size(); ++i) CHECK_EQUAL(all_ids[b * capacity + i], ids.id[i]);
  }
}

void the_device_gives_the_bits_of_the_cpu(int num_batches, int batch_size, int32_t largest,
                                          int32_t longest_prefix) {
  std::mt19937 random(static_cast<uint32_t>(largest));
  for (int i = 0; i < num_batches; ++i) {
    test::set_order(i % test::num_orders());
    const Batch batch(random, batch_size, largest, longest_prefix);
    check_layout(batch);
    check_masks(random, batch);
    check_orders(batch);
  }
}

/// Sets an element of an array on the device.
template <class T>
void poke(T* array, size_t i, T value) {
  test::copy_to_device(array + i, &value, sizeof value);
}

void broken_trees_are_reported_and_stay_in_bounds() {
  std::mt19937 random(5);
  const auto status_of = [&](const auto& change) {
    Batch batch(random, 3, 40, 9);
    while (batch.trees[1].num_nodes() < 20) batch = Batch(random, 3, 40, 9);
    const DeviceTrees trees(batch.trees, batch.max_nodes);
    const DeviceArray<int32_t> prefix(batch.prefix);
    const auto node = static_cast<size_t>(batch.max_nodes);  // node 0 of sequence 1
    change(trees.view(), prefix.data(), node);
    const auto words = static_cast<size_t>(device::mask_words(batch.max_nodes));
    const DeviceArray<uint32_t> bits(batch.num_nodes() * words), status({0, 0, 0});
    const DeviceArray<int32_t> position(batch.num_nodes()), child(batch.num_nodes()),
        sibling(batch.num_nodes());
    const device::TreeLayout layout{bits.data(), position.data(), child.data(), sibling.data()};
    device::tree_layout(Stream{}, trees.view(), prefix.data(), layout, status.data());
    const device::MaskShape shape{64, 0, 3};
    const DeviceArray<uint8_t> mask(batch.num_nodes() * 64);
    device::bool_mask(Stream{}, trees.view(), layout, prefix.data(), shape, mask.data(),
                      status.data());
    const DeviceArray<int32_t> rank(batch.num_nodes()), end(batch.num_nodes());
    device::preorder_intervals(Stream{}, trees.view(), rank.data(), end.data(), status.data());
    const DeviceArray<int32_t> offset(batch.num_nodes() + 3), id(3 * 1000);
    device::sequence_ids(Stream{}, trees.view(), 1000, offset.data(), id.data(), status.data());
    const std::vector<uint32_t> found = status.to_host();
    CHECK_EQUAL(found[0], 0u);
    CHECK_EQUAL(found[2], 0u);
    return found[1];
  };
  using device::Trees;
  for (int order = 0; order < test::num_orders(); ++order) {
    test::set_order(order);
    CHECK_EQUAL(status_of([](const Trees&, int32_t*, size_t) {}), 0u);
    for (const int32_t bad : {5, 6, -1, -7, 1000, INT32_MIN, INT32_MAX}) {
      CHECK_EQUAL(
          status_of([&](const Trees& t, int32_t*, size_t n) { poke(t.parent, n + 5, bad); }),
          uint32_t{device::kBadTree});
      CHECK_EQUAL(
          status_of([&](const Trees& t, int32_t*, size_t n) { poke(t.depth, n + 5, bad ^ 64); }),
          uint32_t{device::kBadTree});
    }
    CHECK_EQUAL(status_of([](const Trees& t, int32_t*, size_t n) { poke(t.parent, n, 0); }),
                uint32_t{device::kBadTree});
    for (const int32_t bad : {0, -1, INT32_MIN}) {
      CHECK_EQUAL(status_of([&](const Trees& t, int32_t*, size_t) { poke(t.num_nodes, 1, bad); }),
                  uint32_t{device::kBadTree});
    }
    CHECK((status_of([](const Trees& t, int32_t*, size_t) { poke(t.num_nodes, 1, 1000); }) &
           device::kBadTree) != 0);
    for (const int32_t bad : {-1, INT32_MIN, 60, INT32_MAX}) {
      CHECK_EQUAL(status_of([&](const Trees&, int32_t* prefix, size_t) { poke(prefix, 1, bad); }),
                  uint32_t{device::kOutOfBounds});
    }
  }
}

void what_padding_nodes_hold_does_not_matter() {
  std::mt19937 random(7);
  const TokenTree tree = test::random_tree(random, 10, 0);
  const DeviceTrees clean({tree}, 40), littered({tree}, 40);
  for (size_t i = 10; i < 40; ++i) {
    poke(littered.view().parent, i, static_cast<int32_t>(i) - 9);
    poke(littered.view().depth, i, 3);
  }
  const DeviceArray<int32_t> prefix(Ints{5});
  const auto outputs = [&](const DeviceTrees& trees) {
    const DeviceArray<uint32_t> bits(40 * 2), status(std::vector<uint32_t>(1, 0));
    const DeviceArray<int32_t> numbers(4 * 40);
    int32_t* to = numbers.data();
    device::tree_layout(Stream{}, trees.view(), prefix.data(), {bits.data(), to, to + 40, to + 80},
                        status.data());
    device::preorder_intervals(Stream{}, trees.view(), to + 120, to + 80, status.data());
    CHECK_EQUAL(status.to_host()[0], uint32_t{device::kOk});
    return std::make_pair(bits.to_host(), numbers.to_host());
  };
  CHECK(outputs(clean) == outputs(littered));
}

void too_many_sequence_ids_are_reported() {
  std::mt19937 random(6);
  const TokenTree tree = test::random_tree(random, 30, 0);
  const SequenceIds expected = sequence_ids(tree.parent);
  const DeviceTrees trees({tree}, 30);
  const auto capacity = static_cast<int32_t>(expected.id.size()) - 1;
  const DeviceArray<int32_t> offset(31), id(static_cast<size_t>(capacity));
  const DeviceArray<uint32_t> status(std::vector<uint32_t>(1, 0));
  device::sequence_ids(Stream{}, trees.view(), capacity, offset.data(), id.data(), status.data());
  CHECK_EQUAL(status.to_host()[0], uint32_t{device::kOutOfBounds});
  CHECK(offset.to_host() == expected.offset);
  const Ints ids = id.to_host();
  for (size_t i = 0; i < ids.size(); ++i) CHECK_EQUAL(ids[i], expected.id[i]);
}

void wrong_arguments_are_refused() {
  int32_t number = 1;
  uint32_t word = 0;
  uint8_t byte = 0;
  device::Trees trees;
  trees.batch = 1;
  trees.max_nodes = 1;
  trees.num_nodes = trees.parent = trees.depth = &number;
  const device::TreeLayout layout{&word, &number, nullptr, nullptr};
  const auto broken = [&](const auto& change) {
    device::Trees changed = trees;
    change(changed);
    CHECK_THROWS(InvalidArgument, device::tree_layout(Stream{}, changed, &number, layout, &word));
  };
  broken([](device::Trees& t) { t.batch = -1; });
  broken([](device::Trees& t) { t.batch = 65536; });
  broken([](device::Trees& t) { t.max_nodes = 0; });
  broken([](device::Trees& t) { t.max_nodes = device::kMaxNodes + 1; });
  broken([](device::Trees& t) { t.num_nodes = nullptr; });
  broken([](device::Trees& t) { t.parent = nullptr; });
  broken([](device::Trees& t) { t.depth = nullptr; });
  CHECK_THROWS(InvalidArgument, device::tree_layout(Stream{}, trees, nullptr, layout, &word));
  CHECK_THROWS(InvalidArgument, device::tree_layout(Stream{}, trees, &number, {}, &word));
  CHECK_THROWS(InvalidArgument, device::tree_layout(Stream{}, trees, &number, layout, nullptr));
  for (const device::MaskShape& shape :
       {device::MaskShape{0, 0, 0}, {INT64_MAX, 0, 0}, {4, -1, 0}, {4, 2, 0}, {4, 0, -1}}) {
    CHECK_THROWS(InvalidArgument,
                 device::bool_mask(Stream{}, trees, layout, &number, shape, &byte, &word));
    CHECK_THROWS(InvalidArgument, device::additive_mask(Stream{}, trees, layout, &number, shape,
                                                        DType::kFloat32, &byte, &word));
  }
  CHECK_THROWS(InvalidArgument,
               device::preorder_intervals(Stream{}, trees, nullptr, &number, &word));
  CHECK_THROWS(InvalidArgument, device::sequence_ids(Stream{}, trees, 0, &number, &number, &word));
}

}  // namespace

int main() {
  if (!test::has_device()) return test::kSkipped;
  the_device_gives_the_bits_of_the_cpu(400, 6, 12, 6);
  the_device_gives_the_bits_of_the_cpu(60, 4, 70, 20);
  the_device_gives_the_bits_of_the_cpu(6, 2, 300, 40);
  the_device_gives_the_bits_of_the_cpu(2, 1, 1025, 10);
  broken_trees_are_reported_and_stay_in_bounds();
  what_padding_nodes_hold_does_not_matter();
  too_many_sequence_ids_are_reported();
  wrong_arguments_are_refused();
  return 0;
}
