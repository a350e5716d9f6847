#include "rows.h"

#include <algorithm>
#include <tuple>

#include "rules.h"

namespace ux {

namespace {

unsigned writes_of(Rule rule) {
    switch (rule) {
        case Rule::project: return ProjectRule::kWrites;
        case Rule::sgd: return SgdRule::kWrites;
        case Rule::adamw: return AdamWRule::kWrites;
    }
    return 0;
}

struct Span {
    int64_t begin, end, row;
    bool written;

    auto place() const { return std::tie(begin, row, end); }
};

std::vector<Span> spans_of(const std::vector<Row>& rows, unsigned writes) {
    std::vector<Span> spans;
    spans.reserve(rows.size() * (kOperands + 1));
    for (size_t r = 0; r < rows.size(); ++r) {
        const Row& row = rows[r];
        for (int o = 0; o < kOperands; ++o)
            if (row.data[o] && row.numel) {
                const int64_t width = row.dtype(o) == DType::f32 ? 4 : 2;
                spans.push_back({row.data[o], row.data[o] + row.numel * width, int64_t(r), (writes & bit(o)) != 0});
            }
        if (row.step) spans.push_back({row.step, row.step + 4, int64_t(r), true});
    }
    std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.place() < b.place(); });
    return spans;
}

}  // namespace

Cut cut(std::vector<Row>& rows, int64_t chunk) {
    for (;; chunk *= 2) {
        int64_t chunks = 0, big = 0;
        for (size_t r = 0; r < rows.size(); ++r) {
            Row& row = rows[r];
            if (r && row.group() != rows[r - 1].group()) chunks = (chunks + kTurn - 1) / kTurn * kTurn;
            row.first_chunk = chunks;
            const int64_t mine = row.numel ? std::max<int64_t>(1, (row.numel - row.head() + chunk - 1) / chunk) : 0;
            chunks += mine;
            big += mine > 1;
        }
        const int64_t turns = (chunks + kTurn - 1) / kTurn;
        if (turns <= kMostTurns || !big) return {chunk, turns};  // a smaller number of tiny tensors cannot be had
    }
}

// Most tensors come out of the allocator aligned. Where most of a row's are off by as much, a head of single elements
// brings them to 16 bytes; the others are loaded by element.
int head_of(const Row& row) {
    int votes[8] = {}, best = 0;
    for (int o = 0; o < kOperands; ++o) {
        if (!row.data[o]) continue;
        const int64_t width = row.dtype(o) == DType::f32 ? 4 : 2;
        for (int head = 0; head < 8; ++head)
            if ((row.data[o] + head * width) % 16 == 0) votes[head] += static_cast<int>(width);
    }
    for (int head = 1; head < 8; ++head)
        if (votes[head] > votes[best]) best = head;
    return best;
}

Loads loads_of(const Row& row, int head) {
    bool floats = true, halves = true;
    for (int o = 0; o < kOperands; ++o) {
        if (!row.data[o]) continue;
        const bool wide = row.dtype(o) == DType::f32;
        if (reinterpret_cast<uintptr_t>(row.address(o, head)) % 16) return Loads::mixed;
        floats &= wide, halves &= !wide;
    }
    return floats ? Loads::floats : halves ? Loads::halves : Loads::mixed;
}

bool groups_fit(const std::vector<Row>& rows, int64_t n_groups) {
    int64_t last = 0;
    for (const Row& row : rows) {
        if (row.group() < last || row.group() >= n_groups) return false;
        last = row.group();
    }
    return true;
}

bool crossing(const std::vector<Row>& rows, Rule rule) {
    const auto spans = spans_of(rows, writes_of(rule));
    int64_t reached = 0, written = 0;  // how far the spans before this place go, and those of them that are written
    for (size_t i = 0, writers = 0; i < spans.size(); writers = 0) {
        const Span& place = spans[i];
        for (; i < spans.size() && spans[i].place() == place.place(); ++i) writers += spans[i].written;
        if (writers > 1 || place.begin < written || (writers && place.begin < reached)) return true;
        reached = std::max(reached, place.end);
        if (writers) written = std::max(written, place.end);
    }
    return false;
}

}  // namespace ux
