// Shared memory without a name: the kernel takes it back when the last process that maps it has ended, however it
// ended.
#pragma once

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>

#include "host/slots.h"

namespace gossamer::host {

class Segment {
 public:
  // New memory. Pages are taken when they are first written to.
  static std::shared_ptr<Segment> create(int64_t num_slots, int64_t slot_bytes) {
    const int file = memfd_create("gossamer-queue", MFD_CLOEXEC);
    if (file < 0) throw std::system_error(errno, std::generic_category(), "memfd_create");
    const int64_t size = Slots::total_bytes(num_slots, slot_bytes);
    if (ftruncate(file, size) != 0) fail(file, "ftruncate");
    auto segment = std::shared_ptr<Segment>(new Segment(file, size));
    segment->slots.initialize(num_slots, slot_bytes);
    return segment;
  }

  // The memory behind a file descriptor, which the segment owns from now on.
  static std::shared_ptr<Segment> open(int file) {
    struct stat status;
    if (fstat(file, &status) != 0) fail(file, "fstat");
    if (status.st_size < static_cast<int64_t>(sizeof(Header))) invalid(file);
    auto segment = std::shared_ptr<Segment>(new Segment(file, status.st_size));
    const Header& header = segment->slots.header();
    if (header.magic != kMagic || Slots::total_bytes(header.num_slots, header.slot_bytes) != status.st_size) {
      throw std::invalid_argument("no queue");
    }
    return segment;
  }

  ~Segment() {
    munmap(memory_, size_);
    ::close(file_);
  }
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  int file() const { return file_; }

 private:
  Segment(int file, int64_t size) : file_(file), size_(size), memory_(map(file, size)), slots(memory_) {}

  static void* map(int file, int64_t size) {
    void* const memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    if (memory == MAP_FAILED) fail(file, "mmap");
    return memory;
  }

  [[noreturn]] static void fail(int file, const char* what) {
    const int error = errno;
    ::close(file);
    throw std::system_error(error, std::generic_category(), what);
  }

  [[noreturn]] static void invalid(int file) {
    ::close(file);
    throw std::invalid_argument("no queue");
  }

  const int file_;
  const int64_t size_;
  void* const memory_;

 public:
  Slots slots;
};

}  // namespace gossamer::host
