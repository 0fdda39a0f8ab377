// gossamer._host: objects that own resources of the operating system. Knows nothing of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sched.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "host/segment.h"

namespace py = pybind11;

namespace gossamer::host {
namespace {

constexpr double kLookAgain = 0.05;     // seconds between two looks for signals and for owners that have ended
constexpr double kYieldSeconds = 3e-5;  // small batches follow each other faster than a sleeper wakes up
constexpr double kHeldSeconds = 1.0;    // how long a reader waits while all slots are in its own hands

enum class Outcome { kSlot, kTimeout, kClosed, kHeldHere, kOrphaned };

// A slot in the hands of this process: writable memory that is given back when the object dies.
class Slot {
 public:
  Slot(std::shared_ptr<Segment> segment, int64_t index, int64_t size)
      : segment_(std::move(segment)), index_(index), size_(size) {}
  ~Slot() { release(); }
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;

  char* data() const { return segment_->slots.data(index_); }
  int64_t size() const { return size_; }

  py::bytes read(int64_t begin, int64_t end) const {
    if (begin < 0 || end < begin || end > size_) throw py::index_error("outside of the slot");
    return py::bytes(data() + begin, end - begin);
  }

  void write(int64_t begin, const py::bytes& bytes) {
    const std::string_view view = bytes;
    if (begin < 0 || begin + static_cast<int64_t>(view.size()) > size_) throw py::index_error("outside of the slot");
    std::memcpy(data() + begin, view.data(), view.size());
  }

  void commit(int64_t num_bytes) {
    if (!std::exchange(done_, true)) segment_->slots.commit(index_, num_bytes);
  }

  void release() {
    if (!std::exchange(done_, true)) segment_->slots.release(index_);
  }

 private:
  const std::shared_ptr<Segment> segment_;
  const int64_t index_;
  const int64_t size_;
  bool done_ = false;
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// What a waiting process must look for from time to time.
bool nothing_to_hope_for(Slots& slots, bool reading, double waited, Outcome* outcome) {
  slots.recover();
  const Counts counts = slots.counts();
  *outcome = Outcome::kHeldHere;
  if (reading && counts.reading_here == slots.num_slots() && waited > kHeldSeconds) return true;
  *outcome = Outcome::kOrphaned;
  return waited > kLookAgain && !is_alive(slots.header().creator);
}

// Waits, without the lock of the interpreter, until `attempt` returns a slot.
template <typename Attempt>
Outcome wait_for(Slots& slots, Event& event, bool reading, double timeout, const Attempt& attempt, int64_t* slot) {
  const double start = now();
  for (;;) {
    const uint32_t seen = event.count.load();
    const bool closed = slots.header().closed.load();
    if (closed && !reading) return Outcome::kClosed;
    if ((*slot = attempt()) >= 0) return Outcome::kSlot;
    if (closed) return Outcome::kClosed;
    const double waited = now() - start;
    if (waited < std::min(kYieldSeconds, timeout)) {
      sched_yield();
      continue;
    }
    if (waited >= timeout) {
      if (slots.recover() > 0 && (*slot = attempt()) >= 0) return Outcome::kSlot;
      return Outcome::kTimeout;
    }
    Outcome outcome;
    if (waited > 0.5 * kLookAgain && nothing_to_hope_for(slots, reading, waited, &outcome)) return outcome;
    event.wait(seen, std::min(kLookAgain, timeout - waited));
    const py::gil_scoped_acquire held;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

using Waited = std::pair<Outcome, std::unique_ptr<Slot>>;

Waited claim(const std::shared_ptr<Segment>& segment, double timeout) {
  Slots& slots = segment->slots;
  int64_t slot = -1;
  const Outcome outcome = [&] {
    const py::gil_scoped_release released;
    return wait_for(slots, slots.header().space, false, timeout, [&] { return slots.claim(); }, &slot);
  }();
  return {outcome, slot < 0 ? nullptr : std::make_unique<Slot>(segment, slot, slots.slot_bytes())};
}

Waited take(const std::shared_ptr<Segment>& segment, double timeout) {
  Slots& slots = segment->slots;
  int64_t slot = -1;
  const Outcome outcome = [&] {
    const py::gil_scoped_release released;
    return wait_for(slots, slots.header().ready, true, timeout, [&] { return slots.take(); }, &slot);
  }();
  return {outcome, slot < 0 ? nullptr : std::make_unique<Slot>(segment, slot, slots.size(slot))};
}

// Claims a slot, writes `head` and the given pieces of memory at their offsets, and commits it.
Outcome put(const std::shared_ptr<Segment>& segment, const py::bytes& head, const std::vector<uintptr_t>& addresses,
            const std::vector<int64_t>& offsets, const std::vector<int64_t>& sizes, int64_t total, double timeout) {
  auto [outcome, slot] = claim(segment, timeout);
  if (!slot) return outcome;
  slot->write(0, head);
  {
    const py::gil_scoped_release released;
    for (size_t i = 0; i < addresses.size(); ++i) {
      if (sizes[i] == 0) continue;  // an empty tensor may have no address
      std::memcpy(slot->data() + offsets[i], reinterpret_cast<const void*>(addresses[i]), sizes[i]);
    }
  }
  slot->commit(total);
  return outcome;
}

py::dict counts(const std::shared_ptr<Segment>& segment) {
  const Header& header = segment->slots.header();
  const Counts counts = segment->slots.counts();
  py::dict result;
  result["free"] = counts.by_state[static_cast<int>(State::kFree)];
  result["writing"] = counts.by_state[static_cast<int>(State::kWriting)];
  result["ready"] = counts.by_state[static_cast<int>(State::kReady)];
  result["reading"] = counts.by_state[static_cast<int>(State::kReading)];
  result["reading_here"] = counts.reading_here;
  result["put"] = header.num_put.load();
  result["taken"] = header.num_taken.load();
  result["recovered"] = header.num_recovered.load();
  return result;
}

}  // namespace
}  // namespace gossamer::host

PYBIND11_MODULE(_host, m) {
  using namespace gossamer::host;
  py::enum_<Outcome>(m, "Outcome")
      .value("slot", Outcome::kSlot)
      .value("timeout", Outcome::kTimeout)
      .value("closed", Outcome::kClosed)
      .value("held_here", Outcome::kHeldHere)
      .value("orphaned", Outcome::kOrphaned);
  py::class_<Slot>(m, "Slot", py::buffer_protocol())
      .def_buffer([](Slot& slot) { return py::buffer_info(slot.data(), slot.size(), false); })
      .def_property_readonly("size", &Slot::size)
      .def("read", &Slot::read)
      .def("write", &Slot::write)
      .def("commit", &Slot::commit)
      .def("release", &Slot::release);
  py::class_<Segment, std::shared_ptr<Segment>>(m, "Segment")
      .def_static("create", &Segment::create)
      .def_static("open", &Segment::open)
      .def_property_readonly("file", &Segment::file)
      .def_property_readonly("num_slots", [](const Segment& s) { return s.slots.num_slots(); })
      .def_property_readonly("slot_bytes", [](const Segment& s) { return s.slots.slot_bytes(); })
      .def_property_readonly("closed", [](const Segment& s) { return s.slots.header().closed.load() != 0; })
      .def_property_readonly("orphaned", [](const Segment& s) { return !is_alive(s.slots.header().creator); })
      .def("claim", &claim)
      .def("take", &take)
      .def("put", &put)
      .def("recover", [](Segment& s) { return s.slots.recover(); })
      .def("close", [](Segment& s) { s.slots.close(); })
      .def("counts", &counts);
}
