// SPDX-License-Identifier: Apache-2.0
#include "connection.h"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>

#include <filesystem>
#include <system_error>

namespace service {
namespace {

bool has_peer(int socket, const std::string& address, const std::string& port) {
  sockaddr_storage peer{};
  socklen_t size = sizeof(peer);
  auto* name = reinterpret_cast<sockaddr*>(&peer);
  if (getpeername(socket, name, &size) != 0) return false;  // most files are no sockets
  char host[NI_MAXHOST], service[NI_MAXSERV];
  const int flags = NI_NUMERICHOST | NI_NUMERICSERV;
  if (getnameinfo(name, size, host, sizeof(host), service, sizeof(service), flags) != 0) {
    return false;
  }
  return address == host && port == service;
}

}  // namespace

Connection::Connection(const std::string& peer_address, int peer_port) {
  const std::string port = std::to_string(peer_port);
  std::error_code error;
  for (const auto& file : std::filesystem::directory_iterator("/proc/self/fd", error)) {
    const int socket = std::stoi(file.path().filename().string());
    if (has_peer(socket, peer_address, port)) {
      socket_ = socket;
      return;
    }
  }
}

bool Connection::closed() const {
  pollfd state{socket_, POLLRDHUP, 0};
  return socket_ >= 0 && poll(&state, 1, 0) > 0;
}

}  // namespace service
