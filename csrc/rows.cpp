#include "rows.h"

#include <algorithm>
#include <tuple>

#include "rules.h"

namespace ux {

namespace {

// The operands that a step writes: those of its rule, and every moving average.
unsigned writes_of(Rule rule, int slots) {
    unsigned writes = visit(rule, [](auto type) { return decltype(type)::type::kWrites; });
    for (int i = 0; i < slots; ++i) writes |= bit(average(i));
    return writes;
}

struct Span {
    int64_t begin, end, row;
    bool written;

    auto key() const { return std::tie(begin, row, end); }
};

std::vector<Span> spans_of(const RowTable& rows, unsigned writes) {
    std::vector<Span> spans;
    spans.reserve(rows.size() * (rows.operands() + 1));
    for (int64_t r = 0; r < rows.size(); ++r) {
        const RowHead& row = rows[r];
        const int64_t* data = rows.data(r);
        for (int o = 0; o < rows.operands(); ++o)
            if (data[o] && row.numel)
                spans.push_back({data[o], data[o] + row.numel * row.width(o), r, (writes & bit(o)) != 0});
        if (row.step) spans.push_back({row.step, row.step + 4, r, true});
    }
    std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.key() < b.key(); });
    return spans;
}

}  // namespace

Partition partition(RowTable& rows, int64_t chunk) {
    for (;; chunk *= 2) {
        int64_t chunks = 0, multi_chunk_rows = 0;
        for (int64_t r = 0; r < rows.size(); ++r) {
            RowHead& row = rows[r];
            if (r && row.group != rows[r - 1].group)
                chunks = (chunks + kChunksPerTile - 1) / kChunksPerTile * kChunksPerTile;
            row.first_chunk = chunks;
            const int64_t row_chunks =
                row.numel ? std::max<int64_t>(1, (row.numel - row.head() + chunk - 1) / chunk) : 0;
            chunks += row_chunks;
            multi_chunk_rows += row_chunks > 1;
        }
        const int64_t tiles = (chunks + kChunksPerTile - 1) / kChunksPerTile;
        // If every row has at most one chunk, larger chunks do not reduce the number of tiles.
        if (tiles <= kMaxTiles || !multi_chunk_rows) return {chunk, tiles};
    }
}

// Most tensors are aligned. If most operands of a row are misaligned by the same amount, processing a few single elements
// first aligns them; the other operands are loaded element by element. Votes are weighted by element size.
int head_of(const RowTable& rows, int64_t row) {
    int votes[8] = {}, best = 0;
    for (int o = 0; o < rows.operands(); ++o) {
        const int64_t address = rows.data(row)[o], width = rows[row].width(o);
        if (!address) continue;
        for (int head = 0; head < 8; ++head)
            if ((address + head * width) % 16 == 0) votes[head] += static_cast<int>(width);
    }
    for (int head = 1; head < 8; ++head)
        if (votes[head] > votes[best]) best = head;
    return best;
}

Loads loads_of(const RowTable& rows, int64_t row, int head) {
    bool floats = true, halves = true;
    for (int o = 0; o < rows.operands(); ++o) {
        const int64_t address = rows.data(row)[o];
        if (!address) continue;
        const bool is_float = rows[row].dtype(o) == DType::f32;
        if ((address + head * rows[row].width(o)) % 16) return Loads::mixed;
        floats &= is_float, halves &= !is_float;
    }
    return floats ? Loads::floats : halves ? Loads::halves : Loads::mixed;
}

bool groups_fit(const RowTable& rows, int64_t n_groups) {
    int64_t last = 0;
    for (int64_t r = 0; r < rows.size(); ++r) {
        if (rows[r].group < last || rows[r].group >= n_groups) return false;
        last = rows[r].group;
    }
    return true;
}

bool has_aliasing(const RowTable& rows, Rule rule) {
    const auto spans = spans_of(rows, writes_of(rule, rows.slots()));
    int64_t max_end = 0, max_written_end = 0;  // of all earlier spans, and of those that are written
    for (size_t i = 0, writers = 0; i < spans.size(); writers = 0) {
        const Span& span = spans[i];
        for (; i < spans.size() && spans[i].key() == span.key(); ++i) writers += spans[i].written;
        if (writers > 1 || span.begin < max_written_end || (writers && span.begin < max_end)) return true;
        max_end = std::max(max_end, span.end);
        if (writers) max_written_end = std::max(max_written_end, span.end);
    }
    return false;
}

}  // namespace ux
