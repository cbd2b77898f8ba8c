// SPDX-License-Identifier: Apache-2.0
#include "options.h"

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <limits>

namespace service {
namespace {

constexpr const char* kAbout =
    "Serves an exported target with its drafter: POST /v1/completions as OpenAI has it, with\n"
    "streaming; GET /health, /v1/models and /metrics. The text is that of the target alone.";

constexpr const char* kExamples =
    "Examples:\n"
    "  # Make the folder, once: target, drafter and tokenizer of the bundled pair.\n"
    "  treespec export --target demo --drafter demo --out demo\n"
    "  convert_tokenizer demo -o demo --with-detokenizer --utf8_replace_mode disable\n"
    "\n"
    "  cpp_service demo\n"
    "  cpp_service demo --slots 4 --queue 32 --port 9000\n"
    "  cpp_service demo --drafter suffix --builder trie --nodes 16\n"
    "  cpp_service demo --drafter none\n"
    "\n"
    "  curl localhost:8080/v1/completions -d '{\"prompt\": \"class Stack:\", \"max_tokens\": 64}'\n"
    "\n"
    "SIGTERM or Ctrl-C: takes no more requests, finishes its answers, exits with 0.";

void add_models(CLI::App& app, Options& o) {
  app.add_option("model", o.model, "Folder of `treespec export`, with the converted tokenizer")
      ->required()
      ->check(CLI::ExistingDirectory);
  app.add_option("--drafter", o.drafter,
                 "Folder of an exported drafter; suffix or ngram, which need no model; none; auto "
                 "is MODEL/drafter if there is one, else suffix")
      ->capture_default_str();
  app.add_option("--name", o.name, "What clients call the model [the folder's name]");
}

void add_trees(CLI::App& app, Options& o) {
  const auto add = [&app](const char* name, auto& value, const char* what) {
    return app.add_option(name, value, what)->capture_default_str()->group("Trees");
  };
  add("--builder", o.builder, "How trees grow: opt_tree, dtree, trie, chain, ...");
  add("--verifier", o.verifier, "How they are verified; auto keeps the text of plain decoding");
  add("--nodes", o.nodes, "Drafted nodes a round")->check(CLI::Range(0, 4096));
  add("--max-depth", o.max_depth, "Deepest node; 0: as deep as the builder goes")
      ->check(CLI::Range(0, 4096));
}

void add_limits(CLI::App& app, Options& o) {
  constexpr int kDay = 86400;
  const auto add = [&app](const char* name, auto& value, const char* what) {
    return app.add_option(name, value, what)->capture_default_str()->group("Limits");
  };
  add("--slots", o.slots, "Answers generated at once, each with caches of its own")
      ->check(CLI::Range(1, 1024));
  add("--queue", o.queue, "Requests that may wait for a slot; the next gets 429")
      ->check(CLI::Range(0, 65536));
  add("--threads", o.threads, "Threads of a forward, shared by the slots; 0: one a core")
      ->check(CLI::Range(0, 1024));
  add("--timeout", o.timeout, "Seconds for a request, its wait for a slot included")
      ->check(CLI::Range(1, kDay));
  add("--drain-seconds", o.drain_seconds, "Seconds that answers have to end after SIGTERM")
      ->check(CLI::Range(0, kDay));
  add("--max-body", o.max_body, "Bytes of a request's body; longer ones get 413")
      ->check(CLI::Range(size_t{1}, size_t{1} << 30));
}

void add_http(CLI::App& app, Options& o) {
  constexpr int kHour = 3600;
  const auto add = [&app](const char* name, auto& value, const char* what) {
    return app.add_option(name, value, what)->capture_default_str()->group("HTTP");
  };
  add("--host", o.host, "Address to listen on");
  add("--port", o.port, "Port; 0: any free one, printed")->check(CLI::Range(0, 65535));
  add("--connections", o.connections, "Connections served at once; others wait")
      ->check(CLI::Range(1, 4096));
  add("--read-timeout", o.read_timeout, "Seconds to wait for a client's bytes, or next request")
      ->check(CLI::Range(1, kHour));
  add("--write-timeout", o.write_timeout, "Seconds to wait until a client takes bytes")
      ->check(CLI::Range(1, kHour));
}

/// With fewer, those who should be told that the line is full would wait without an answer.
void check_connections(const Options& o) {
  if (o.connections > o.slots + o.queue) return;
  throw CLI::ValidationError(
      "--connections", "must be above --slots + --queue = " + std::to_string(o.slots + o.queue) +
                           ", got " + std::to_string(o.connections));
}

}  // namespace

Options parse_options(int argc, char** argv) {
  Options options;
  CLI::App app(kAbout, "cpp_service");
  app.footer(kExamples);
  add_models(app, options);
  add_limits(app, options);
  add_trees(app, options);
  add_http(app, options);
  try {
    app.parse(argc, argv);
    check_connections(options);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error));
  }
  return options;
}

}  // namespace service
