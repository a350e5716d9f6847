// What follows from the rows alone: how they are cut into chunks, and whether they lie in one another's memory.
#pragma once
#include <vector>

#include "tensors.h"

namespace ux {

struct Partition {
    int64_t chunk, tiles;
};

// Writes every row's first chunk. `chunk`: elements, doubled until the tiles are few enough.
Partition partition(std::vector<Row>& rows, int64_t chunk);

// Elements of a row before the one from which 16-byte loads serve most of its operands.
int head_of(const Row& row);

// Whether all operands are alike and begin, after the head, where 16-byte loads may.
Loads loads_of(const Row& row, int head);

// Whether the rows' groups ascend from 0 or above and stay below `n_groups`: a step writes sums for each group.
bool groups_fit(const std::vector<Row>& rows, int64_t n_groups);

// Whether memory that the rule writes may be reached by a second way. An operand read from the very place where its own
// row is written is none: every element is read before it is written.
bool has_aliasing(const std::vector<Row>& rows, Rule rule);

}  // namespace ux
