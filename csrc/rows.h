// Functions of the rows alone: partition into chunks, alignment for 16-byte loads, groups, aliasing.
#pragma once
#include "tensors.h"

namespace ux {

struct Partition {
    int64_t chunk, tiles;  // elements per chunk; number of tiles
};

// Partitions the rows into chunks and writes `first_chunk` of every row. `chunk`: elements per chunk, doubled until
// there are at most kMaxTiles tiles.
Partition partition(RowTable& rows, int64_t chunk);

// Number of elements to process one by one so that 16-byte loads are aligned for most of the row's operands.
int head_of(const RowTable& rows, int64_t row);

// Loads::floats or Loads::halves if all operands have that width and are 16-byte aligned after the head.
Loads loads_of(const RowTable& rows, int64_t row, int head);

// Whether the rows' groups are sorted and in [0, n_groups); others would write sums out of bounds.
bool groups_fit(const RowTable& rows, int64_t n_groups);

// Whether memory that the rule writes overlaps with another operand. Within a row, an operand that is only read may be
// the same memory as the one that is written: every element is read before it is written.
bool has_aliasing(const RowTable& rows, Rule rule);

}  // namespace ux
