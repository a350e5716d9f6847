// For libFuzzer: builds a dual QP from bytes, solves it and checks the conditions of optimality.
// Without libFuzzer, inputs.cpp runs the same function on random bytes.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "../../csrc/qp.h"

using namespace ux;

namespace {

#define CHECK(condition) \
    if (!(condition)) std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition), std::abort()

constexpr double kNumbers[] = {
    0, 1, -1, 0.5, 1e-8, -1e-8, 1e8, 3, 1e-300, -1e300, 1e308, -1e308, 5e-324, INFINITY, -INFINITY, NAN};
constexpr int kDim = 12;

struct Bytes {
    const uint8_t *at, *end;

    uint8_t next() { return at < end ? *at++ : 0; }
    int below(int n) { return next() % n; }
    double real() { return (next() - 127.5 + next() / 256.0) / 64; }
};

struct Problem {
    int n;
    unsigned equalities;
    double gram[kMaxConstraints][kMaxConstraints] = {}, b[kMaxConstraints];

    explicit Problem(Bytes& bytes) : n(1 + bytes.below(kMaxConstraints)), equalities(bytes.next()) {
        if (bytes.below(2)) equalities = 0;
    }
    bool is_equality(int i) const { return (equalities >> i) & 1; }
    bool is_finite() const {
        for (int i = 0; i < n; ++i) {
            if (!std::isfinite(b[i])) return false;
            for (int j = 0; j <= i; ++j)
                if (!std::isfinite(gram[i][j])) return false;
        }
        return true;
    }
    double positive(int i) const { return is_equality(i) ? std::fabs(b[i]) : std::fmax(b[i], 0.0); }
};

// What holds for any input.
QpSolution check_any(const Problem& problem, double* lambda) {
    const QpSolution solution = solve_dual(problem.n, problem.gram, problem.b, problem.equalities, lambda);
    CHECK(solution.iterations <= 2 * kIterationsPerConstraint * problem.n);
    CHECK(solution.short_of >> problem.n == 0);
    for (int i = 0; i < problem.n; ++i) {
        CHECK(std::isnan(lambda[i]) == !problem.is_finite());
        CHECK(problem.is_equality(i) || !(lambda[i] < 0));
    }
    return solution;
}

// Any numbers in place of G, which is then not a Gram matrix.
void check_numbers(Bytes& bytes) {
    Problem problem(bytes);
    for (int i = 0; i < problem.n; ++i) {
        problem.b[i] = kNumbers[bytes.below(bytes.below(4) ? 13 : 16)];
        for (int j = 0; j < problem.n; ++j)
            problem.gram[i][j] = bytes.below(3) ? bytes.real() : kNumbers[bytes.below(bytes.below(4) ? 13 : 16)];
    }
    double lambda[kMaxConstraints];
    check_any(problem, lambda);
}

// Normals that are random, small integers, zero, or a combination of earlier ones plus a small difference.
void fill_normals(Bytes& bytes, int n, double (*normals)[kDim]) {
    const int dim = 1 + bytes.below(kDim);
    for (int i = 0; i < n; ++i) {
        const int kind = bytes.below(8);
        const double difference = std::pow(10.0, -bytes.below(17));
        const int first = i ? bytes.below(i) : 0, second = i ? bytes.below(i) : 0;
        const double sign = bytes.below(2) ? 1 : -1, weight = bytes.below(3) - 1;
        for (int k = 0; k < dim; ++k) {
            if (kind < 3) normals[i][k] = bytes.real();
            else if (kind == 3) normals[i][k] = bytes.below(5) - 2;
            else if (kind < 7 && i) normals[i][k] = sign * normals[first][k] + weight * normals[second][k];
            if (kind == 6) normals[i][k] += difference * bytes.real();
        }
    }
}

// Checks that λ satisfies the conditions of optimality, in units in which normals have norm 1, with or without slacks.
void check_optimality(const Problem& problem, const QpSolution& solution, const double* lambda) {
    const double slack = solution.feasible ? 0.0 : 1 / kSlackPrice;
    double norms[kMaxConstraints], unit_lambda[kMaxConstraints], magnitude = 0, sq_step = 0, sq_demands = 0;
    bool has_zero = false;
    for (int i = 0; i < problem.n; ++i) {
        norms[i] = std::sqrt(problem.gram[i][i]);
        unit_lambda[i] = lambda[i] * norms[i];
        magnitude += std::fabs(unit_lambda[i]);
        if (norms[i] > 0) sq_demands += std::pow(problem.positive(i) / norms[i], 2);
        else has_zero |= problem.positive(i) > 0;
    }
    CHECK(!has_zero || !solution.feasible);
    double residuals[kMaxConstraints], shortfalls[kMaxConstraints];
    for (int i = 0; i < problem.n; ++i) {
        double reached = 0;
        for (int j = 0; j < problem.n; ++j)
            if (norms[i] > 0 && norms[j] > 0) reached += problem.gram[i][j] / norms[i] / norms[j] * unit_lambda[j];
        sq_step += reached * unit_lambda[i];
        shortfalls[i] = norms[i] > 0 ? problem.b[i] / norms[i] - reached : 0.0;
        residuals[i] = shortfalls[i] - slack * unit_lambda[i];
    }
    CHECK(sq_step <= 0.25 * kSlackPrice * sq_demands * (1 + 1e-6));
    // A demand without gradient makes a problem infeasible without adding slacks to the others.
    bool met = true, met_with_slacks = true;
    for (int i = 0; i < problem.n; ++i) {
        if (norms[i] == 0) {
            CHECK(lambda[i] == 0);
            CHECK(((solution.short_of >> i) & 1) == (problem.positive(i) > 0));
            continue;
        }
        const double demand = std::fabs(problem.b[i]) / norms[i];
        const double tolerance = 2 * kMinPivot * (demand + magnitude);  // of demands that the active ones imply
        const double rounding = 1e-11 * (demand + magnitude);           // of the conditions at active ones
        const double shortfall = problem.is_equality(i) ? std::fabs(shortfalls[i]) : shortfalls[i];
        const double smallest = kReportedShortfall * std::fmax(demand, std::sqrt(std::fmax(sq_step, 0.0)));
        const bool is_short = (solution.short_of >> i) & 1;
        CHECK(is_short ? shortfall > 0.999 * smallest : shortfall <= 1.001 * smallest + 1e-9 * (demand + magnitude));
        const auto optimal = [&](double residual, double unmet_tolerance) {
            if (std::fabs(residual) <= rounding) return true;
            if (problem.is_equality(i)) return std::fabs(residual) <= unmet_tolerance;
            return residual <= unmet_tolerance && (residual > 0 || lambda[i] == 0);
        };
        met &= optimal(shortfalls[i], tolerance);
        met_with_slacks &= optimal(residuals[i], rounding);
    }
    CHECK(solution.feasible ? met : met_with_slacks || (has_zero && met));
}

void check_gram(Bytes& bytes) {
    Problem problem(bytes);
    double normals[kMaxConstraints][kDim] = {}, scales[kMaxConstraints];
    fill_normals(bytes, problem.n, normals);
    const bool is_scaled = bytes.below(4) == 0, has_ties = bytes.below(2);
    for (int i = 0; i < problem.n; ++i) {
        scales[i] = is_scaled ? std::pow(10.0, bytes.below(31) - 15) : 1.0;
        problem.b[i] = scales[i] * (has_ties ? bytes.below(7) - 3 : bytes.real());
    }
    for (int i = 0; i < problem.n; ++i)
        for (int j = 0; j < problem.n; ++j)
            for (int k = 0; k < kDim; ++k)
                problem.gram[i][j] += scales[i] * normals[i][k] * (scales[j] * normals[j][k]);
    double lambda[kMaxConstraints];
    const QpSolution solution = check_any(problem, lambda);
    CHECK(solution.iterations <= 8 * problem.n);  // far below the limit that ends a cycle
    check_optimality(problem, solution, lambda);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Bytes bytes{data, data + size};
    if (bytes.below(4) == 0) check_numbers(bytes);
    else check_gram(bytes);
    return 0;
}
