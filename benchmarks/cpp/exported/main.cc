// SPDX-License-Identifier: Apache-2.0
// Times exported models in C++, on demand: bench_backends.py writes a line and reads one, so that
// its contestants take turns.
//
//   bench_exported TARGET [DRAFTER]
//   forward NODES CONTEXT CALLS                         -> seconds of a call
//   generate BUDGET NEW TEMPERATURE SEED ID ID ...      -> seconds, then the tokens
#include <chrono>
#include <cstdint>
#include <exception>
#include <iostream>
#include <iterator>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "treespec/decoder.h"
#include "treespec/onnxruntime.h"
#include "treespec/tree_mask.h"

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// A tree of a root and nodes that fork in two; its tokens do not matter.
treespec::TokenTree binary_tree(int32_t num_nodes) {
  treespec::TokenTree tree;
  for (int32_t node = 0; node < num_nodes; ++node) {
    const int32_t parent = node == 0 ? -1 : (node - 1) / 2;
    tree.token.push_back(node % 100 + 1);
    tree.parent.push_back(parent);
    tree.depth.push_back(node == 0 ? 0 : tree.depth[static_cast<size_t>(parent)] + 1);
  }
  return tree;
}

/// Untimed ones, after which the weights are in the cache again; as many as in bench_backends.py.
constexpr int32_t kWarmCalls = 6;

/// Forwards of a tree behind a context, each rolled back.
double time_forward(treespec::OrtTarget& target, std::istream& line) {
  int32_t num_nodes = 0, context = 0, calls = 0;
  line >> num_nodes >> context >> calls;
  std::vector<int32_t> prompt(static_cast<size_t>(context));
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>(i * 7 % 1000) + 2;
  target.prefill(prompt);
  const treespec::TokenTree tree = binary_tree(num_nodes);
  const std::vector<int32_t> positions = treespec::tree_positions(tree.depth, context);
  const std::vector<uint32_t> bits = treespec::ancestor_mask(tree.parent);
  const auto repeat = [&](int32_t times) {
    const auto start = Clock::now();
    for (int32_t call = 0; call < times; ++call) {
      target.forward({tree, positions, bits, context});
      target.commit({});
    }
    return seconds_since(start);
  };
  repeat(kWarmCalls);
  return repeat(calls) / calls;
}

void time_generate(treespec::TargetModel& target, treespec::DraftModel* draft, std::istream& line) {
  treespec::DecoderOptions recipe;
  treespec::GenerateOptions options;
  line >> recipe.node_budget >> options.max_new_tokens >> options.sampling.temperature >>
      options.seed;
  recipe.builder_options["threshold"] = 0.4;  // what treespec.load takes on a CPU
  const std::vector<int32_t> prompt{std::istream_iterator<int32_t>(line), {}};
  const treespec::SpeculativeDecoder decoder(target, draft, recipe);
  const auto start = Clock::now();
  const treespec::GenerateResult result = decoder.generate(prompt, options);
  std::cout << seconds_since(start);
  for (const int32_t token : result.token_ids) std::cout << ' ' << token;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2 || argc > 3) throw std::invalid_argument("usage: bench_exported TARGET [DRAFTER]");
  const treespec::OrtOptions one_thread{1};
  const auto model = treespec::OrtModel::load(argv[1], one_thread);
  treespec::OrtTarget target(model);
  std::unique_ptr<treespec::OrtDraft> draft;
  if (argc == 3) {
    draft = std::make_unique<treespec::OrtDraft>(treespec::OrtModel::load(argv[2], one_thread),
                                                 model->manifest());
  }
  std::cout.precision(9);
  for (std::string text; std::getline(std::cin, text);) {
    std::istringstream line(text);
    std::string command;
    line >> command;
    if (command == "forward") {
      std::cout << time_forward(target, line);
    } else {
      time_generate(target, draft.get(), line);
    }
    std::cout << std::endl;
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << "bench_exported: " << error.what() << '\n';
  return 1;
}
