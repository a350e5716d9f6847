// Two threads each train a model at the same time, with several threads for its kernels. For ThreadSanitizer.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <thread>
#include <vector>

#include "../../csrc/cpu/kernels.h"
#include "../../csrc/rows.h"
#include "../../csrc/solve.h"

using namespace ux;

namespace {

constexpr int64_t kNumel = 300001;
constexpr int kSteps = 5;

// Trains with K constraints, which have averages; returns the parameter.
template <int K> std::vector<float> train(int threads) {
    std::vector<float> values[operands_of(K)], step{0};
    RowTable rows;
    rows.reset(K, 1);
    rows[0].numel = kNumel;
    rows[0].step = reinterpret_cast<int64_t>(step.data());
    for (int o = 0; o < operands_of(K); ++o) {
        const bool is_input = o <= kGrad || (o >= kStateOperands && o % 2 == 0);
        for (int64_t i = 0; i < kNumel; ++i)
            values[o].push_back(is_input ? float((i * (o + 7)) % 1013) / 1013 - 0.4f : 0.0f);
        rows.data(0)[o] = reinterpret_cast<int64_t>(values[o].data());
    }
    const Partition tiling = partition(rows, kMinChunk[0]);
    const double hyper[kHyper] = {1e-3, 0.9, 0.999, 1e-8, 1e-2, 0, 0, 1}, f1 = 1;
    double control[1 + K][kControl] = {{INFINITY}}, report[1 + K][kReport] = {};
    std::vector<double> partials(tiling.tiles * Sums{K}.count()), sums(Sums{K}.count());
    Job job{};
    for (int i = 0; i < K; ++i) {
        double* row = control[1 + i];
        row[kKind] = kEpsilonGap, row[kEpsilon] = 0.3, row[kRate] = 0.1, row[kDelta] = 1;
        row[kAlpha] = row[kCap] = row[kDecay] = NAN, row[kLambdaMax] = INFINITY, row[kIntegrates] = 1;
        job.control_row[i] = i, job.value[i] = &f1, job.value_dtype[i] = DType::f64;
    }
    job.rule = Rule::adamw, job.slots = job.n_constraints = job.n_controls = K;
    job.averages = job.solve = job.counts_steps = true;
    job.n_rows = job.n_groups = 1, job.n_tiles = tiling.tiles, job.chunk = tiling.chunk;
    job.hyper = hyper, job.control = control[0], job.report = report[0];
    job.partials = partials.data(), job.sums = sums.data();
    for (int i = 0; i < kSteps; ++i) {
        cpu::run_stats(rows, job, threads);
        cpu::run_apply(rows, job, threads);
    }
    return values[kParam];
}

template <int K> bool are_the_same_bits() {
    const std::vector<float> single_threaded = train<K>(1);
    std::vector<float> results[2];
    std::thread first([&] { results[0] = train<K>(3); }), second([&] { results[1] = train<K>(4); });
    first.join(), second.join();
    return results[0] == single_threaded && results[1] == single_threaded;
}

}  // namespace

int main() {
    const bool same = are_the_same_bits<1>() && are_the_same_bits<4>() && are_the_same_bits<8>();
    std::puts(same ? "the same bits" : "other bits");
    return same ? 0 : 1;
}
