// SPDX-License-Identifier: Apache-2.0
// device::choose_shapes gives what DelayedSelector::choose gives, ties and NaN included, in every
// order of threads; the arithmetic on the way shows in scores that differ by their last bits.
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "device/device_memory.h"
#include "treespec/device/selector.h"
#include "treespec/device/trees.h"
#include "treespec/error.h"

namespace {

using namespace treespec;  // NOLINT
using test::DeviceArray;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Case {
  DelayedSelector selector;
  int32_t batch;
  std::vector<std::vector<float>> state;  // [num_states][batch, width]
  std::vector<float> scalars;
  std::vector<int32_t> node_budget, max_depth;
};

std::vector<float> normal(std::mt19937& random, int64_t size, float scale = 1.0f) {
  std::normal_distribution<float> law(0.0f, scale);
  std::vector<float> out(static_cast<size_t>(size));
  for (float& x : out) x = law(random);
  return out;
}

/// `twins`: the second half of the outputs has the weights of the first but for the last bit of
/// some, so that a choice between them tells of every rounding.
DelayedSelector random_selector(std::mt19937& random, int32_t num_states, bool twins) {
  SelectorSizes sizes;
  sizes.num_states = num_states;
  for (int32_t s = 0; s < num_states; ++s) {
    sizes.state_width[s] = 1 + static_cast<int32_t>(random() % 70);
  }
  sizes.projection_width = num_states > 0 ? 1 + static_cast<int32_t>(random() % 40) : 0;
  sizes.num_scalars = 9;
  sizes.num_layers = 1 + static_cast<int32_t>(random() % 3);
  for (int32_t l = 0; l < sizes.num_layers; ++l) {
    sizes.layer_width[l] = 2 * (1 + static_cast<int32_t>(random() % 150));
  }
  const int32_t outputs = sizes.num_outputs(), half = outputs / 2;
  std::vector<float> parameters = normal(random, sizes.num_parameters(), 0.4f);
  if (twins) {
    int64_t inner = sizes.joined_width();
    if (sizes.num_layers > 1) inner = sizes.layer_width[sizes.num_layers - 2];
    float* weight = parameters.data() + parameters.size() - (inner + 1) * outputs;
    for (int64_t i = 0; i <= inner; ++i) {
      for (int32_t j = 0; j < half; ++j) {
        const float x = weight[i * outputs + j];
        weight[i * outputs + half + j] = random() % 2 == 0 ? x : std::nextafterf(x, 9.0f);
      }
    }
  }
  std::vector<DelayedShape> shapes;
  for (int32_t a = 0; a < outputs; ++a) {
    shapes.push_back({1 + static_cast<int32_t>(random() % 4), static_cast<int32_t>(random() % 9),
                      static_cast<int32_t>(random() % 9)});
  }
  return {sizes, std::move(parameters), std::move(shapes)};
}

Case random_case(std::mt19937& random) {
  const auto num_states = static_cast<int32_t>(random() % 4);
  Case c{random_selector(random, num_states, random() % 2 == 0),
         1 + static_cast<int32_t>(random() % 5),
         {},
         {},
         {},
         {}};
  for (int32_t s = 0; s < num_states; ++s) {
    c.state.push_back(normal(random, int64_t{c.batch} * c.selector.sizes().state_width[s]));
  }
  c.scalars = normal(random, int64_t{c.batch} * 9);
  if (random() % 4 == 0) c.scalars[random() % c.scalars.size()] = kNan;
  for (int32_t b = 0; b < c.batch; ++b) {
    c.node_budget.push_back(static_cast<int32_t>(random() % 42) - (random() % 8 == 0 ? 42 : 0));
    c.max_depth.push_back(static_cast<int32_t>(random() % 17));
  }
  return c;
}

/// The CPU's choice, or -1 where it throws.
int32_t expected(const Case& c, int32_t b) {
  const SelectorSizes& sizes = c.selector.sizes();
  std::vector<const float*> states;
  for (int32_t s = 0; s < sizes.num_states; ++s) {
    states.push_back(c.state[static_cast<size_t>(s)].data() + b * sizes.state_width[s]);
  }
  try {
    return c.selector.choose(states.data(), c.scalars.data() + b * 9,
                             c.node_budget[static_cast<size_t>(b)],
                             c.max_depth[static_cast<size_t>(b)]);
  } catch (const InvalidArgument&) {
    return -1;
  }
}

void check_case(const Case& c) {
  std::vector<int32_t> nodes, depth;
  for (const DelayedShape& shape : c.selector.shapes()) {
    nodes.push_back(shape.num_nodes());
    depth.push_back(shape.depth());
  }
  const DeviceArray<float> parameters(c.selector.parameters());
  const DeviceArray<int32_t> device_nodes(nodes), device_depth(depth);
  const DeviceArray<float> scalars(c.scalars);
  const DeviceArray<int32_t> budget(c.node_budget), deepest(c.max_depth);
  std::vector<std::unique_ptr<DeviceArray<float>>> states;
  device::SelectorInputs inputs{c.batch, {}, scalars.data(), budget.data(), deepest.data()};
  for (size_t s = 0; s < c.state.size(); ++s) {
    states.push_back(std::make_unique<DeviceArray<float>>(c.state[s]));
    inputs.state[s] = states.back()->data();
  }
  const DeviceArray<int32_t> chosen(static_cast<size_t>(c.batch));
  const DeviceArray<uint32_t> status(std::vector<uint32_t>(static_cast<size_t>(c.batch)));
  device::choose_shapes(
      {}, {c.selector.sizes(), parameters.data(), device_nodes.data(), device_depth.data()}, inputs,
      chosen.data(), status.data());
  const std::vector<int32_t> got = chosen.to_host();
  const std::vector<uint32_t> words = status.to_host();
  for (int32_t b = 0; b < c.batch; ++b) {
    CHECK_EQUAL(got[static_cast<size_t>(b)], expected(c, b));
    CHECK_EQUAL(words[static_cast<size_t>(b)] == device::kOk, expected(c, b) >= 0);
  }
}

void refuses_bad_sizes() {
  const DeviceArray<float> floats(size_t{4});
  const DeviceArray<int32_t> ints(size_t{4});
  const DeviceArray<uint32_t> words(size_t{4});
  device::SelectorInputs inputs{1, {}, floats.data(), ints.data(), ints.data()};
  SelectorSizes sizes;
  CHECK_THROWS(InvalidArgument,
               device::choose_shapes({}, {sizes, floats.data(), ints.data(), ints.data()}, inputs,
                                     ints.data(), words.data()));
  sizes.num_layers = 1;
  sizes.layer_width[0] = 60000;  // more than a block's memory
  CHECK_THROWS(InvalidArgument,
               device::choose_shapes({}, {sizes, floats.data(), ints.data(), ints.data()}, inputs,
                                     ints.data(), words.data()));
  CHECK_THROWS(InvalidArgument,
               device::choose_shapes({}, {sizes, nullptr, ints.data(), ints.data()}, inputs,
                                     ints.data(), words.data()));
}

}  // namespace

int main() {
  if (!test::has_device()) return test::kSkipped;
  for (int order = 0; order < test::num_orders(); ++order) {
    test::set_order(order);
    std::mt19937 random(7);
    for (int i = 0; i < 60; ++i) check_case(random_case(random));
  }
  refuses_bad_sizes();
}
