// The two phases on a CUDA device. Every pointer of the job and its rows, the rows and `counter` are device memory;
// nothing synchronises with the host or allocates, so all of it is legal under graph capture.
#pragma once
#include <cstdint>

#include "../tensors.h"

namespace ux::cuda {

// Copies rows from the host to a table on the device. They travel in the arguments of as many launches as it takes: no
// host memory need outlive the call.
void upload(const Row* rows, int64_t n, Row* table, int device, void* stream);

void limit_blocks(int blocks);  // of every launch from here on; for tests, which want the same bits from any number

// `counter`: one uint32, zero before the first launch; each launch leaves it zero.
void run_stats(const Row* rows, const Job&, uint32_t* counter, int device, void* stream);
void run_apply(const Row* rows, const Job&, uint32_t* counter, int device, void* stream);

}  // namespace ux::cuda
