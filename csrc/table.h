// Reads lists of torch tensors into rows, and says in a sentence what is wrong with them.
#pragma once
#include <pybind11/pybind11.h>

#include <array>
#include <string>
#include <vector>

#include "dlpack.h"
#include "rows.h"

namespace ux {

class Table {
  public:
    // `exchange`: torch.Tensor.__dlpack_c_exchange_api__. `is_neg`: torch.Tensor.is_neg, which DLPack does not tell.
    // `gpu`: the CUDA device of every tensor; -1: the CPU.
    Table(pybind11::capsule exchange, pybind11::object is_neg, int gpu);

    // `lists`: params, grads, constraint_grads, firsts, seconds, steps: lists of tensors or None, of one length.
    // `groups`: int for each row, ascending. Returns why no kernel serves these dtypes; empty where one does.
    // Raises ValueError for shapes, RuntimeError for devices and layouts.
    std::string read(Rule rule, const pybind11::tuple& lists, const pybind11::list& groups);

    // Rows whose tensors lie in memory in different orders, or with gaps: they need contiguous copies.
    const std::vector<int64_t>& scattered() const { return scattered_; }

    // How many rows have no tensor, for each operand.
    const std::array<int64_t, kOperands>& absent() const { return absent_; }

    // Whether the rows are not those that were accepted last.
    bool changed() const;
    void accept() { accepted_ = rows_; }
    bool has_aliasing() const { return ux::has_aliasing(rows_, rule_); }

    std::pair<const void*, DType> scalar(pybind11::handle tensor, const char* what, int64_t index) const;

    const std::vector<Row>& rows() const { return rows_; }
    Partition partition() const { return partition_; }
    bool counts_steps() const { return counts_steps_; }

  private:
    dlpack::Tensor view(PyObject* object, const char* what, int64_t row) const;
    Row read_row(Rule rule, PyObject* const* objects, int64_t row);

    void check_sign(PyObject* object, const char* what, int64_t row) const;

    pybind11::capsule exchange_;
    pybind11::object is_neg_;
    const dlpack::ExchangeApi* api_;
    int gpu_;
    std::vector<Row> rows_, accepted_;
    std::vector<int64_t> scattered_;
    std::array<int64_t, kOperands> absent_{};
    std::string reason_;
    Rule rule_{};
    Partition partition_{};
    bool counts_steps_ = false;
};

}  // namespace ux
