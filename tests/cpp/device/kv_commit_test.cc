// SPDX-License-Identifier: Apache-2.0
// Committed rows of the device are byte for byte those of the CPU, in contiguous and paged caches.
#include "treespec/device/kv_commit.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"
#include "device/device_memory.h"
#include "treespec/error.h"
#include "treespec/kv_commit.h"

namespace {

using namespace treespec;  // NOLINT
using test::DeviceArray;
using Bytes = std::vector<uint8_t>;
using Ints = std::vector<int32_t>;

int32_t below(std::mt19937& random, int32_t limit) {
  return static_cast<int32_t>(random() % static_cast<uint32_t>(limit));
}

/// One tensor in host memory: its shape and the bytes.
struct Tensor {
  device::KvBuffer shape;  // without data
  Bytes bytes;
};

/// A tensor with gaps between rows, slices and pages. `alignment`: of everything.
Tensor random_tensor(std::mt19937& random, int32_t num_pages, int32_t page_size,
                     int64_t alignment) {
  Tensor tensor;
  device::KvBuffer& shape = tensor.shape;
  shape.outer = 1 + below(random, 5);
  shape.row_bytes = alignment * (1 + below(random, 40));
  shape.row_stride = shape.row_bytes + alignment * below(random, 3);
  shape.outer_stride = shape.row_stride * page_size + alignment * below(random, 3);
  shape.page_stride = shape.outer_stride * shape.outer + alignment * below(random, 3);
  if (below(random, 2) == 0) {  // rows outside, heads inside
    shape.outer_stride = shape.row_bytes + alignment * below(random, 3);
    shape.row_stride = shape.outer_stride * shape.outer + alignment * below(random, 3);
    shape.page_stride = shape.row_stride * page_size;
  }
  tensor.bytes.resize(static_cast<size_t>(shape.page_stride * num_pages));
  for (uint8_t& byte : tensor.bytes) byte = static_cast<uint8_t>(random());
  return tensor;
}

/// A cache with sequences in it, and the paths to commit.
struct Case {
  int32_t batch, max_depth, page_size, max_pages, num_pages;
  std::vector<Tensor> tensors;
  Ints block_table;  // empty: contiguous
  Ints prefix, nodes, num_accepted;

  Case(std::mt19937& random, bool paged)
      : batch(1 + below(random, 4)),
        max_depth(below(random, 20)),
        page_size(paged ? 1 + below(random, 7) : 60 + below(random, 10)),
        max_pages(paged ? (60 + page_size - 1) / page_size : 1),
        num_pages(paged ? batch * max_pages + below(random, 4) : batch) {
    const int64_t alignments[] = {1, 2, 4, 8, 16, 16};
    const int num_tensors = 1 + below(random, 4);
    for (int i = 0; i < num_tensors; ++i) {
      tensors.push_back(random_tensor(random, num_pages, page_size, alignments[random() % 6]));
    }
    if (paged) {
      block_table.resize(static_cast<size_t>(num_pages));
      std::iota(block_table.begin(), block_table.end(), 0);
      std::shuffle(block_table.begin(), block_table.end(), random);
      block_table.resize(static_cast<size_t>(batch * max_pages));
    }
    for (int32_t b = 0; b < batch; ++b) {
      prefix.push_back(below(random, 20));
      num_accepted.push_back(below(random, max_depth + 2) - 1);
      int32_t node = 0;
      for (int32_t d = 0; d <= max_depth; ++d) {
        nodes.push_back(d <= num_accepted.back() ? node : -5);  // what follows is ignored
        node += 1 + below(random, 2);
      }
    }
  }

  int32_t page_of(int32_t b, int32_t row) const {
    return block_table.empty() ? b
                               : block_table[static_cast<size_t>(b * max_pages + row / page_size)];
  }

  /// What the cache should hold after sequence `b` has moved: by the CPU's op, on its rows
  /// gathered.
  void commit_on_cpu(int32_t b) {
    const int32_t length = num_accepted[static_cast<size_t>(b)] + 1;
    const auto first = static_cast<size_t>(b * (max_depth + 1));
    const Ints path(nodes.begin() + static_cast<int64_t>(first),
                    nodes.begin() + static_cast<int64_t>(first) + length);
    const int32_t num_rows = page_size * max_pages;
    for (Tensor& tensor : tensors) {
      const device::KvBuffer& shape = tensor.shape;
      const auto row_bytes = static_cast<size_t>(shape.row_bytes);
      for (int64_t slice = 0; slice < shape.outer; ++slice) {
        const auto place = [&](int32_t row) {
          return tensor.bytes.data() + page_of(b, row) * shape.page_stride +
                 slice * shape.outer_stride + row % page_size * shape.row_stride;
        };
        Bytes rows(static_cast<size_t>(num_rows) * row_bytes);
        for (int32_t r = 0; r < num_rows; ++r) {
          std::copy_n(place(r), row_bytes, rows.data() + static_cast<size_t>(r) * row_bytes);
        }
        const KvBuffer buffer{rows.data(), 1, 0, shape.row_bytes, shape.row_bytes, num_rows};
        commit_kv({&buffer, 1}, prefix[static_cast<size_t>(b)], path);
        for (int32_t r = 0; r < num_rows; ++r) {
          std::copy_n(rows.data() + static_cast<size_t>(r) * row_bytes, row_bytes, place(r));
        }
      }
    }
  }
};

/// A case in device memory.
class OnDevice {
 public:
  explicit OnDevice(const Case& of)
      : batch_(of.batch),
        prefix(of.prefix),
        status(std::vector<uint32_t>(of.prefix.size(), 0)),
        workspace(std::vector<uint8_t>(device::commit_kv_workspace_bytes(of.batch), 0)),
        nodes_(of.nodes),
        num_accepted_(of.num_accepted),
        block_table_(of.block_table) {
    std::vector<device::KvBuffer> table;
    cache.num_buffers = static_cast<int32_t>(of.tensors.size());
    for (const Tensor& tensor : of.tensors) {
      tensors_.push_back(std::make_unique<DeviceArray<uint8_t>>(tensor.bytes));
      table.push_back(tensor.shape);
      table.back().data = tensors_.back()->data();
      cache.max_outer = std::max(cache.max_outer, tensor.shape.outer);
      cache.max_row_bytes = std::max(cache.max_row_bytes, tensor.shape.row_bytes);
    }
    table_ = std::make_unique<DeviceArray<device::KvBuffer>>(table);
    cache.buffers = table_->data();
    cache.page_size = of.page_size;
    cache.block_table = of.block_table.empty() ? nullptr : block_table_.data();
    cache.max_pages = of.max_pages;
    cache.num_pages = of.num_pages;
    paths = {of.batch, of.max_depth, nodes_.data(), num_accepted_.data()};
  }

  void commit() { device::commit_kv(Stream{}, cache, paths, prefix.data(), status.data()); }
  void commit_and_advance() {
    device::commit_kv_and_advance(Stream{}, cache, paths, prefix.data(), workspace.data(),
                                  workspace.size(), status.data());
  }
  Bytes tensor(size_t i) const { return tensors_[i]->to_host(); }

 private:
  int32_t batch_;

 public:
  device::KvCache cache;
  device::AcceptedPaths paths;
  DeviceArray<int32_t> prefix;
  DeviceArray<uint32_t> status;
  DeviceArray<uint8_t> workspace;

 private:
  DeviceArray<int32_t> nodes_, num_accepted_, block_table_;
  std::vector<std::unique_ptr<DeviceArray<uint8_t>>> tensors_;
  std::unique_ptr<DeviceArray<device::KvBuffer>> table_;
};

void check_tensors(const OnDevice& on_device, const Case& expected) {
  for (size_t i = 0; i < expected.tensors.size(); ++i) {
    CHECK(on_device.tensor(i) == expected.tensors[i].bytes);
  }
}

void rows_move_as_on_the_cpu() {
  std::mt19937 random(11);
  for (int i = 0; i < 700; ++i) {
    test::set_order(i % test::num_orders());
    Case example(random, i % 2 == 1);
    OnDevice on_device(example);
    if (i % 5 == 0) on_device.cache.max_outer = on_device.cache.max_row_bytes = 1;  // only slower
    const bool advance = i % 3 == 0;
    advance ? on_device.commit_and_advance() : on_device.commit();
    Ints prefix = example.prefix;
    for (int32_t b = 0; b < example.batch; ++b) {
      example.commit_on_cpu(b);
      const auto at = static_cast<size_t>(b);
      if (advance) prefix[at] += example.num_accepted[at] + 1;
    }
    check_tensors(on_device, example);
    CHECK(on_device.prefix.to_host() == prefix);
    for (const uint32_t s : on_device.status.to_host()) CHECK_EQUAL(s, 0u);
    for (const uint8_t byte : on_device.workspace.to_host()) CHECK_EQUAL(int{byte}, 0);
  }
}

/// A path of the longest kind, over more depths than a block has threads.
void long_paths_move() {
  std::mt19937 random(12);
  Case example(random, false);
  example.max_depth = 299;
  example.page_size = 900;
  example.batch = example.num_pages = 1;
  example.tensors = {random_tensor(random, 1, 900, 16), random_tensor(random, 1, 900, 1)};
  example.prefix = {13};
  example.num_accepted = {299};
  example.nodes.clear();
  for (int32_t d = 0; d < 300; ++d) example.nodes.push_back(d < 3 ? d : 2 * d);
  OnDevice on_device(example);
  on_device.commit();
  example.commit_on_cpu(0);
  check_tensors(on_device, example);
}

void a_sequence_with_a_problem_stays_as_it_was() {
  std::mt19937 random(13);
  using device::kBadTree;
  using device::kOutOfBounds;
  // Changes sequence 1 of 3; the others must move all the same.
  const auto check = [&](uint32_t expected_status, bool paged, const auto& change) {
    Case example(random, paged);
    while (example.batch < 3 || example.max_depth < 4 || example.num_accepted[1] < 3) {
      example = Case(random, paged);
    }
    change(example, static_cast<size_t>(example.max_depth) + 1);
    OnDevice on_device(example);
    on_device.commit_and_advance();
    Ints prefix = example.prefix;
    for (int32_t b = 0; b < example.batch; ++b) {
      const auto at = static_cast<size_t>(b);
      const std::vector<uint32_t> status = on_device.status.to_host();
      CHECK_EQUAL(status[at], b == 1 ? expected_status : 0u);
      if (b == 1) continue;
      example.commit_on_cpu(b);
      prefix[at] += example.num_accepted[at] + 1;
    }
    check_tensors(on_device, example);
    CHECK(on_device.prefix.to_host() == prefix);
  };
  for (int order = 0; order < test::num_orders(); ++order) {
    test::set_order(order);
    for (const bool paged : {false, true}) {
      check(kBadTree, paged, [](Case& c, size_t row) { c.nodes[row + 2] = c.nodes[row + 1]; });
      check(kBadTree | kOutOfBounds, paged, [](Case& c, size_t row) {
        c.prefix[1] = 0;
        c.nodes[row] = -1;
      });
      check(kOutOfBounds, paged, [](Case& c, size_t row) {
        c.nodes[row + static_cast<size_t>(c.num_accepted[1])] = INT32_MAX;
      });
      for (const int32_t base : {-100, 1000, INT32_MIN, INT32_MAX}) {
        check(kOutOfBounds, paged, [&](Case& c, size_t) { c.prefix[1] = base; });
      }
      for (const int32_t accepted : {-2, 20, INT32_MIN, INT32_MAX}) {
        check(kOutOfBounds, paged, [&](Case& c, size_t) { c.num_accepted[1] = accepted; });
      }
    }
    for (const int32_t page : {-1, 10000, INT32_MIN, INT32_MAX}) {
      check(kOutOfBounds, true, [&](Case& c, size_t) {
        c.block_table[static_cast<size_t>(c.max_pages + c.prefix[1] / c.page_size)] = page;
      });
    }
  }
}

void a_status_set_before_holds_the_sequence() {
  std::mt19937 random(14);
  Case example(random, false);
  while (example.batch < 2) example = Case(random, false);
  OnDevice on_device(example);
  const uint32_t before = device::kNotANumber;
  test::copy_to_device(on_device.status.data(), &before, sizeof before);
  on_device.commit();
  for (int32_t b = 1; b < example.batch; ++b) example.commit_on_cpu(b);
  check_tensors(on_device, example);
  CHECK_EQUAL(on_device.status.to_host()[0], before);
}

void wrong_arguments_are_refused() {
  std::mt19937 random(15);
  const Case example(random, true);
  const auto refused = [&](const auto& change) {
    OnDevice on_device(example);
    change(on_device);
    CHECK_THROWS(InvalidArgument, on_device.commit());
    check_tensors(on_device, example);
  };
  refused([](OnDevice& d) { d.paths.batch = -1; });
  refused([](OnDevice& d) { d.paths.max_depth = -1; });
  refused([](OnDevice& d) { d.paths.max_depth = 4096; });
  refused([](OnDevice& d) { d.paths.nodes = nullptr; });
  refused([](OnDevice& d) { d.paths.num_accepted = nullptr; });
  refused([](OnDevice& d) { d.cache.buffers = nullptr; });
  refused([](OnDevice& d) { d.cache.num_buffers = 0; });
  refused([](OnDevice& d) { d.cache.max_outer = 0; });
  refused([](OnDevice& d) { d.cache.max_row_bytes = 0; });
  refused([](OnDevice& d) { d.cache.page_size = 0; });
  refused([](OnDevice& d) { d.cache.max_pages = 0; });
  refused([](OnDevice& d) { d.cache.block_table = nullptr; });  // yet several pages
  OnDevice on_device(example);
  CHECK_THROWS(InvalidArgument, device::commit_kv_and_advance(
                                    Stream{}, on_device.cache, on_device.paths,
                                    on_device.prefix.data(), nullptr, 0, on_device.status.data()));
}

}  // namespace

int main() {
  if (!test::has_device()) return test::kSkipped;
  rows_move_as_on_the_cpu();
  long_paths_move();
  a_sequence_with_a_problem_stays_as_it_was();
  a_status_set_before_holds_the_sequence();
  wrong_arguments_are_refused();
  return 0;
}
