// Runs CUDA kernels on the host, for tests: g++ on x86-64 compiles a .cu file unchanged (-x c++) if this folder comes
// first in its include path. Kernels work on host memory.
//
// Every thread is a fiber with its own stack. It runs until it finishes or waits at a barrier, shuffle or vote; once all
// threads that must take part wait at the same one, they continue. If that cannot happen, the launch fails, and
// cudaGetErrorString says which thread waits where, and for which other thread. A thread that has finished counts as
// missing. The environment variable CUDA_EMULATION_ORDER chooses which of the warps that can continue runs next, and in
// which order its lanes: "forward" (the default; one block after another), "backward", or the seed of a random choice
// among the warps of four blocks, so that a race shows as a result that depends on the order. Before each block, its
// shared memory is filled with ones: NaN, or -1.
//
// Limits:
// - Not emulated: weak memory ordering (a missing __threadfence or volatile is not noticed), occupancy and registers,
//   the rounding of approximate instructions, inline PTX, textures, cooperative groups, streams (a launch returns when
//   the kernel has finished). A thread that waits in a loop for another thread waits forever.
// - A race is noticed only if one of the orders changes a result. A warp runs until it waits, so there is no switch
//   between two memory accesses.
// - __syncthreads, shuffles and votes match only if they are on the same line of the source.
// - A function with __shared__ variables must have internal linkage: static, or in an unnamed namespace.
// - One .cu file per binary, and one launch at a time. Only what the kernels of this repository use is here: grids and
//   blocks have one dimension, blocks have full warps, and there is no dynamic shared memory.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

// The section of all __shared__ variables; the linker defines its begin and end if there are any.
extern "C" __attribute__((weak, visibility("hidden"))) char __start_cuda_shared[], __stop_cuda_shared[];

namespace cuda_emulator {

struct Index { unsigned x; };

constexpr int kWarp = 32, kMaxThreads = 1024, kResidentBlocks = 4;
constexpr size_t kStack = 256 << 10, kPage = 4096, kMaxArguments = 32764;

// A thread that does not run is its stack pointer; its registers are on its stack.
extern "C" void cuda_emulator_switch(void** from, void** to);
asm(R"(
    .pushsection .text
    .type cuda_emulator_switch, @function
cuda_emulator_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
    .size cuda_emulator_switch, . - cuda_emulator_switch
    .popsection
)");

// A barrier, shuffle or vote in the source.
struct Site {
    const char* name;
    const char* file;
    int line;

    bool operator==(const Site& other) const { return name == other.name && line == other.line && file == other.file; }
    std::string text() const {
        const char* slash = strrchr(file, '/');
        return std::string(name) + " (" + (slash ? slash + 1 : file) + ":" + std::to_string(line) + ")";
    }
};

enum class State { running, at_warp, at_block, finished };

struct Fiber {
    void* stack_pointer;
    State state;
    Index index;        // its number in the block
    Site site;          // where it waits
    unsigned mask;      // lanes that must take part
    int source;         // the lane whose value it receives; -1: it receives a vote
    uint64_t value;     // what it gives: a value, or a predicate
    uint64_t received;  // what it gets: a value, or the lanes whose predicate is true

    int lane() const { return int(index.x % kWarp); }
    std::string text() const { return "thread " + std::to_string(index.x); }
};

struct Block {
    Index index;
    std::vector<Fiber> fibers;
    std::vector<char> shared;  // the contents of cuda_shared while another block runs

    int warps() const { return int(fibers.size()) / kWarp; }
    bool can_run(int warp) const {
        const auto lane = fibers.begin() + warp * kWarp;
        return std::any_of(lane, lane + kWarp, [](const Fiber& f) { return f.state == State::running; });
    }
    bool release_warp(int warp, std::string& error);
    void release_all();
    std::string deadlock() const;
};

// The launch that runs.
struct Machine {
    std::mutex mutex;
    char* stacks = nullptr;
    void* scheduler;
    std::function<void()> kernel;
    Index grid, block_size;
    std::vector<Block> blocks;  // those that run at the same time
    Block* block;               // the one whose shared memory is in cuda_shared
    Fiber* fiber;
    std::string order_name, error;
    std::mt19937 random;

    bool launch();
    void start(Block& block, unsigned index);
    bool run_blocks();
    bool run_warp(int warp);
    void select(Block& block);
    char* stack(int thread);
    std::vector<int> order(int n);
    size_t choose(size_t n) {
        return order_name == "forward" ? 0 : order_name == "backward" ? n - 1 : random() % n;
    }
};

inline Machine machine;

// Each thread begins here, and never returns.
inline void run_thread() {
    machine.kernel();
    machine.fiber->state = State::finished;
    cuda_emulator_switch(&machine.fiber->stack_pointer, &machine.scheduler);
}

// Stops the current thread until it is released; returns what it received.
inline uint64_t wait(State state, Site site, unsigned mask = 0, uint64_t value = 0, int source = -1) {
    Fiber* self = machine.fiber;
    self->state = state, self->site = site, self->mask = mask, self->value = value, self->source = source;
    cuda_emulator_switch(&self->stack_pointer, &machine.scheduler);
    return self->received;
}

inline bool Machine::launch() {
    const char* chosen = std::getenv("CUDA_EMULATION_ORDER");
    order_name = chosen ? chosen : "forward";
    random.seed(unsigned(std::strtoul(order_name.c_str(), nullptr, 10)));
    error.clear();
    const std::vector<int> indices = order(int(grid.x));
    for (size_t done = 0; done < indices.size(); done += blocks.size()) {
        blocks.resize(std::min<size_t>(kResidentBlocks, indices.size() - done));
        block = nullptr;
        for (size_t b = 0; b < blocks.size(); ++b) start(blocks[b], unsigned(indices[done + b]));
        if (!run_blocks()) return false;
    }
    return true;
}

inline void Machine::start(Block& started, unsigned i) {
    started.index = {i};
    started.fibers.resize(block_size.x);
    started.shared.assign(size_t(__stop_cuda_shared - __start_cuda_shared), char(0xff));
    for (unsigned t = 0; t < started.fibers.size(); ++t) {
        Fiber& f = started.fibers[t];
        f.state = State::running, f.index = {t};
        // The top of its stack: six registers, the function to return to, and the return address of that function.
        char* bottom = stack(int(&started - blocks.data()) * kMaxThreads + int(t));
        void** top = reinterpret_cast<void**>(bottom + kStack) - 2;
        top[0] = reinterpret_cast<void*>(run_thread), top[1] = nullptr;
        f.stack_pointer = top - 6;
    }
}

// Runs warps until none can run.
inline bool Machine::run_blocks() {
    std::vector<std::pair<Block*, int>> ready;
    for (;;) {
        ready.clear();
        for (Block& b : blocks)
            for (int warp = 0; warp < b.warps(); ++warp)
                if (b.can_run(warp)) ready.emplace_back(&b, warp);
        if (ready.empty()) break;
        const auto [next, warp] = ready[choose(ready.size())];
        select(*next);
        if (!run_warp(warp)) break;
        next->release_all();
    }
    for (Block& b : blocks) {
        if (!error.empty()) break;
        block = &b, error = b.deadlock();
    }
    if (!error.empty()) error = "block " + std::to_string(block->index.x) + ": " + error;
    return error.empty();
}

// Runs a warp until all its threads have finished, or wait for other warps or for threads that do not come.
inline bool Machine::run_warp(int warp) {
    const std::vector<int> lanes = order(kWarp);
    do {
        for (int lane : lanes) {
            fiber = &block->fibers[warp * kWarp + lane];
            if (fiber->state == State::running) cuda_emulator_switch(&scheduler, &fiber->stack_pointer);
        }
    } while (block->release_warp(warp, error));
    return error.empty();
}

// Exchanges the contents of cuda_shared; volatile and without checks, since there are red zones between the variables.
__attribute__((no_sanitize("address"))) inline void Machine::select(Block& next) {
    if (block == &next) return;
    volatile char* const current = __start_cuda_shared;
    char* const last = block ? block->shared.data() : nullptr;
    const char* const loaded = next.shared.data();
    for (size_t i = 0, size = next.shared.size(); i < size; ++i) {
        if (last) last[i] = current[i];
        current[i] = loaded[i];
    }
    block = &next;
}

// Each stack begins with a page without access, so that an overflow is a fault.
inline char* Machine::stack(int thread) {
    constexpr size_t stride = kStack + kPage, total = kResidentBlocks * kMaxThreads * stride;
    if (!stacks) {
        constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* memory = mmap(nullptr, total, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        stacks = static_cast<char*>(memory);
        for (size_t offset = 0; offset < total; offset += stride) mprotect(stacks + offset, kPage, PROT_NONE);
    }
    return stacks + thread * stride + kPage;
}

// 0, …, n − 1 in the chosen order.
inline std::vector<int> Machine::order(int n) {
    std::vector<int> indices(n);
    std::iota(indices.begin(), indices.end(), 0);
    if (order_name == "backward") std::reverse(indices.begin(), indices.end());
    else if (order_name != "forward") std::shuffle(indices.begin(), indices.end(), random);
    return indices;
}

// Releases the threads that wait at a shuffle or vote whose lanes are all there; returns whether there are any.
inline bool Block::release_warp(int warp, std::string& error) {
    Fiber* const first = &fibers[warp * kWarp];
    bool released = false;
    for (int l = 0; l < kWarp; ++l) {
        const Fiber leader = first[l];
        if (leader.state != State::at_warp) continue;
        bool complete = leader.mask >> l & 1;
        uint64_t votes = 0;
        for (int i = 0; i < kWarp; ++i) {
            if (!(leader.mask >> i & 1)) continue;
            const Fiber& f = first[i];
            complete &= f.state == State::at_warp && f.mask == leader.mask && f.site == leader.site;
            votes |= uint64_t(f.value != 0) << i;
        }
        if (!complete) continue;
        for (int i = 0; i < kWarp; ++i) {
            if (!(leader.mask >> i & 1)) continue;
            Fiber& f = first[i];
            if (f.source >= 0 && !(f.mask >> f.source & 1))
                error = f.text() + " reads lane " + std::to_string(f.source) + ", which does not take part in " +
                        f.site.text();
            f.received = f.source < 0 ? votes : first[f.source].value;
            f.state = State::running;
        }
        released = true;
    }
    return released && error.empty();
}

// Releases all threads if they wait at the same barrier.
inline void Block::release_all() {
    for (const Fiber& f : fibers)
        if (f.state != State::at_block || !(f.site == fibers[0].site)) return;
    for (Fiber& f : fibers) f.state = State::running;
}

// Says which thread waits for which other thread; an empty string if all have finished.
inline std::string Block::deadlock() const {
    const auto first_in = [&](State state) {
        return std::find_if(fibers.begin(), fibers.end(), [&](const Fiber& f) { return f.state == state; });
    };
    auto waiting = first_in(State::at_warp);  // a shuffle that some lanes miss is the cause of a barrier that they miss
    if (waiting == fibers.end()) waiting = first_in(State::at_block);
    if (waiting == fibers.end()) return "";
    const Fiber& f = *waiting;
    const bool in_warp = f.state == State::at_warp;
    const int begin = in_warp ? int(f.index.x) - f.lane() : 0, end = in_warp ? begin + kWarp : int(fibers.size());
    const std::string text = f.text() + " waits at " + f.site.text();
    for (int t = begin; t < end; ++t) {
        if (in_warp && !(f.mask >> t % kWarp & 1)) continue;
        const Fiber& other = fibers[t];
        if (other.state == State::finished) return text + " for " + other.text() + ", which has finished";
        if (other.state != f.state || !(other.site == f.site) || other.mask != f.mask)
            return text + " for " + other.text() + ", which waits at " + other.site.text();
    }
    return text + ", but is not in its own mask";
}

template <class T> uint64_t bits_of(T value) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    return bits;
}

template <class T> T shuffle(unsigned mask, T value, int source, Site site) {
    const uint64_t bits = wait(State::at_warp, site, mask, bits_of(value), source);
    memcpy(&value, &bits, sizeof(T));
    return value;
}

inline unsigned vote(unsigned mask, bool predicate, Site site) {
    return unsigned(wait(State::at_warp, site, mask, predicate));
}

template <class... Parameters, size_t... i>
void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<i...>) {
    kernel(*static_cast<Parameters*>(arguments[i])...);
}

}  // namespace cuda_emulator
