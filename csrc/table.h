// Reads lists of torch tensors into rows, with an error message if that is not possible.
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
    // `exchange`: torch.Tensor.__dlpack_c_exchange_api__. `is_neg`: torch.Tensor.is_neg, which DLPack does not report.
    // `gpu`: index of the CUDA device of all tensors; -1: the CPU.
    Table(pybind11::capsule exchange, pybind11::object is_neg, int gpu);

    // `lists`: params, grads, firsts, seconds, then ∇c and its average for each constraint, then steps: lists of tensors
    // or None, of equal length. `groups`: one int per row, sorted. Returns why no kernel supports the step, or an empty
    // string if one does. Raises ValueError for wrong shapes, RuntimeError for wrong devices and layouts.
    std::string read(Rule rule, const pybind11::tuple& lists, const pybind11::list& groups);

    // Rows whose tensors have different memory formats or gaps; the kernels need contiguous copies of them.
    const std::vector<int64_t>& scattered() const { return scattered_; }

    // For each list except the steps, the number of rows where it is None.
    const std::array<int64_t, kMaxOperands>& absent() const { return absent_; }

    // Whether the rows differ from those that were last accepted.
    bool changed() const { return accepted_ != rows_.words(); }
    void accept() { accepted_ = rows_.words(); }
    bool has_aliasing() const { return ux::has_aliasing(rows_, rule_); }

    std::pair<const void*, DType> scalar(pybind11::handle tensor, const char* what, int64_t index) const;

    const RowTable& rows() const { return rows_; }
    Partition partition() const { return partition_; }
    bool counts_steps() const { return counts_steps_; }
    bool has_averages() const;
    int n_constraints() const { return n_constraints_; }

  private:
    dlpack::Tensor view(PyObject* object, const char* what, int64_t row) const;
    std::string check_lists(const pybind11::tuple& lists, size_t n_rows);
    void read_row(Rule rule, PyObject* const* objects, int64_t row);
    void check_sign(PyObject* object, const char* what, int64_t row) const;

    pybind11::capsule exchange_;
    pybind11::object is_neg_;
    const dlpack::ExchangeApi* api_;
    int gpu_;
    RowTable rows_;
    int n_constraints_ = 0;
    std::vector<int64_t> accepted_;  // words of the rows that were last accepted
    std::vector<int64_t> scattered_;
    std::array<int64_t, kMaxOperands> absent_{};
    std::string reason_;
    Rule rule_{};
    Partition partition_{};
    bool counts_steps_ = false;
};

}  // namespace ux
