// SPDX-License-Identifier: Apache-2.0
// What the service is told on its command line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace service {

struct Options {
  // Models
  std::string model;             ///< folder of `treespec export`
  std::string drafter = "auto";  ///< folder, "suffix", "ngram", "none"; "auto": MODEL/drafter
  std::string name;              ///< what clients call the model; empty: the folder's name

  // Trees
  std::string builder = "opt_tree";
  std::string verifier = "auto";
  int32_t nodes = 8;      ///< drafted nodes a round
  int32_t max_depth = 0;  ///< 0: the builder's own

  // HTTP
  std::string host = "127.0.0.1";
  int port = 8080;            ///< 0: any free one
  int connections = 64;       ///< served at once, each by a thread; further ones wait
  size_t max_body = 1 << 20;  ///< bytes of a request

  // Work
  int slots = 2;           ///< answers generated at once, each with caches of its own
  int queue = 16;          ///< requests that may wait for a slot; the next one is refused
  int threads = 1;         ///< of one forward
  int timeout = 300;       ///< seconds from request to answer, the wait for a slot included
  int drain_seconds = 30;  ///< that answers have after SIGTERM
  int read_timeout = 5;    ///< seconds without a byte of a request, and between two requests
  int write_timeout = 5;   ///< seconds without a byte taken by the client
};

/// Reads the command line; for --help and mistakes it prints and exits.
Options parse_options(int argc, char** argv);

}  // namespace service
