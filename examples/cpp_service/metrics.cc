// SPDX-License-Identifier: Apache-2.0
#include "metrics.h"

#include <sstream>
#include <utility>

namespace service {
namespace {

class Writer {
 public:
  Writer() { out_.precision(15); }  // a sum of months still shows a millisecond

  /// The head of a family; its samples follow.
  void family(const std::string& name, const char* type, const char* help) {
    name_ = "treespec_" + name;
    out_ << "# HELP " << name_ << ' ' << help << "\n# TYPE " << name_ << ' ' << type << '\n';
  }
  template <class Value>
  void sample(const std::string& labels, Value value) {
    out_ << name_ << labels << ' ' << value << '\n';
  }
  template <class Value>
  void single(const std::string& name, const char* type, const char* help, Value value) {
    family(name, type, help);
    sample("", value);
  }
  std::string text() const { return out_.str(); }

 private:
  std::ostringstream out_;
  std::string name_;
};

std::string label(const char* name, const std::string& value) {
  return std::string("{") + name + "=\"" + value + "\"}";
}

}  // namespace

void Metrics::count_request(int http_status, const std::string& result) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++requests_[{http_status, result}];
}

void Metrics::count_answer(size_t prompt_tokens, size_t completion_tokens,
                           const treespec::Stats& stats, double seconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  prompt_tokens_ += static_cast<int64_t>(prompt_tokens);
  completion_tokens_ += static_cast<int64_t>(completion_tokens);
  stats_ += stats;
  answer_ = {answer_.sum + seconds, answer_.count + 1};
}

void Metrics::observe_first_token(double seconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  first_token_ = {first_token_.sum + seconds, first_token_.count + 1};
}

std::string Metrics::text(const Gauges& gauges) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  Writer out;
  out.single("slots", "gauge", "Answers that can be generated at once.", gauges.slots);
  out.single("requests_running", "gauge", "Requests that have a slot.", gauges.running);
  out.single("requests_waiting", "gauge", "Requests that wait for a slot.", gauges.waiting);
  out.family("requests_total", "counter", "Requests for completions, by how they ended.");
  for (const auto& [how, count] : requests_) {
    out.sample("{status=\"" + std::to_string(how.first) + "\",result=\"" + how.second + "\"}",
               count);
  }
  out.single("prompt_tokens_total", "counter", "Tokens of prompts.", prompt_tokens_);
  out.single("completion_tokens_total", "counter", "Tokens of answers.", completion_tokens_);
  out.single("drafts_total", "counter", "Target forwards over a tree.", stats_.rounds);
  out.single("draft_tokens_total", "counter", "Drafted nodes.", stats_.drafted_nodes);
  int64_t accepted = 0;
  for (const int64_t count : stats_.accepted_by_depth) accepted += count;
  out.single("accepted_tokens_total", "counter", "Drafted nodes that were accepted.", accepted);
  out.family("accepted_tokens_per_pos_total", "counter",
             "Rounds that accepted a node at a position below the root.");
  for (size_t depth = 0; depth < stats_.accepted_by_depth.size(); ++depth) {
    out.sample(label("position", std::to_string(depth)), stats_.accepted_by_depth[depth]);
  }
  out.family("step_seconds_total", "counter", "Time of rounds by step.");
  for (int step = 0; step < treespec::kNumSteps; ++step) {
    const std::string name(treespec::step_name(static_cast<treespec::Step>(step)));
    out.sample(label("step", name), stats_.seconds[static_cast<size_t>(step)]);
  }
  const auto summary = [&](const char* name, const char* help, const Duration& duration) {
    out.family(name, "summary", help);
    out.sample("_sum", duration.sum);
    out.sample("_count", duration.count);
  };
  summary("time_to_first_token_seconds", "From request to first token.", first_token_);
  summary("answer_seconds", "From request to the end of a completion.", answer_);
  return out.text();
}

}  // namespace service
