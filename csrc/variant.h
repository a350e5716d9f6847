// What the kernels of all devices are compiled for, and the choice among these variants at run time.
#pragma once
#include "rules.h"
#include "solve.h"

namespace ux {

// The rule, the number of constraints, and whether their gradients are averaged. With several constraints the averages
// are always compiled in, and zero where there are none.
template <class R, int kSlots, bool kHasAverages> struct Variant {
    using Rule = R;
    static constexpr int K = kSlots, kOperands = operands_of(kSlots), kSums = Sums{kSlots}.count();
    static constexpr bool kAveraged = kHasAverages;

    static UX_HD constexpr unsigned of_constraints(bool with_held) {
        unsigned operands = 0;
        for (int i = 0; i < K; ++i) operands |= (with_held ? bit(held(i)) : 0) | (kAveraged ? bit(average(i)) : 0);
        return operands;
    }
    static constexpr unsigned kConstraintReads = of_constraints(true);
    static constexpr unsigned kReads = R::kReads | kConstraintReads, kWrites = R::kWrites | of_constraints(false);
};

// How the gradients of all constraints are averaged.
template <class V> struct Averages {
    Average of[V::K];

    // Reads the gradients from the operands, and updates the averages among these.
    template <class F> UX_HD Gradients<F, V::K> apply(F* x) const {
        Gradients<F, V::K> g;
        UX_UNROLL
        for (int i = 0; i < V::K; ++i) {
            g.held[i] = g.a[i] = x[held(i)];
            if (!V::kAveraged) continue;
            g.before[i] = x[average(i)];
            g.a[i] = x[average(i)] = of[i].next(g.before[i], g.held[i]);
        }
        return g;
    }
};

// Calls visitor(V{}) with the variant of a job. Always inlined, for the reason given at UX_HD.
template <class Visitor>
inline __attribute__((always_inline)) void visit_variant(const Job& job, const Visitor& visitor) {
    visit(job.rule, [&](auto rule) {
        using R = typename decltype(rule)::type;
        visit_slots(job.slots, [&](auto slots) {
            constexpr int K = decltype(slots)::value;
            if (K > 1 || job.averages) visitor(Variant<R, K, true>{});
            else visitor(Variant<R, K, K != 1>{});
        });
    });
}

}  // namespace ux
