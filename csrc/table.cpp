#include "table.h"

#include <algorithm>
#include <optional>

namespace py = pybind11;

namespace ux {

namespace {

constexpr const char* kStepCounter = "step counter";

const char* name_of_operand(int operand) {
    constexpr const char* names[] = {"parameter", "gradient", "first moment", "second moment"};
    if (operand < kStateOperands) return names[operand];
    return operand % 2 ? "average of the constraint gradient" : "constraint gradient";
}

bool is_on(const dlpack::Tensor& t, int gpu) {
#if defined(UX_EMULATED)  // tests/emulation runs the CUDA kernels on tensors of the CPU
    if (gpu >= 0) return t.device_type == dlpack::kCpu;
#endif
    if (gpu >= 0) return t.device_type == dlpack::kCuda && t.device_index == gpu;
    return t.device_type == dlpack::kCpu || t.device_type == dlpack::kCudaHost;
}

int64_t numel(const dlpack::Tensor& t) {
    int64_t n = 1;
    for (int d = 0; d < t.n_dims; ++d) n *= t.shape[d];
    return n;
}

std::optional<DType> dtype_of(const dlpack::Tensor& t) {
    if (t.type_lanes != 1) return {};
    if (t.type_code == dlpack::kBfloat && t.type_bits == 16) return DType::bf16;
    if (t.type_code != dlpack::kFloat) return {};
    switch (t.type_bits) {
        case 16: return DType::f16;
        case 32: return DType::f32;
        case 64: return DType::f64;
        default: return {};
    }
}

// `row`: -1 for what belongs to no row.
std::string name_of(const char* what, int64_t row) {
    return "step: the " + std::string(what) + (row < 0 ? "" : " of tensor " + std::to_string(row));
}

std::string type_of(const dlpack::Tensor& t) {
    constexpr const char* codes[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
    return (t.type_code < 7 ? codes[t.type_code] : "float") + std::to_string(t.type_bits);
}

std::string shape_of(const dlpack::Tensor& t) {
    std::string text = "(";
    for (int d = 0; d < t.n_dims; ++d) text += (d ? ", " : "") + std::to_string(t.shape[d]);
    return text + (t.n_dims == 1 ? ",)" : ")");
}

bool same_shape(const dlpack::Tensor& a, const dlpack::Tensor& b) {
    return a.n_dims == b.n_dims && std::equal(a.shape, a.shape + a.n_dims, b.shape);
}

// The stride of a dimension of size 1 has no meaning.
bool same_strides(const dlpack::Tensor& a, const dlpack::Tensor& b) {
    for (int d = 0; d < a.n_dims; ++d)
        if (a.shape[d] != 1 && a.strides[d] != b.strides[d]) return false;
    return true;
}

bool is_contiguous(const dlpack::Tensor& t) {
    int64_t expected = 1;
    for (int d = t.n_dims - 1; d >= 0; --d) {
        if (t.shape[d] != 1 && t.strides[d] != expected) return false;
        expected *= t.shape[d];
    }
    return true;
}

// Non-overlapping and dense, in any order of dimensions.
bool is_dense(const dlpack::Tensor& t) {
    std::vector<std::pair<int64_t, int64_t>> dims;
    for (int d = 0; d < t.n_dims; ++d)
        if (t.shape[d] != 1) dims.emplace_back(t.strides[d], t.shape[d]);
    std::sort(dims.begin(), dims.end());
    int64_t expected = 1;
    for (const auto& [stride, size] : dims) {
        if (stride != expected) return false;
        expected *= size;
    }
    return true;
}

// Returns why torch could not export a tensor: its layout if it is not strided, otherwise the first line of the current
// Python error. The other lines are torch's C++ backtrace.
std::string export_error(PyObject* object) {
    const py::error_already_set error;
    const auto layout = py::str(py::getattr(object, "layout", py::str("torch.strided"))).cast<std::string>();
    if (layout != "torch.strided")
        return " is " + layout +
               "; it must be dense: call to_dense(), or create the layer it belongs to with sparse=False";
    const auto message = py::str(error.value()).cast<std::string>();
    return " cannot be read; every tensor must be dense and have memory of its own (" +
           message.substr(0, message.find('\n')) + ")";
}

// Fake tensors have no memory; a view of a byte buffer may be misaligned.
void check_memory(const dlpack::Tensor& t, const char* what, int64_t index) {
    if (!t.data) throw std::runtime_error(name_of(what, index) + " has no memory; a fake tensor cannot be stepped");
    if (reinterpret_cast<uintptr_t>(t.data) & (t.type_bits / 8 - 1))
        throw std::runtime_error(name_of(what, index) + " begins in the middle of a " + type_of(t) + ": clone() it");
}

}  // namespace

Table::Table(py::capsule exchange, py::object is_neg, int gpu)
    : exchange_(std::move(exchange)), is_neg_(std::move(is_neg)), gpu_(gpu) {
    api_ = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(exchange_.ptr(), dlpack::kCapsule));
    if (!api_) throw py::error_already_set();
    if (api_->major != dlpack::kMajor || !api_->tensor_from_object)
        throw std::runtime_error(
            "this torch has an incompatible version of DLPack's exchange API; install a version of torch "
            "that unlearn_ext supports");
}

dlpack::Tensor Table::view(PyObject* object, const char* what, int64_t row) const {
    dlpack::Tensor t;
    if (api_->tensor_from_object(object, &t) != 0) throw std::runtime_error(name_of(what, row) + export_error(object));
    if (!is_on(t, gpu_))
        throw std::runtime_error(name_of(what, row) + " is on another device; every tensor must be dense on " +
                                 (gpu_ < 0 ? "the CPU" : "GPU " + std::to_string(gpu_)));
    t.data = static_cast<char*>(t.data) + t.byte_offset;
    return t;
}

void Table::check_sign(PyObject* object, const char* what, int64_t row) const {
    const auto is_negative = py::reinterpret_steal<py::object>(PyObject_CallOneArg(is_neg_.ptr(), object));
    if (!is_negative) throw py::error_already_set();
    if (is_negative.is(py::handle(Py_True)))
        throw std::runtime_error(name_of(what, row) + " is a view that negates its memory: resolve_neg() it");
}

// `objects`: the row's entry of every list.
void Table::read_row(Rule rule, PyObject* const* objects, int64_t index) {
    RowHead& row = rows_[index];
    int64_t* data = rows_.data(index);
    const bool known = accepted_.size() == rows_.words().size();
    const int64_t* accepted = known ? accepted_.data() + (data - rows_.words().data()) : nullptr;
    const int n_operands = operands_of(n_constraints_), owner = rule == Rule::project ? kGrad : kParam;
    if (objects[owner] == Py_None) throw std::invalid_argument("step: tensor " + std::to_string(index) + " is None");
    const dlpack::Tensor reference = view(objects[owner], name_of_operand(owner), index);
    row.numel = numel(reference);
    bool all_contiguous = true, same_layout = true;
    for (int o = 0; o < n_operands; ++o) {
        if (objects[o] == Py_None) {
            ++absent_[o];
            continue;
        }
        const char* name = name_of_operand(o);
        const dlpack::Tensor t = o == owner ? reference : view(objects[o], name, index);
        if (!same_shape(t, reference))
            throw py::value_error("step: tensor " + std::to_string(index) + " has shape " + shape_of(reference) +
                                  " but a " + name + " of shape " + shape_of(t) +
                                  "; zero the gradients and run both backward passes again");
        const auto dtype = dtype_of(t);
        if (!dtype || *dtype == DType::f64) {
            reason_ = "there is no kernel for a " + type_of(t) + " " + name;
            continue;
        }
        if (row.numel) check_memory(t, name, index);
        data[o] = reinterpret_cast<int64_t>(t.data);
        // is_neg() is slow, so it is called only if the address is new. A graph that returns a negated gradient does so in
        // its first step too.
        if (!accepted || accepted[o] != data[o]) check_sign(objects[o], name, index);
        row.tags |= static_cast<int64_t>(*dtype) << (2 * o);
        all_contiguous &= is_contiguous(t);
        same_layout &= same_strides(t, reference);
    }
    if (objects[n_operands] != Py_None) {
        const auto [address, dtype] = scalar(objects[n_operands], kStepCounter, index);
        if (dtype != DType::f32) reason_ = "there is no kernel for step counters that are not float32";
        row.step = reinterpret_cast<int64_t>(address);
        counts_steps_ = true;
    }
    if (row.numel && !all_contiguous && !(same_layout && is_dense(reference))) scattered_.push_back(index);
    if (gpu_ >= 0) {
        const int head = head_of(rows_, index);
        row.tags |= static_cast<int64_t>(head) << 40 | static_cast<int64_t>(loads_of(rows_, index, head)) << 44;
    }
}

std::pair<const void*, DType> Table::scalar(py::handle tensor, const char* what, int64_t index) const {
    const dlpack::Tensor t = view(tensor.ptr(), what, index);
    const auto dtype = dtype_of(t);
    if (numel(t) != 1 || !dtype)
        throw py::value_error(
            "step: the constraint's value and step counters must have one element, and be float64, float32, bfloat16 "
            "or "
            "float16");
    check_memory(t, what, index);
    return {t.data, *dtype};
}

namespace {

int64_t group_of(const py::list& groups, int64_t row) {
    int overflow = 0;
    const long group = PyLong_AsLongAndOverflow(PyList_GET_ITEM(groups.ptr(), row), &overflow);
    if (group == -1 && PyErr_Occurred()) throw py::error_already_set();
    if (overflow || group < 0 || group > INT32_MAX) throw py::value_error(name_of("group", row) + " is out of range");
    return group;
}

}  // namespace

bool Table::has_averages() const {
    for (int i = 0; i < n_constraints_; ++i)
        if (absent_[average(i)] < rows_.size()) return true;
    return false;
}

// Returns why the kernels do not have so many constraints, or an empty string.
std::string Table::check_lists(const py::tuple& lists, size_t n_rows) {
    const auto n = static_cast<int>(lists.size()) - kStateOperands - 1;
    if (n < 0 || n % 2) throw py::value_error("step: not " + std::to_string(lists.size()) + " lists of tensors");
    for (const auto& list : lists)
        if (!py::isinstance<py::list>(list) || py::len(list) != n_rows)
            throw py::value_error("step: every list of tensors must have one entry for each parameter");
    n_constraints_ = n / 2;
    if (n_constraints_ > kMaxConstraints)
        return "the kernels have " + std::to_string(kMaxConstraints) + " constraints at most, and this step has " +
               std::to_string(n_constraints_);
    return "";
}

std::string Table::read(Rule rule, const py::tuple& lists, const py::list& groups) {
    const auto n = static_cast<int64_t>(groups.size());
    reason_ = check_lists(lists, groups.size());
    if (!reason_.empty()) return reason_;
    int slots = 1;
    while (slots < n_constraints_) slots *= 2;
    rows_.reset(slots, n), scattered_.clear();
    absent_.fill(0);
    counts_steps_ = false;
    const size_t n_lists = lists.size();
    PyObject *columns[kMaxOperands + 1], *objects[kMaxOperands + 1];
    for (size_t l = 0; l < n_lists; ++l) columns[l] = PyTuple_GET_ITEM(lists.ptr(), l);
    for (int64_t r = 0; r < n; ++r) {
        for (size_t l = 0; l < n_lists; ++l) objects[l] = PyList_GET_ITEM(columns[l], r);
        read_row(rule, objects, r);
        rows_[r].group = group_of(groups, r);
    }
    partition_ = ux::partition(rows_, kMinChunk[gpu_ >= 0]);
    rule_ = rule;
    return reason_;
}

}  // namespace ux
