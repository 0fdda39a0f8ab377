// Slots in memory that several processes share: writers fill free ones, readers take full ones, oldest first.
//
// The whole state of a slot is one atomic word, so a process that is killed between any two instructions leaves every
// slot in a valid state: what it was writing was never visible, and others see in the word that its owner is gone.
// There is no lock that could stay held.
//
//   free -> writing (owner) -> ready (sequence) -> reading (owner) -> free
//
// Waiting is on counters (futex). Waiters look again after a short while, for whoever should have woken them may be
// dead.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "host/process.h"

namespace gossamer::host {

enum class State : uint64_t { kFree = 0, kWriting = 1, kReady = 2, kReading = 3 };

constexpr uint64_t kMagic = 0x31304d4853534f47;  // "GOSSHM01"
constexpr int64_t kPage = 4096;

inline uint64_t make_word(State state, uint64_t value) { return static_cast<uint64_t>(state) << kProcessBits | value; }
inline State state_of(uint64_t word) { return static_cast<State>(word >> kProcessBits); }
inline uint64_t value_of(uint64_t word) { return word & kProcessMask; }

// A counter to wait on until it changes.
struct Event {
  std::atomic<uint32_t> count;
  std::atomic<uint32_t> waiters;  // too large after a waiter was killed, which costs calls and nothing else

  void notify(int how_many) {
    count.fetch_add(1);
    if (waiters.load() > 0) syscall(SYS_futex, &count, FUTEX_WAKE, how_many, nullptr, nullptr, 0);
  }

  void wait(uint32_t seen, double seconds) {
    const timespec limit{0, static_cast<long>(std::clamp(seconds, 0.0, 0.999) * 1e9)};
    waiters.fetch_add(1);
    syscall(SYS_futex, &count, FUTEX_WAIT, seen, &limit, nullptr, 0);
    waiters.fetch_sub(1);
  }
};

// The start of the shared memory; behind it the words, then the sizes, then from a page border on the slots.
struct Header {
  uint64_t magic;
  int64_t num_slots;
  int64_t slot_bytes;
  ProcessWord creator;
  std::atomic<uint32_t> closed;
  alignas(64) std::atomic<uint64_t> num_put;
  alignas(64) std::atomic<uint64_t> num_taken;
  std::atomic<uint64_t> num_recovered;
  alignas(64) Event ready;
  alignas(64) Event space;
};
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);

struct Counts {
  int64_t by_state[4] = {};
  int64_t reading_here = 0;  // by this process
};

class Slots {
 public:
  explicit Slots(void* memory) : base_(static_cast<char*>(memory)) {}

  static int64_t round_up(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }
  static int64_t first_slot(int64_t num_slots) { return round_up(sizeof(Header) + num_slots * 16); }
  static int64_t total_bytes(int64_t num_slots, int64_t slot_bytes) {
    return first_slot(num_slots) + num_slots * round_up(slot_bytes);
  }

  // For memory that is all zeros: every slot is free.
  void initialize(int64_t num_slots, int64_t slot_bytes) {
    header().num_slots = num_slots;
    header().slot_bytes = slot_bytes;
    header().creator = this_process();
    header().magic = kMagic;
  }

  Header& header() const { return *reinterpret_cast<Header*>(base_); }
  int64_t num_slots() const { return header().num_slots; }
  int64_t slot_bytes() const { return header().slot_bytes; }
  char* data(int64_t slot) const { return base_ + first_slot(num_slots()) + slot * round_up(slot_bytes()); }
  int64_t& size(int64_t slot) const { return reinterpret_cast<int64_t*>(base_ + sizeof(Header))[num_slots() + slot]; }

  // A free slot for writing, or -1.
  int64_t claim() {
    const int64_t n = num_slots();
    for (int64_t i = 0; i < n; ++i) {
      const int64_t slot = next_claim_.load(std::memory_order_relaxed) % n;
      next_claim_.store(slot + 1, std::memory_order_relaxed);
      uint64_t expected = 0;
      if (word(slot).load() == 0 && word(slot).compare_exchange_strong(expected, owned(State::kWriting))) return slot;
    }
    return -1;
  }

  // Gives a slot that was claimed to the readers.
  void commit(int64_t slot, int64_t num_bytes) {
    size(slot) = num_bytes;
    word(slot).store(make_word(State::kReady, header().num_put.fetch_add(1) & kProcessMask));
    header().ready.notify(1);
  }

  // The oldest ready slot for reading, or -1. A slot of a smaller number that became ready during the search is found
  // when it is searched again; so what one writer puts is taken in its order.
  int64_t take() {
    for (;;) {
      uint64_t seen;
      int64_t slot = oldest(&seen);
      if (slot < 0) return -1;
      uint64_t again;
      while (slot >= 0 && oldest(&again) != slot) slot = oldest(&seen);
      if (slot < 0) return -1;
      if (word(slot).compare_exchange_strong(seen, owned(State::kReading))) {
        header().num_taken.fetch_add(1);
        return slot;
      }
    }
  }

  // Frees a slot that this process writes or reads; not the copy of a slot that a fork inherited.
  void release(int64_t slot) {
    uint64_t now = word(slot).load();
    const bool ours =
        (state_of(now) == State::kWriting || state_of(now) == State::kReading) && value_of(now) == this_process();
    if (ours && word(slot).compare_exchange_strong(now, 0)) header().space.notify(1);
  }

  // Frees the slots whose owners have ended, and returns their number.
  int64_t recover() {
    int64_t recovered = 0;
    for (int64_t slot = 0; slot < num_slots(); ++slot) {
      uint64_t now = word(slot).load();
      if (state_of(now) != State::kWriting && state_of(now) != State::kReading) continue;
      if (!is_alive(value_of(now)) && word(slot).compare_exchange_strong(now, 0)) ++recovered;
    }
    if (recovered > 0) {
      header().num_recovered.fetch_add(recovered);
      header().space.notify(static_cast<int>(num_slots()));
    }
    return recovered;
  }

  void close() {
    header().closed.store(1);
    header().ready.notify(1 << 30);
    header().space.notify(1 << 30);
  }

  Counts counts() const {
    Counts counts;
    const uint64_t reading_here = owned(State::kReading);
    for (int64_t slot = 0; slot < num_slots(); ++slot) {
      const uint64_t now = word(slot).load();
      ++counts.by_state[now >> kProcessBits];
      counts.reading_here += now == reading_here;
    }
    return counts;
  }

 private:
  std::atomic<uint64_t>& word(int64_t slot) const {
    return reinterpret_cast<std::atomic<uint64_t>*>(base_ + sizeof(Header))[slot];
  }

  static uint64_t owned(State state) { return make_word(state, this_process()); }

  int64_t oldest(uint64_t* found) const {
    int64_t best = -1;
    for (int64_t slot = 0; slot < num_slots(); ++slot) {
      const uint64_t now = word(slot).load();
      if (state_of(now) != State::kReady || (best >= 0 && now >= *found)) continue;
      best = slot;
      *found = now;
    }
    return best;
  }

  char* const base_;
  std::atomic<int64_t> next_claim_{0};  // of this process: where the next search begins
};

}  // namespace gossamer::host
