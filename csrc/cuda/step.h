// The two phases on a CUDA device. All pointers are to device memory: those in the job and the rows, `rows` and
// `counter`. Nothing synchronizes with the host or allocates, so CUDA graphs can capture it.
#pragma once
#include <cstdint>

#include "../tensors.h"

namespace ux::cuda {

// Copies the words of a RowTable from the host to a table on the device. They are passed as arguments of one or more
// kernel launches, so no host memory has to outlive the call.
void upload(const std::vector<int64_t>& words, int64_t* table, int device, void* stream);

// Limits the blocks of all later launches. For tests: results must not depend on it.
void limit_blocks(int blocks);

// `counter`: one uint32, zero before the first launch; each launch resets it to zero.
void run_stats(const void* rows, const Job&, uint32_t* counter, int device, void* stream);
void run_solve(const Job&, int device, void* stream);  // the end of run_stats, if the caller changed the sums
void run_apply(const void* rows, const Job&, uint32_t* counter, int device, void* stream);

}  // namespace ux::cuda
