// For libFuzzer: builds a job from bytes, runs both phases on every instruction set, and compares with a scalar step.
// Without libFuzzer, replay.cpp runs the same function on files. Single-threaded; two_trainers.cpp tests threads.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "../../csrc/cpu/half.h"
#include "../../csrc/cpu/kernels.h"
#include "../../csrc/rows.h"
#include "../../csrc/rules.h"

using namespace ux;

namespace {

#define CHECK(condition) \
    if (!(condition)) std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition), std::abort()

constexpr double kNumbers[] = {
    0, 1, 0.9, 1e-3, 0.5, 0.999, 1e-8, 2, -1, 1e6, 1e-40, 1e30, 1e300, INFINITY, -INFINITY, NAN};
constexpr float kValues[] = {
    0, -0.0f, 1, -1, 1e-3f, 65519, 65520, 6e-8f, 1e-45f, 3e38f, -1e20f, 1e-25f, INFINITY, -INFINITY, NAN, 7};
constexpr size_t kGuard = 64;

struct Bytes {
    const uint8_t *at, *end;

    uint8_t next() { return at < end ? *at++ : 0; }
    int below(int n) { return next() % n; }
    double number() { return kNumbers[next() % 16]; }
};

// One operand, with guard bytes before it; AddressSanitizer detects accesses after it.
struct Buffer {
    DType dtype;
    int64_t numel;
    size_t front, size;
    std::unique_ptr<char[]> memory;
    std::vector<char> initial;

    Buffer(Bytes& bytes, DType type, int64_t n) : dtype(type), numel(n) {
        const size_t width = type == DType::f32 ? 4 : 2;
        front = kGuard + width * bytes.below(16), size = front + width * numel;
        memory.reset(new char[size]);
        std::fill_n(memory.get(), front, char(0x5a));
        uint32_t state = bytes.next() * 2654435761u + 1;
        const int shift = bytes.below(3) * 8;
        for (int64_t i = 0; i < n; ++i) {
            state = state * 1664525u + 1013904223u;
            set(i, std::ldexp(float(int32_t(state)), -31 - shift));
        }
        if (const int special = bytes.next(); n && special >= 128) set(bytes.next() * 31 % n, kValues[special % 16]);
        initial.assign(memory.get(), memory.get() + size);
    }
    char* data() { return memory.get() + front; }
    float get(int64_t i, const char* from) const {
        if (dtype == DType::f32) return reinterpret_cast<const float*>(from)[i];
        const uint16_t bits = reinterpret_cast<const uint16_t*>(from)[i];
        return dtype == DType::bf16 ? from_bf16(bits) : from_f16(bits);
    }
    float current(int64_t i) const { return get(i, memory.get() + front); }
    float original(int64_t i) const { return get(i, initial.data() + front); }
    float rounded(float value) const {
        return dtype == DType::f32 ? value : dtype == DType::bf16 ? from_bf16(to_bf16(value)) : from_f16(to_f16(value));
    }
    void set(int64_t i, float value) {
        if (dtype == DType::f32) reinterpret_cast<float*>(data())[i] = value;
        else reinterpret_cast<uint16_t*>(data())[i] = dtype == DType::bf16 ? to_bf16(value) : to_f16(value);
    }
    void reset() { std::copy(initial.begin(), initial.end(), memory.get()); }
    bool unchanged() const { return std::equal(initial.begin(), initial.end(), memory.get()); }
    bool guard_intact() const { return std::equal(initial.begin(), initial.begin() + front, memory.get()); }
};

bool same(double a, double b) { return a == b ? std::signbit(a) == std::signbit(b) : std::isnan(a) && std::isnan(b); }

struct Outcome {
    std::vector<double> sums, report;
    std::vector<float> values;

    bool operator==(const Outcome& o) const {
        const auto equal = [](const auto& a, const auto& b) {
            return std::equal(a.begin(), a.end(), b.begin(), b.end(), same);
        };
        return equal(sums, o.sums) && equal(report, o.report) && equal(values, o.values);
    }
};

class Case {
  public:
    explicit Case(Bytes& bytes) {
        rule_ = Rule(bytes.below(3));
        n_groups_ = 1 + bytes.below(3);
        const int64_t chunk = int64_t(1) << bytes.below(13);
        for (int64_t i = 0; i < n_groups_ * kHyper; ++i) hyper_.push_back(bytes.number());
        control_ = {double(bytes.below(4)), bytes.number(), bytes.number(), bytes.number(), bytes.number(),
            bytes.number(), INFINITY, INFINITY, INFINITY, bytes.number()};
        if (const int limit = bytes.below(8); limit < 3) control_[kCap + limit] = std::fabs(bytes.number());
        f1_ = std::make_unique<Buffer>(bytes, DType(bytes.below(3)), 1);
        const int n_rows = bytes.below(9);
        for (int r = 0, group = 0; r < n_rows; ++r)
            add_row(bytes, group = std::min<int>(n_groups_ - 1, group + bytes.below(2)));
        if (n_rows && bytes.below(4) == 0) set_random_group(rows_[bytes.below(n_rows)], bytes);
        partition_ = partition(rows_, chunk);
    }

    void check() {
        CHECK(groups_fit(rows_, n_groups_) == groups_are_in_order());
        if (!groups_fit(rows_, n_groups_)) return;  // bindings.cpp rejects it
        const auto available = cpu::available();
        cpu::chosen() = available.front();
        const Outcome first = run();
        check_sums(first);
        check_lambda(first);
        check_step(first);
        for (size_t i = 1; i < available.size(); ++i) {
            cpu::chosen() = available[i];
            CHECK(run() == first);
        }
    }

  private:
    void add_row(Bytes& bytes, int group) {
        Row row{};
        const int size = bytes.next();
        row.numel = size < 240 ? size % 60 : (size - 240) * 97;
        const int absent = bytes.next(), owner = rule_ == Rule::project ? kGrad : kParam;
        std::vector<int> indices(kOperands + 1, -1);
        const auto add = [&](int o, DType dtype, int64_t numel) {
            indices[o] = int(buffers_.size());
            buffers_.push_back(std::make_unique<Buffer>(bytes, dtype, numel));
            return reinterpret_cast<int64_t>(buffers_.back()->data());
        };
        for (int o = 0; o < kOperands; ++o) {
            if (o != owner && ((absent >> o) & 1)) continue;
            const auto dtype = DType(bytes.below(3));
            row.tags |= int64_t(dtype) << (4 * o);
            row.data[o] = add(o, dtype, row.numel);
        }
        if (rule_ != Rule::project && (absent & 32)) row.step = add(kOperands, DType::f32, 1);
        row.tags |= int64_t(bytes.below(8)) << 24 | int64_t(group) << 32;
        rows_.push_back(row);
        buffer_indices_.push_back(indices);
    }

    // Sets a group that may be out of order, beyond n_groups or negative.
    static void set_random_group(Row& row, Bytes& bytes) {
        const int64_t group = bytes.below(4) ? bytes.below(5) : (int64_t(bytes.next()) << 23 | bytes.next());
        row.tags = (row.tags & 0xffffffff) | (bytes.below(8) ? group : -group) * (int64_t(1) << 32);
    }

    bool groups_are_in_order() const {
        std::vector<int> groups{0};
        for (const Row& row : rows_) groups.push_back(row.group());
        groups.push_back(int(n_groups_) - 1);
        return std::is_sorted(groups.begin(), groups.end());
    }

    Outcome run() {
        for (auto& buffer : buffers_) buffer->reset();
        std::vector<double> partials(partition_.tiles * kSums), sums(n_groups_ * kSums), report(kReport);
        const Job job{rule_, f1_->dtype, true, true, int64_t(rows_.size()), partition_.tiles, partition_.chunk,
            n_groups_, f1_->data(), hyper_.data(), control_.data(), partials.data(), sums.data(), report.data()};
        cpu::run_stats(rows_.data(), job, 1);
        for (auto& buffer : buffers_) CHECK(buffer->unchanged());
        cpu::run_apply(rows_.data(), job, 1);
        Outcome outcome{sums, report, {}};
        for (auto& buffer : buffers_) {
            CHECK(buffer->guard_intact());
            CHECK(report[kSkipped] == 0 || buffer->unchanged());
            for (int64_t i = 0; i < buffer->numel; ++i) outcome.values.push_back(buffer->current(i));
        }
        return outcome;
    }

    // Calls body(row, buffers of the row, rule) for each row.
    template <class R, class Body> void for_each_row_as(Body body) {
        for (size_t r = 0; r < rows_.size(); ++r) {
            const Row& row = rows_[r];
            const Buffer* operands[kOperands + 1] = {};
            for (int o = 0; o <= kOperands; ++o)
                if (buffer_indices_[r][o] >= 0) operands[o] = buffers_[buffer_indices_[r][o]].get();
            const float t = row.step ? operands[kOperands]->original(0) + 1.0f : 0.0f;
            body(row, operands, R(hyper_.data() + row.group() * kHyper, row.data[kFirstMoment] != 0, t));
        }
    }
    template <class Body> void for_each_row(Body body) {
        switch (rule_) {
            case Rule::project: return for_each_row_as<ProjectRule>(body);
            case Rule::sgd: return for_each_row_as<SgdRule>(body);
            case Rule::adamw: return for_each_row_as<AdamWRule>(body);
        }
    }
    static void read(const Buffer* const* operands, unsigned reads, int64_t i, float* x) {
        for (int o = 0; o < kOperands; ++o) x[o] = operands[o] && (reads & bit(o)) ? operands[o]->original(i) : 0.0f;
    }

    void check_sums(const Outcome& outcome) {
        std::vector<double> sums(n_groups_ * kSums), magnitudes(n_groups_ * kSums);
        bool has_nonfinite = control_[kKind] != kUnconstrained && !std::isfinite(f1_->original(0));
        for_each_row([&](const Row& row, const Buffer* const* operands, const auto& rule) {
            for (int64_t i = 0; i < row.numel; ++i) {
                float x[kOperands], terms[kSums] = {};
                read(operands, rule.stats_reads(), i, x);
                has_nonfinite |= !std::isfinite(x[kGrad]) || !std::isfinite(x[kConstraintGrad]);
                const auto e = rule.element(x);
                accumulate(e, x[kGrad], x[kConstraintGrad], terms);
                for (int s = 0; s < kSums; ++s) {
                    sums[row.group() * kSums + s] += terms[s];
                    magnitudes[row.group() * kSums + s] += std::fabs(terms[s]);
                }
            }
        });
        CHECK(!has_nonfinite || outcome.report[kSkipped] == 1);
        const double rounding = std::ldexp(double(partition_.chunk) / 16 + 32, -24);
        for (size_t s = 0; s < sums.size(); ++s)
            if (magnitudes[s] < 1e38) CHECK(std::fabs(outcome.sums[s] - sums[s]) <= rounding * magnitudes[s]);
    }

    // If ψ is given, checks the inequality: Σμ⟨g1,d⟩ + λ Σμ⟨g1,P⁻¹g1⟩ ≥ Ψ, with equality unless λ = 0.
    void check_lambda(const Outcome& outcome) const {
        const auto& report = outcome.report;
        CHECK(report[kSkipped] + report[kSkippedSteps] == 2 * report[kSkipped]);
        if (report[kSkipped] != 0) return;
        CHECK(report[kLambda] >= 0 && std::isfinite(report[kLambda]));
        CHECK(report[kScale] <= 1);
        if (control_[kKind] != kGiven || control_[kCap] != INFINITY || control_[kLambdaMax] != INFINITY) return;
        const Totals t(outcome.sums.data(), hyper_.data(), n_groups_);
        if (!(t.lr_sq_constraint > 0)) return;
        const double psi = t.mean_lr * control_[kGivenPsi], gain = report[kLambda] * t.lr_sq_constraint;
        const double slack = t.lr_dot + gain - psi;
        const double rounding = 1e-12 * (std::fabs(psi) + std::fabs(t.lr_dot) + gain) + 1e-300;
        CHECK(slack >= -rounding);
        CHECK(report[kLambda] == 0 || slack <= rounding);
    }

    // Repeats the step with the kernels' arithmetic, element by element; the results must be bitwise identical.
    void check_step(const Outcome& outcome) {
        if (outcome.report[kSkipped] != 0) return;
        const float lambda = float(outcome.report[kLambda]), scale = float(outcome.report[kScale]);
        for_each_row([&](const Row& row, const Buffer* const* operands, const auto& rule) {
            for (int64_t i = 0; i < row.numel; ++i) {
                float x[kOperands];
                read(operands, rule.kReads, i, x);
                const auto e = rule.element(x);
                rule.step(x, e, lambda, scale);
                for (int o = 0; o < kOperands; ++o)
                    if (operands[o]) {
                        const float expected =
                            rule.kWrites & bit(o) ? operands[o]->rounded(x[o]) : operands[o]->original(i);
                        CHECK(same(operands[o]->current(i), expected));
                    }
            }
            if (row.step) CHECK(same(operands[kOperands]->current(0), operands[kOperands]->original(0) + 1.0f));
        });
    }

    Rule rule_;
    int64_t n_groups_;
    std::vector<double> hyper_, control_;
    std::unique_ptr<Buffer> f1_;
    std::vector<std::unique_ptr<Buffer>> buffers_;
    std::vector<Row> rows_;
    std::vector<std::vector<int>> buffer_indices_;  // per row, the index in buffers_ of each operand, or -1
    Partition partition_;
};

// Compares has_aliasing() with a test of all pairs of spans. The addresses are arbitrary and never read.
void check_has_aliasing(Bytes& bytes) {
    const Rule rule = Rule(bytes.below(3));
    const unsigned writes[] = {ProjectRule::kWrites, SgdRule::kWrites, AdamWRule::kWrites};
    struct Span {
        int64_t begin, end, row;
        bool written;
    };
    std::vector<Row> rows(bytes.below(5));
    std::vector<Span> spans;
    for (size_t r = 0; r < rows.size(); ++r) {
        rows[r].numel = bytes.below(6);
        for (int o = 0; o < kOperands; ++o) {
            rows[r].data[o] = bytes.next();
            rows[r].tags |= int64_t(bytes.below(3)) << (4 * o);
            const int64_t size = rows[r].numel * (rows[r].dtype(o) == DType::f32 ? 4 : 2);
            const bool written = writes[int(rule)] & bit(o);
            if (rows[r].data[o] && size)
                spans.push_back({rows[r].data[o], rows[r].data[o] + size, int64_t(r), written});
        }
        rows[r].step = bytes.next();
        if (rows[r].step) spans.push_back({rows[r].step, rows[r].step + 4, int64_t(r), true});
    }
    bool aliases = false;
    for (size_t a = 0; a < spans.size(); ++a)
        for (size_t b = 0; b < a; ++b) {
            const Span &x = spans[a], &y = spans[b];
            const bool in_place = x.row == y.row && x.begin == y.begin && x.end == y.end && !(x.written && y.written);
            aliases |= (x.written || y.written) && !in_place && x.begin < y.end && y.begin < x.end;
        }
    CHECK(has_aliasing(rows, rule) == aliases);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Bytes bytes{data, data + size};
    if (bytes.below(8) == 0) check_has_aliasing(bytes);
    else Case(bytes).check();
    return 0;
}
