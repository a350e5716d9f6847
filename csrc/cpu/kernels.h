// The CPU kernels: both phases on one tile, for each instruction set, and on all tiles.
#pragma once
#include <vector>

#include "../tensors.h"

namespace ux::cpu {

struct Kernels {
    void (*stats)(const RowTable&, const Job&, int64_t tile);
    void (*apply)(const RowTable&, const Job&, int64_t tile);
    const char* isa;
};

std::vector<const Kernels*> available();  // for the instruction sets that this processor supports, the fastest first
const Kernels*& chosen();                 // the fastest, unless another one is assigned

void run_stats(const RowTable&, const Job&, int threads);
void run_apply(const RowTable&, const Job&, int threads);
void run_solve(const Job&);  // the end of run_stats, if the caller changed the sums or `control`

}  // namespace ux::cpu
