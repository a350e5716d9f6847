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
// - `extern __shared__` cannot be parsed; dynamic_shared_memory<T>() returns the dynamic shared memory.
// - One .cu file per binary, and one launch at a time. Only what kernels of this repository may use is here.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
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

#define CUDART_VERSION 13000
#define __host__
#define __device__
#define __global__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static __attribute__((section("cuda_shared")))

// Vector types.

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct uint3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// The section of all __shared__ variables; the linker defines its begin and end if there are any.
extern "C" __attribute__((weak, visibility("hidden"))) char __start_cuda_shared[], __stop_cuda_shared[];

namespace cuda_emulator {

constexpr int kWarp = 32, kMaxThreads = 1024, kResidentBlocks = 4;
constexpr size_t kStack = 256 << 10, kPage = 4096, kMaxArguments = 32764, kMaxShared = 227 << 10;

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
    int thread;
    uint3 index;
    Site site;          // where it waits
    unsigned mask;      // lanes that must take part
    int source;         // the lane whose value it receives; -1: it receives a vote
    uint64_t value;     // what it gives: a value, or a predicate
    uint64_t received;  // what it gets: a value, or the lanes whose predicate is true

    int lane() const { return thread % kWarp; }
    std::string text() const { return "thread " + std::to_string(thread); }
};

struct Block {
    unsigned number;
    uint3 index;
    std::vector<Fiber> fibers;
    std::vector<char> shared;  // the contents of cuda_shared while another block runs
    std::vector<char> dynamic_shared;

    int threads() const { return int(fibers.size()); }
    int warps() const { return (threads() + kWarp - 1) / kWarp; }
    int lanes(int warp) const { return std::min(kWarp, threads() - warp * kWarp); }
    bool can_run(int warp) const {
        const auto lane = fibers.begin() + warp * kWarp;
        return std::any_of(lane, lane + lanes(warp), [](const Fiber& f) { return f.state == State::running; });
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
    dim3 grid, block_size;
    size_t dynamic_shared;
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
    const std::vector<int> indices = order(int(grid.x * grid.y * grid.z));
    for (size_t done = 0; done < indices.size(); done += blocks.size()) {
        blocks.resize(std::min<size_t>(kResidentBlocks, indices.size() - done));
        block = nullptr;
        for (size_t b = 0; b < blocks.size(); ++b) start(blocks[b], unsigned(indices[done + b]));
        if (!run_blocks()) return false;
    }
    return true;
}

inline void Machine::start(Block& started, unsigned i) {
    started.number = i, started.index = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    started.fibers.resize(block_size.x * block_size.y * block_size.z);
    started.shared.assign(size_t(__stop_cuda_shared - __start_cuda_shared), char(0xff));
    started.dynamic_shared.assign(dynamic_shared, char(0xff));
    for (unsigned t = 0; t < started.fibers.size(); ++t) {
        Fiber& f = started.fibers[t];
        f.state = State::running, f.thread = int(t);
        f.index = {t % block_size.x, t / block_size.x % block_size.y, t / block_size.x / block_size.y};
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
    if (!error.empty()) error = "block " + std::to_string(block->number) + ": " + error;
    return error.empty();
}

// Runs a warp until all its threads have finished, or wait for other warps or for threads that do not come.
inline bool Machine::run_warp(int warp) {
    const std::vector<int> lanes = order(block->lanes(warp));
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
    const int count = lanes(warp);
    bool released = false;
    for (int l = 0; l < count; ++l) {
        const Fiber leader = first[l];
        if (leader.state != State::at_warp) continue;
        bool complete = (leader.mask >> l & 1) && (count == kWarp || !(leader.mask >> count));
        uint64_t votes = 0;
        for (int i = 0; i < count; ++i) {
            if (!(leader.mask >> i & 1)) continue;
            const Fiber& f = first[i];
            complete &= f.state == State::at_warp && f.mask == leader.mask && f.site == leader.site;
            votes |= uint64_t(f.value != 0) << i;
        }
        if (!complete) continue;
        for (int i = 0; i < count; ++i) {
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
    const int begin = in_warp ? f.thread - f.lane() : 0, end = in_warp ? begin + kWarp : threads();
    const std::string text = f.text() + " waits at " + f.site.text();
    for (int t = begin; t < end; ++t) {
        if (in_warp && !(f.mask >> t % kWarp & 1)) continue;
        if (t >= threads()) return text + " for thread " + std::to_string(t) + ", which does not exist";
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

inline int lane() { return machine.fiber->lane(); }
inline int segment_begin(int width) { return lane() & ~(width - 1); }
inline unsigned vote(unsigned mask, bool predicate, Site site) {
    return unsigned(wait(State::at_warp, site, mask, predicate));
}

template <class... Parameters, size_t... i>
void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<i...>) {
    kernel(*static_cast<Parameters*>(arguments[i])...);
}

}  // namespace cuda_emulator

template <class T> T* dynamic_shared_memory() {
    return reinterpret_cast<T*>(cuda_emulator::machine.block->dynamic_shared.data());
}

#define threadIdx (::cuda_emulator::machine.fiber->index)
#define blockIdx (::cuda_emulator::machine.block->index)
#define blockDim (::cuda_emulator::machine.block_size)
#define gridDim (::cuda_emulator::machine.grid)
constexpr int warpSize = cuda_emulator::kWarp;

// Barriers, votes and shuffles. The last default argument is the line of the call.
#define CUDA_EMULATOR_SITE(name) ::cuda_emulator::Site site = {name, __builtin_FILE(), __builtin_LINE()}

inline void __syncthreads(CUDA_EMULATOR_SITE("__syncthreads")) {
    cuda_emulator::wait(cuda_emulator::State::at_block, site);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_EMULATOR_SITE("__syncwarp")) {
    cuda_emulator::vote(mask, false, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_EMULATOR_SITE("__ballot_sync")) {
    return cuda_emulator::vote(mask, predicate, site);
}
inline int __any_sync(unsigned mask, int predicate, CUDA_EMULATOR_SITE("__any_sync")) {
    return cuda_emulator::vote(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_EMULATOR_SITE("__all_sync")) {
    return cuda_emulator::vote(mask, predicate, site) == mask;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_EMULATOR_SITE("__shfl_sync")) {
    return cuda_emulator::shuffle(mask, value, cuda_emulator::segment_begin(width) + (source & (width - 1)), site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_EMULATOR_SITE("__shfl_up_sync")) {
    const int lane = cuda_emulator::lane(), source = lane - int(delta);
    return cuda_emulator::shuffle(mask, value, source < cuda_emulator::segment_begin(width) ? lane : source, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_EMULATOR_SITE("__shfl_down_sync")) {
    const int lane = cuda_emulator::lane(), source = lane + int(delta);
    const bool inside = source < cuda_emulator::segment_begin(width) + width;
    return cuda_emulator::shuffle(mask, value, inside ? source : lane, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, CUDA_EMULATOR_SITE("__shfl_xor_sync")) {
    const int lane = cuda_emulator::lane(), source = lane ^ bits;
    const bool inside = source < cuda_emulator::segment_begin(width) + width;
    return cuda_emulator::shuffle(mask, value, inside ? source : lane, site);
}

// Memory. Only one thread runs at a time, so fences and atomicity are free.

inline void __threadfence() {}
inline void __threadfence_block() {}
template <class T> T __ldg(const T* address) { return *address; }
template <class T> T __ldcg(const T* address) { return *address; }
template <class T> T __ldcs(const T* address) { return *address; }
template <class T> void __stcg(T* address, T value) { *address = value; }
template <class T> void __stcs(T* address, T value) { *address = value; }
template <class T> T atomicAdd(T* address, std::common_type_t<T> value) {
    return std::exchange(*address, T(*address + value));
}
template <class T> T atomicExch(T* address, std::common_type_t<T> value) { return std::exchange(*address, value); }
template <class T> T atomicCAS(T* address, T expected, T value) {
    return std::exchange(*address, *address == expected ? value : *address);
}

// Arithmetic.

template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) { return b < a ? b : a; }
template <class A, class B> constexpr std::common_type_t<A, B> max(A a, B b) { return a < b ? b : a; }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
inline unsigned __float_as_uint(float x) { return unsigned(cuda_emulator::bits_of(x)); }
inline float __int_as_float(int x) { return __uint_as_float(unsigned(x)); }
inline int __float_as_int(float x) { return int(__float_as_uint(x)); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

struct __nv_bfloat16 { uint16_t bits; };
struct __half { uint16_t bits; };
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) { return {bits}; }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    const unsigned bits = __float_as_uint(x), is_odd = bits >> 16 & 1;
    return {x != x ? uint16_t(0x7fff) : uint16_t((bits + 0x7fff + is_odd) >> 16)};
}
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }
inline float __half2float(__half x) {
    const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
    const float special = mantissa ? NAN : INFINITY;
    const float magnitude = exponent == 31 ? special
                            : exponent     ? std::ldexp(float(mantissa + 1024), exponent - 25)
                                           : std::ldexp(float(mantissa), -24);
    return x.bits >> 15 ? -magnitude : magnitude;
}
inline __half __float2half_rn(float x) {
    if (x != x) return {0x7fff};
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const float magnitude = std::fabs(x);
    if (magnitude >= 65520.0f) return {uint16_t(sign | 0x7c00)};
    const int exponent = magnitude < 0x1p-14f ? -14 : std::ilogb(magnitude);
    // A mantissa of 2048 carries into the exponent, as it must.
    const int mantissa = int(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
    return {uint16_t(sign | (mantissa + ((exponent + 14) << 10)))};
}

// The runtime: one device of three processors with two resident blocks each.

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };

namespace cuda_emulator {
inline thread_local cudaError_t last_error = cudaSuccess;
}

template <class... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, void** arguments,
    size_t shared = 0, cudaStream_t = nullptr) {
    using namespace cuda_emulator;
    static_assert((size_t(0) + ... + sizeof(Parameters)) <= kMaxArguments);
    const std::lock_guard<std::mutex> lock(machine.mutex);
    const size_t n = size_t(block.x) * block.y * block.z;
    if (!n || n > kMaxThreads || !grid.x || !grid.y || !grid.z || shared > kMaxShared)
        return last_error = cudaErrorInvalidValue;
    machine.grid = grid, machine.block_size = block, machine.dynamic_shared = shared;
    machine.kernel = [&] { call(kernel, arguments, std::index_sequence_for<Parameters...>{}); };
    return last_error = machine.launch() ? cudaSuccess : cudaErrorLaunchFailure;
}
inline cudaError_t cudaGetLastError() { return std::exchange(cuda_emulator::last_error, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t error) {
    if (error == cudaErrorLaunchFailure) return cuda_emulator::machine.error.c_str();
    return error == cudaSuccess ? "no error" : "invalid argument";
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidValue : cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 3, cudaSuccess; }
template <class Kernel> cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, Kernel, int, size_t) {
    return *n = 2, cudaSuccess;
}
