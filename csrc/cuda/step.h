// The two phases on a CUDA device. Every pointer of the job, its rows and `counter` is device memory; nothing
// synchronises with the host or allocates, so both are legal under graph capture.
#pragma once
#include <cstdint>

#include "../tensors.h"

namespace ux::cuda {

// `counter`: one uint32, zero before the first launch; each launch leaves it zero.
void run_stats(const Job&, uint32_t* counter, int device, void* stream);
void run_apply(const Job&, uint32_t* counter, int device, void* stream);

}  // namespace ux::cuda
