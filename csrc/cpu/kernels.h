// One tile of either phase, and the table of them that each instruction set fills.
#pragma once
#include <vector>

#include "../tensors.h"

namespace ux::cpu {

struct Kernels {
    void (*stats)(const Row*, const Job&, int64_t tile);
    void (*apply)(const Row*, const Job&, int64_t tile);
    const char* isa;
};

std::vector<const Kernels*> available();  // of this processor's instruction sets, the best first
const Kernels*& chosen();                 // the best, until somebody assigns another

void run_stats(const Row*, const Job&, int threads);
void run_apply(const Row*, const Job&, int threads);

}  // namespace ux::cpu
