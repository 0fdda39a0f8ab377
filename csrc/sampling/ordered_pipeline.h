// Two-stage work on any number of threads with the results of one: stage one in any order, stage two in ascending
// order.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace gossamer::sampling {

// Every worker calls run(). produce(i) runs once for each i of [0, size), on all workers at a time; consume(i) runs
// once for each i, in ascending order, on one worker at a time. Nobody ever waits: a worker that finds the consumer
// busy goes on producing, and whoever finishes an item last consumes what is ready.
class OrderedPipeline {
 public:
  explicit OrderedPipeline(int64_t size) : size_(size), ready_(size) {}

  template <typename Produce, typename Consume>
  void run(const Produce& produce, const Consume& consume) {
    for (int64_t i = next_++; i < size_; i = next_++) {
      produce(i);
      ready_[i] = true;
      consume_ready(consume);
    }
  }

 private:
  template <typename Consume>
  void consume_ready(const Consume& consume) {
    int64_t first;
    do {
      if (busy_.exchange(true)) return;
      while (consumed_ < size_ && ready_[consumed_]) consume(consumed_++);
      first = consumed_;
      busy_ = false;
    } while (first < size_ && ready_[first]);  // it became ready after the last look: its producer found us busy
  }

  const int64_t size_;
  std::vector<std::atomic<bool>> ready_;
  std::atomic<int64_t> next_{0};
  std::atomic<bool> busy_{false};
  int64_t consumed_ = 0;  // guarded by busy_
};

}  // namespace gossamer::sampling
