// torch_parallel_for on std::thread, to be loaded before torch by `make test-threads`: the thread sanitizer understands
// how these threads start and end, which it cannot for the OpenMP that torch was built with.
#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

extern "C" {

using AOTITorchError = int32_t;
using ParallelFunction = void (*)(int64_t begin, int64_t end, void* context);

// As at::parallel_for with four threads: one range for each, none shorter than the grain but the last, nested calls in
// order.
__attribute__((visibility("default"))) AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain,
                                                                         ParallelFunction function, void* context) {
  constexpr int64_t num_threads = 4;
  static thread_local bool nested = false;
  const int64_t share = nested ? end - begin : (end - begin + num_threads - 1) / num_threads;
  const int64_t length = std::max({share, grain, int64_t{1}});
  const int64_t num_ranges = (end - begin + length - 1) / length;
  std::vector<std::exception_ptr> thrown(std::max<int64_t>(num_ranges, 0));
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < num_ranges; ++i) {
    const auto run = [&, i] {
      nested = true;
      try {
        function(begin + i * length, std::min(end, begin + (i + 1) * length), context);
      } catch (...) {
        thrown[i] = std::current_exception();
      }
    };
    if (num_ranges == 1) {
      const bool before = nested;
      run();
      nested = before;
    } else {
      threads.emplace_back(run);
    }
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : thrown) {
    if (error) std::rethrow_exception(error);
  }
  return 0;
}
}
