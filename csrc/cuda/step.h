// The two phases on a CUDA device. Every pointer of the job and its rows, and `counter`, is device memory; nothing
// synchronises with the host or allocates, so both are legal under graph capture.
#pragma once
#include <cstdint>

#include "../tensors.h"

namespace ux::cuda {

struct Rows {
    const Row* host;    // copied into the launch's arguments where they fit
    const Row* device;  // read where they do not
};

int64_t rows_in_arguments();  // how many fit, with this compiler and this driver
void limit_blocks(int blocks);  // of every launch from here on; for tests, which want the same bits from any number

// `counter`: one uint32, zero before the first launch; each launch leaves it zero.
void run_stats(const Rows&, const Job&, uint32_t* counter, int device, void* stream);
void run_apply(const Rows&, const Job&, uint32_t* counter, int device, void* stream);

}  // namespace ux::cuda
