// Who owns what in shared memory: a word that names a process, and whether that process is still alive.
#pragma once

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace gossamer::host {

// The process id in the lower 22 bits (Linux allows no larger ones), below the time of its start, which tells it from a
// later process of the same id. Two bits above stay free.
using ProcessWord = uint64_t;
constexpr int kProcessIdBits = 22;
constexpr int kProcessBits = 62;
constexpr uint64_t kProcessIdMask = (uint64_t{1} << kProcessIdBits) - 1;
constexpr uint64_t kProcessMask = (uint64_t{1} << kProcessBits) - 1;

// The word of the process with this id, without a start where /proc does not tell; 0 if it has ended.
inline ProcessWord process_word(pid_t id) {
  const ProcessWord without_start = static_cast<ProcessWord>(id) & kProcessIdMask;
  if (kill(id, 0) != 0 && errno == ESRCH) return 0;
  char path[32], text[1024];
  std::snprintf(path, sizeof(path), "/proc/%d/stat", static_cast<int>(id));
  std::FILE* const file = std::fopen(path, "r");
  if (!file) return without_start;
  text[std::fread(text, 1, sizeof(text) - 1, file)] = 0;
  std::fclose(file);
  const char* field = std::strrchr(text, ')');  // the name before it may hold anything
  if (!field || std::strlen(field) < 4) return without_start;
  if (field[2] == 'Z' || field[2] == 'X') return 0;
  for (int i = 2; i < 22 && field; ++i) field = std::strchr(field + 1, ' ');
  if (!field) return without_start;
  return (std::strtoull(field, nullptr, 10) << kProcessIdBits | without_start) & kProcessMask;
}

inline ProcessWord this_process() {
  static std::atomic<ProcessWord> known{0};
  ProcessWord word = known.load(std::memory_order_relaxed);
  if ((word & kProcessIdMask) != static_cast<ProcessWord>(getpid())) {  // first use, here or after a fork
    word = process_word(getpid());
    known.store(word, std::memory_order_relaxed);
  }
  return word;
}

inline bool is_alive(ProcessWord word) {
  const ProcessWord now = process_word(static_cast<pid_t>(word & kProcessIdMask));
  const bool no_start = now <= kProcessIdMask || word <= kProcessIdMask;
  return now != 0 && (now == word || no_start);
}

}  // namespace gossamer::host
