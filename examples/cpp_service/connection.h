// SPDX-License-Identifier: Apache-2.0
// Whether the client of a request is still there.
#pragma once

#include <string>

namespace service {

/// The socket a request came on. The HTTP library keeps it to itself while a handler works, but its
/// peer's address is known, and no other socket of this process has the same peer. Valid while the
/// request is handled: the socket is open that long.
class Connection {
 public:
  Connection(const std::string& peer_address, int peer_port);
  /// The client has hung up, or will not send any more: then nobody waits for an answer.
  bool closed() const;

 private:
  int socket_ = -1;  // -1: not found, never closed
};

}  // namespace service
