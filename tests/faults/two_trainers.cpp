// Two threads each train a model at the same time, with several threads for its kernels. For ThreadSanitizer.
#include <cstdio>
#include <thread>
#include <vector>

#include "../../csrc/cpu/kernels.h"
#include "../../csrc/rows.h"
#include "../../csrc/rules.h"

using namespace ux;

namespace {

constexpr int64_t kNumel = 300001;
constexpr int kSteps = 5;

std::vector<float> train(int threads) {
    std::vector<float> values[kOperands], step{0};
    Row row{};
    row.numel = kNumel;
    row.step = reinterpret_cast<int64_t>(step.data());
    for (int o = 0; o < kOperands; ++o) {
        for (int64_t i = 0; i < kNumel; ++i)
            values[o].push_back(o < kFirstMoment ? float((i * (o + 7)) % 1013) / 1013 - 0.4f : 0.0f);
        row.data[o] = reinterpret_cast<int64_t>(values[o].data());
    }
    std::vector<Row> rows{row};
    const Partition tiling = partition(rows, kMinChunk[0]);
    const double hyper[kHyper] = {1e-3, 0.9, 0.999, 1e-8, 1e-2, 0, 0, 1}, f1 = 1;
    const double control[kControl] = {kEpsilonGap, 0.3, NAN, 0.1, 1, 0, INFINITY, INFINITY, INFINITY, 0};
    std::vector<double> partials(tiling.tiles * kSums), sums(kSums), report(kReport);
    const Job job{Rule::adamw, DType::f64, true, true, 1, tiling.tiles, tiling.chunk, 1, &f1, hyper, control,
        partials.data(), sums.data(), report.data()};
    for (int i = 0; i < kSteps; ++i) {
        cpu::run_stats(rows.data(), job, threads);
        cpu::run_apply(rows.data(), job, threads);
    }
    return values[kParam];
}

}  // namespace

int main() {
    const std::vector<float> single_threaded = train(1);
    std::vector<float> results[2];
    std::thread first([&] { results[0] = train(3); }), second([&] { results[1] = train(4); });
    first.join(), second.join();
    const bool same = results[0] == single_threaded && results[1] == single_threaded;
    std::puts(same ? "the same bits" : "other bits");
    return same ? 0 : 1;
}
