// Where the engine and the one who makes grammar masks (Python's worker thread) meet. The grammar's state lives there;
// the engine knows bit masks only.
//
// A constrained sequence has the mask of its first token from its submission. After each token the engine asks for the
// next mask and goes on: the token is computed in the next step as always, and only the draw at that step's end needs
// the mask, so masks are made while the model runs. A step in which every sequence misses its mask waits for them, at
// most as long as its forward pass took: computing it again would cost that much. In any other step a sequence whose
// mask is late draws nothing, rests until the mask has come, and computes that one token again; nobody waits for it.
// Results do not depend on who was late.
//
// Thread contract: ask(), tell_end(), flush(), take(), wait_for(), close() from the engine thread; the others from any.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace fastllm {

// Of Submission: what the worker knows the request's grammar by, and the mask of the first token.
struct MaskSource {
  int64_t key = 0;
  std::vector<uint32_t> first_mask;
};

// To the worker: token `token` was added to sequence `index`, the mask of the next one is wanted. Token -1: the request
// with this key has ended.
struct MaskTask {
  int64_t key = 0;
  int64_t request_id = 0;
  int32_t index = 0;
  int32_t token = -1;
};

// Back: the mask; or none, and the sequence ends: because the grammar is complete, or with an error.
struct MaskReply {
  int64_t request_id = 0;
  int32_t index = 0;
  std::vector<uint32_t> mask;
  std::string error;
};

// Throws kInvalidRequest unless there is one bit per token id, rounded up to words.
void check_mask(const std::vector<uint32_t>& mask, int64_t vocab_size);

class MaskExchange {
 public:
  explicit MaskExchange(int64_t vocab_size);
  ~MaskExchange();
  MaskExchange(const MaskExchange&) = delete;
  MaskExchange& operator=(const MaskExchange&) = delete;

  void ask(const MaskTask& task);
  void tell_end(int64_t key) noexcept;
  // Wakes the worker for all that was asked since.
  void flush() noexcept;
  // Swaps the replies that have come into `replies`, whose former content is dropped.
  void take(std::vector<MaskReply>& replies);
  // Waits until `count` replies lie here, at most timeout_s.
  void wait_for(std::size_t count, double timeout_s);

  // Waits up to timeout_s for tasks. Empty: a timeout, or the exchange is closed. Throws kEngineClosed in a process
  // forked after this was made.
  std::vector<MaskTask> poll(double timeout_s);
  // Throws kInvalidRequest for a mask of a wrong size. Replies for sequences that have ended are ignored.
  void reply(std::vector<MaskReply> replies);
  [[nodiscard]] bool has_replies() const;
  // The engine has ended: wakes the worker, drops replies from now on.
  void close() noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;  // leaked in a forked child: its lock and waiters belong to threads that are not there
};

}  // namespace fastllm
