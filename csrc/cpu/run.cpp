// Distributes the tiles over threads, adds their sums in order, and selects the instruction set.
#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "../solve.h"
#include "half.h"
#include "kernels.h"

namespace ux::cpu {

namespace baseline { extern const Kernels kernels; }
#if defined(UX_X86)
#if defined(UX_AVX2)
namespace avx2 { extern const Kernels kernels; }
#endif
namespace avx512 { extern const Kernels kernels; }
#endif

std::vector<const Kernels*> available() {
    std::vector<const Kernels*> found;
#if defined(UX_X86)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        found.push_back(&avx512::kernels);
#if defined(UX_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))  // all of these also have F16C
        found.push_back(&avx2::kernels);
#endif
#endif
    found.push_back(&baseline::kernels);
    return found;
}

const Kernels*& chosen() {
    static const Kernels* best = available().front();
    return best;
}

namespace {

constexpr int64_t kMinElementsPerThread = 65536;  // below this, waking a thread takes longer than the work

struct Pass {
    const RowTable& rows;
    const Job& job;
    void (*kernel)(const RowTable&, const Job&, int64_t);
    bool backwards;
    std::atomic<int64_t> next{0};
};

void run_tiles(void* data) {
    auto& pass = *static_cast<Pass*>(data);
    const int64_t n = pass.job.n_tiles;
    for (int64_t i; (i = pass.next.fetch_add(1)) < n;) pass.kernel(pass.rows, pass.job, pass.backwards ? n - 1 - i : i);
}

using OpenMP = void (*)(void (*)(void*), void*, unsigned, unsigned);

// A forked child inherits the state of the OpenMP team but not its threads, and would wait for them forever.
bool forked = false;
[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, [] { forked = true; });

// Use torch's OpenMP team if there is one: a second pool would compete with its spinning threads for the cores.
OpenMP openmp() {
    static const auto parallel = reinterpret_cast<OpenMP>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return forked ? nullptr : parallel;
}

void run_in_parallel(Pass& pass, int threads) {
    int64_t elements = 0;
    for (int64_t r = 0; r < pass.job.n_rows; ++r) elements += pass.rows[r].numel;
    if (elements / kMinElementsPerThread < threads) threads = static_cast<int>(elements / kMinElementsPerThread);
    if (threads <= 1) return run_tiles(&pass);
    if (const auto parallel = openmp()) return parallel(run_tiles, &pass, static_cast<unsigned>(threads), 0);
    std::vector<std::thread> workers;
    workers.reserve(threads);
    try {
        for (int i = 1; i < threads; ++i) workers.emplace_back(run_tiles, &pass);
    } catch (const std::exception&) {}  // no more threads available: fewer give the same result
    run_tiles(&pass);
    for (auto& thread : workers) thread.join();
}

double value_of(const void* address, DType dtype) {
    switch (dtype) {
        case DType::f32: return *static_cast<const float*>(address);
        case DType::bf16: return from_bf16(*static_cast<const uint16_t*>(address));
        case DType::f16: return from_f16(*static_cast<const uint16_t*>(address));
        case DType::f64: return *static_cast<const double*>(address);
    }
    return NAN;
}

void combine(const RowTable& rows, const Job& job) {
    const int n_sums = Sums{job.slots}.count();
    for (int64_t i = 0; i < job.n_groups * n_sums; ++i) job.sums[i] = 0;
    for (int64_t tile = 0; tile < job.n_tiles; ++tile) {
        const int64_t group = rows[row_of(rows, job, tile * kChunksPerTile)].group;
        for (int s = 0; s < n_sums; ++s) job.sums[group * n_sums + s] += job.partials[s * job.n_tiles + tile];
    }
}

}  // namespace

void run_solve(const Job& job) {
    Numbers numbers;
    for (int row = 0; row <= job.n_constraints; ++row) {
        std::copy_n(job.control + row_of_numbers(job, row) * kControl, kControl, numbers.control[row]);
        std::copy_n(job.report + row_of_numbers(job, row) * kReport, kReport, numbers.report[row]);
    }
    visit_slots(job.slots, [&](auto slots) { solve<decltype(slots)::value>(job, numbers); });
    for (int row = 0; row <= job.n_constraints; ++row)
        std::copy_n(numbers.report[row], kReport, job.report + row_of_numbers(job, row) * kReport);
    clear_absent(job);
}

void run_stats(const RowTable& rows, const Job& job, int threads) {
    Pass pass{rows, job, chosen()->stats, false};
    run_in_parallel(pass, threads);
    combine(rows, job);
    for (int i = 0; i < job.n_constraints; ++i)
        if (job.value[i])
            job.report[(1 + job.control_row[i]) * kReport + kConstraint] = value_of(job.value[i], job.value_dtype[i]);
    if (job.solve) run_solve(job);
}

void run_apply(const RowTable& rows, const Job& job, int threads) {
    const bool skipped = job.report[kSkipped] != 0;
    if (skipped && !restores(job.rule)) return;
    Pass pass{rows, job, chosen()->apply, true};  // backwards: the end of the stats pass is still in cache
    run_in_parallel(pass, threads);
    if (!job.counts_steps || skipped) return;
    for (int64_t r = 0; r < job.n_rows; ++r)
        if (rows[r].step) *reinterpret_cast<float*>(rows[r].step) += 1.0f;
}

}  // namespace ux::cpu
