// For libFuzzer: builds a job from bytes, runs both phases on every instruction set, and compares with a scalar step.
// Without libFuzzer, inputs.cpp runs the same function on files or random bytes. Single-threaded; two_trainers.cpp tests threads.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <vector>

#include "../../csrc/cpu/half.h"
#include "../../csrc/cpu/kernels.h"
#include "../../csrc/rows.h"
#include "../../csrc/solve.h"

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

// A row of the table with the buffers of its operands, null if absent; the last is the step counter.
struct Operands {
    std::array<const Buffer*, kMaxOperands + 1> of{};

    float original(int o, int64_t i) const { return of[o] ? of[o]->original(i) : 0.0f; }
    const Buffer* step() const { return of[kMaxOperands]; }
};

class Case {
  public:
    explicit Case(Bytes& bytes) {
        rule_ = Rule(bytes.below(kRules));
        n_groups_ = 1 + bytes.below(3);
        const int64_t chunk = int64_t(1) << bytes.below(13);
        for (int64_t i = 0; i < n_groups_ * kHyper; ++i) hyper_.push_back(bytes.number());
        n_constraints_ = bytes.below(2) ? bytes.below(2) : bytes.below(kMaxConstraints + 1);
        n_controls_ = n_constraints_ + bytes.below(3);
        has_averages_ = bytes.below(2);
        while (slots_ < n_constraints_) slots_ *= 2;
        add_controls(bytes);
        const int n_rows = bytes.below(9);
        rows_.reset(slots_, n_rows);
        for (int r = 0, group = 0; r < n_rows; ++r)
            fill_row(r, bytes, group = std::min<int>(n_groups_ - 1, group + bytes.below(2)));
        if (n_rows && bytes.below(4) == 0) set_random_group(rows_[bytes.below(n_rows)], bytes);
        partition_ = partition(rows_, chunk);
    }

    void check() {
        CHECK(groups_fit(rows_, n_groups_) == groups_are_in_order());
        if (!groups_fit(rows_, n_groups_)) return;  // bindings.cpp rejects it
        const auto available = cpu::available();
        cpu::chosen() = available.front();
        const Outcome first = run();
        check_report(first);
        visit(rule_, [&](auto type) {
            visit_slots(slots_, [&](auto slots) {
                using R = typename decltype(type)::type;
                constexpr int K = decltype(slots)::value;
                check_sums<R, K>(first);
                check_lambda<K>(first);
                check_step<R, K>(first);
            });
        });
        for (size_t i = 1; i < available.size(); ++i) {
            cpu::chosen() = available[i];
            CHECK(run() == first);
        }
    }

  private:
    void add_controls(Bytes& bytes) {
        control_.resize((1 + n_controls_) * kControl), report_.resize((1 + n_controls_) * kReport);
        control_[kMaxNorm] = limit(bytes);
        std::vector<int> order(n_controls_);
        std::iota(order.begin(), order.end(), 0);
        if (n_controls_) std::rotate(order.begin(), order.begin() + bytes.below(n_controls_), order.end());
        for (int i = 0; i < n_controls_; ++i) {
            double* control = &control_[(1 + i) * kControl];
            for (int column = kEpsilon; column <= kGivenPsi; ++column) control[column] = bytes.number();
            control[kKind] = bytes.below(3), control[kEquality] = bytes.below(6) == 0;
            control[kCap] = bytes.below(2) ? NAN : limit(bytes), control[kLambdaMax] = limit(bytes);
            control[kDecay] = has_averages_ && bytes.below(4) ? bytes.number() : 0.0;
            double* report = &report_[(1 + i) * kReport];
            report[kConstraint] = bytes.number(), report[kPsi] = 7;  // of an earlier step
            for (int column = kKept; column < kReport; ++column)
                report[column] = bytes.below(32) ? bytes.below(9) / 4.0 - 0.5 : bytes.number();
            report[kCount] = bytes.below(4), report[kSignal] = (1 + bytes.below(8)) / 8.0;
        }
        for (int i = 0; i < n_constraints_; ++i) {
            control_row_[i] = order[i];
            if (bytes.below(4)) values_[i] = std::make_unique<Buffer>(bytes, DType(bytes.below(3)), 1);
        }
    }

    static double limit(Bytes& bytes) { return bytes.below(8) ? INFINITY : std::fabs(bytes.number()); }

    void fill_row(int64_t r, Bytes& bytes, int group) {
        const int size = bytes.next(), absent = bytes.next(), owner = rule_ == Rule::project ? kGrad : kParam;
        const int without_grad = bytes.next(), without_average = has_averages_ ? bytes.next() : ~0;
        RowHead& row = rows_[r];
        row.numel = size < 240 ? size % 60 : (size - 240) * 97, row.group = group;
        Operands operands;
        const auto add = [&](int o, DType dtype, int64_t numel) {
            buffers_.push_back(std::make_unique<Buffer>(bytes, dtype, numel));
            operands.of[o] = buffers_.back().get();
            return reinterpret_cast<int64_t>(buffers_.back()->data());
        };
        const auto is_absent = [&](int o) {
            if (o < kStateOperands) return o != owner && ((absent >> o) & 1);
            const int i = (o - kStateOperands) / 2;
            return i >= n_constraints_ || (((o == held(i) ? without_grad : without_average) >> i) & 1);
        };
        for (int o = 0; o < rows_.operands(); ++o) {
            if (is_absent(o)) continue;
            const auto dtype = DType(bytes.below(3));
            row.tags |= int64_t(dtype) << (2 * o);
            rows_.data(r)[o] = add(o, dtype, row.numel);
        }
        if (rule_ != Rule::project && (absent & 32)) row.step = add(kMaxOperands, DType::f32, 1);
        row.tags |= int64_t(bytes.below(8)) << 40;
        operands_.push_back(operands);
    }

    // Sets a group that may be out of order, beyond n_groups or negative.
    static void set_random_group(RowHead& row, Bytes& bytes) {
        const int64_t group = bytes.below(4) ? bytes.below(5) : (int64_t(bytes.next()) << 23 | bytes.next());
        row.group = bytes.below(8) ? group : -group;
    }

    bool groups_are_in_order() const {
        std::vector<int64_t> groups{0};
        for (int64_t r = 0; r < rows_.size(); ++r) groups.push_back(rows_[r].group);
        groups.push_back(n_groups_ - 1);
        return std::is_sorted(groups.begin(), groups.end());
    }

    int n_sums() const { return Sums{slots_}.count(); }

    Job job_on(double* partials, double* sums, double* report) const {
        Job job{};
        job.rule = rule_, job.slots = slots_, job.n_constraints = n_constraints_, job.n_controls = n_controls_;
        job.averages = has_averages_, job.solve = true, job.counts_steps = true;
        job.n_rows = rows_.size(), job.n_tiles = partition_.tiles, job.chunk = partition_.chunk;
        job.n_groups = n_groups_;
        for (int i = 0; i < n_constraints_; ++i) {
            job.control_row[i] = control_row_[i];
            if (values_[i]) job.value[i] = values_[i]->data(), job.value_dtype[i] = values_[i]->dtype;
        }
        job.hyper = hyper_.data(), job.control = control_.data();
        job.partials = partials, job.sums = sums, job.report = report;
        return job;
    }

    Outcome run() {
        for (auto& buffer : buffers_) buffer->reset();
        std::vector<double> partials(partition_.tiles * n_sums()), sums(n_groups_ * n_sums()), report = report_;
        const Job job = job_on(partials.data(), sums.data(), report.data());
        cpu::run_stats(rows_, job, 1);
        for (auto& buffer : buffers_) CHECK(buffer->unchanged());
        cpu::run_apply(rows_, job, 1);
        Outcome outcome{sums, report, {}};
        for (auto& buffer : buffers_) {
            CHECK(buffer->guard_intact());
            CHECK(report[kSkipped] == 0 || restores(rule_) || buffer->unchanged());
            for (int64_t i = 0; i < buffer->numel; ++i) outcome.values.push_back(buffer->current(i));
        }
        return outcome;
    }

    // Checks what holds for any step: which values persist, and the values of the constraints that take no part.
    void check_report(const Outcome& outcome) const {
        const auto& report = outcome.report;
        const bool skipped = report[kSkipped] != 0;
        CHECK(report[kSkippedSteps] == report[kSkipped]);
        CHECK(skipped || report[kScale] <= 1);
        for (int row = 0; row < n_controls_; ++row) {
            const bool takes_part = std::count(control_row_, control_row_ + n_constraints_, row);
            const double *mine = &report[(1 + row) * kReport], *before = &report_[(1 + row) * kReport];
            for (int column = kPsi; column < kKept && !takes_part; ++column) CHECK(mine[column] == 0);
            for (int column = kKept; column < kReport && (skipped || !takes_part); ++column)
                CHECK(same(mine[column], before[column]));
            if (!takes_part) continue;
            CHECK(skipped || mine[kCount] == before[kCount] + 1);
            const double decay = control_[(1 + row) * kControl + kDecay];
            CHECK(!(decay >= 0 && decay < 1) || (mine[kFresh] > 0 && mine[kFresh] <= 1));
            CHECK(decay == decay || (mine[kFresh] >= kMinSignal && mine[kFresh] <= 1));
        }
    }

    // Calls body(row, operands, rule) for each row.
    template <class R, class Body> void for_each_row(Body body) {
        for (int64_t r = 0; r < rows_.size(); ++r) {
            const RowHead& row = rows_[r];
            const float t = row.step ? operands_[r].step()->original(0) + 1.0f : 0.0f;
            const bool has_first = rows_.data(r)[kFirstMoment] != 0;
            body(row, operands_[r], R(hyper_.data() + row.group * kHyper, has_first, t));
        }
    }

    // The operands of one element, and what the step uses of each ∇c.
    template <int K> struct Point {
        float x[operands_of(K)];
        Gradients<float, K> of;
    };
    template <int K>
    Point<K> point(const Operands& operands, unsigned reads, int64_t i, const Average* averages) const {
        Point<K> p;
        for (int o = 0; o < operands_of(K); ++o)
            p.x[o] = o >= kStateOperands || (reads & bit(o)) ? operands.original(o, i) : 0.0f;
        for (int k = 0; k < K; ++k) {
            p.of.held[k] = p.of.a[k] = p.x[held(k)];
            if (K == 1 && !has_averages_) continue;
            p.of.before[k] = p.x[average(k)];
            p.of.a[k] = p.x[average(k)] = averages[k].next(p.of.before[k], p.of.held[k]);
        }
        return p;
    }
    template <int K> void averages_of(const Job& job, bool solved, Average* averages) const {
        for (int k = 0; k < K; ++k) averages[k] = average_of(job, k, solved);
    }

    template <class R, int K> void check_sums(const Outcome& outcome) {
        constexpr int kSums = Sums{K}.count();
        std::vector<double> sums(n_groups_ * kSums), magnitudes(n_groups_ * kSums), report = report_;
        bool has_nonfinite = false;
        for (int i = 0; i < n_constraints_; ++i) {
            const double kept = report_[(1 + control_row_[i]) * kReport + kConstraint];
            has_nonfinite |= !std::isfinite(values_[i] ? values_[i]->original(0) : kept);
        }
        Average averages[K];
        averages_of<K>(job_on(nullptr, nullptr, report.data()), false, averages);
        for_each_row<R>([&](const RowHead& row, const Operands& operands, const R& rule) {
            for (int64_t i = 0; i < row.numel; ++i) {
                Point<K> p = point<K>(operands, rule.stats_reads(), i, averages);
                has_nonfinite |= !std::isfinite(p.x[kGrad]);
                for (const float grad : p.of.held) has_nonfinite |= !std::isfinite(grad);
                float terms[kSums] = {};
                const auto e = rule.template element<K>(p.x, p.of.a);
                if (K > 1 || has_averages_) accumulate<float, K, true>(e, p.x[kGrad], p.of, terms);
                else accumulate<float, K, false>(e, p.x[kGrad], p.of, terms);
                for (int s = 0; s < kSums; ++s) {
                    sums[row.group * kSums + s] += terms[s];
                    magnitudes[row.group * kSums + s] += std::fabs(terms[s]);
                }
            }
        });
        CHECK(!has_nonfinite || outcome.report[kSkipped] == 1);
        const double rounding = std::ldexp(double(partition_.chunk) / 16 + 32, -24);
        for (size_t s = 0; s < sums.size(); ++s)
            if (magnitudes[s] < 1e38) CHECK(std::fabs(outcome.sums[s] - sums[s]) <= rounding * magnitudes[s]);
    }

    // Checks the signs and limits of λ, and that what is missing of Σμ⟨a_i,g⟩ ≥ Ψ_i is the reported shortfall.
    template <int K> void check_lambda(const Outcome& outcome) const {
        if (outcome.report[kSkipped] != 0) return;
        std::vector<double> sums = outcome.sums, report = outcome.report;
        const Job job = job_on(nullptr, sums.data(), report.data());
        const Totals<K> t(job);
        const double length = Totals<K>(t).take_out(std::array<double, K>{}.data());
        for (int i = 0; i < n_constraints_; ++i) {
            const double* control = &control_[(1 + control_row_[i]) * kControl];
            const double* mine = &report[(1 + control_row_[i]) * kReport];
            const double lambda = mine[kLambda], mu = t.mean_lr[i];
            CHECK(std::isfinite(lambda));
            // A wrapped optimizer has stepped along a part of λ already, so what is added to its step may be negative.
            const double whole = rule_ == Rule::wrap ? mine[kMultiplier] : lambda;
            CHECK(control[kEquality] != 0 || whole >= 0);
            CHECK(!(std::fabs(whole) > control[kLambdaMax] * (1 + 1e-12)));
            double reached = t.lr_dot[i], size = std::fabs(t.lr_dot[i]);
            for (int j = 0; j < n_constraints_; ++j) {
                const double gain = report[(1 + control_row_[j]) * kReport + kLambda] * t.lr_gram[i][j];
                reached += gain, size += std::fabs(gain);
                if (rule_ == Rule::wrap)
                    size += std::fabs(length * report_[(1 + control_row_[j]) * kReport + kCarried] * t.lr_gram[i][j]);
            }
            if (!(mu > 0) || !std::isfinite(mu * mine[kPsi])) continue;
            const double psi = mu * mine[kPsi], missing = psi - report[kScale] * reached;
            const double rounding = 1e-12 * (std::fabs(psi) + size) + 1e-300;
            CHECK(!(missing > mu * std::fmax(mine[kShortfall], 0.0) + rounding));
            const bool is_free = control[kLambdaMax] == INFINITY && report[kScale] == 1 && t.lr_gram[i][i] > 0;
            if (K > 1 || !is_free) continue;
            CHECK(missing <= rounding);  // one constraint is met, with equality unless λ = 0
            CHECK((whole == 0 && control[kEquality] == 0) || missing >= -rounding);
        }
    }

    // Repeats the step with the kernels' arithmetic, element by element; the results must be bitwise identical.
    template <class R, int K> void check_step(const Outcome& outcome) {
        const bool skipped = outcome.report[kSkipped] != 0;
        if (skipped && !restores(rule_)) return;
        std::vector<double> report = outcome.report;
        Average averages[K];
        averages_of<K>(job_on(nullptr, nullptr, report.data()), true, averages);
        float lambda[K] = {};
        for (int i = 0; i < n_constraints_; ++i) lambda[i] = float(report[(1 + control_row_[i]) * kReport + kLambda]);
        unsigned writes = R::kWrites;
        for (int i = 0; i < K; ++i) writes |= bit(average(i));
        for_each_row<R>([&](const RowHead& row, const Operands& operands, const R& rule) {
            for (int64_t i = 0; i < row.numel; ++i) {
                Point<K> p = point<K>(operands, R::kReads, i, averages);
                if (!skipped) rule.step(p.x, rule.template element<K>(p.x, p.of.a), lambda, float(report[kScale]));
                for (int o = 0; o < operands_of(K); ++o) {
                    if (!operands.of[o]) continue;
                    float expected = operands.of[o]->original(i);
                    if (skipped && o == kParam) expected = operands.of[o]->rounded(operands.original(kFirstMoment, i));
                    if (!skipped && (writes & bit(o))) expected = operands.of[o]->rounded(p.x[o]);
                    CHECK(same(operands.of[o]->current(i), expected));
                }
            }
            if (!row.step) return;
            const float steps = operands.step()->original(0);
            CHECK(same(operands.step()->current(0), skipped ? steps : steps + 1.0f));
        });
    }

    Rule rule_;
    int64_t n_groups_;
    int n_constraints_, n_controls_, slots_ = 1;
    bool has_averages_;
    int control_row_[kMaxConstraints];
    std::vector<double> hyper_, control_, report_;  // the report before the step
    std::unique_ptr<Buffer> values_[kMaxConstraints];
    std::vector<std::unique_ptr<Buffer>> buffers_;
    RowTable rows_;
    std::vector<Operands> operands_;
    Partition partition_;
};

// Compares has_aliasing() with a test of all pairs of spans. The addresses are arbitrary and never read.
void check_has_aliasing(Bytes& bytes) {
    const Rule rule = Rule(bytes.below(kRules));
    const int slots = 1 << bytes.below(4), spread = 1 << bytes.below(6);
    unsigned writes = visit(rule, [](auto type) { return decltype(type)::type::kWrites; });
    for (int i = 0; i < slots; ++i) writes |= bit(average(i));
    struct Span {
        int64_t begin, end, row;
        bool written;
    };
    RowTable rows;
    rows.reset(slots, bytes.below(5));
    std::vector<Span> spans;
    for (int64_t r = 0; r < rows.size(); ++r) {
        rows[r].numel = bytes.below(6);
        for (int o = 0; o < rows.operands(); ++o) {
            const int64_t address = rows.data(r)[o] = bytes.next() * spread;
            rows[r].tags |= int64_t(bytes.below(3)) << (2 * o);
            const int64_t size = rows[r].numel * (rows[r].dtype(o) == DType::f32 ? 4 : 2);
            if (address && size) spans.push_back({address, address + size, r, (writes & bit(o)) != 0});
        }
        rows[r].step = bytes.next() * spread;
        if (rows[r].step) spans.push_back({rows[r].step, rows[r].step + 4, r, true});
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
