// The Python module. It does not link against torch: table.cpp reads tensors through DLPack.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"
#include "solve.h"
#include "table.h"
#if defined(UX_CUDA)
#include "cuda/step.h"
#endif

namespace py = pybind11;
using namespace ux;

namespace {

template <class T> T* pointer(uintptr_t address) { return reinterpret_cast<T*>(address); }

Rule rule_of(int rule) {
    if (rule < 0 || rule >= kRules) throw py::value_error("rule must be 0 to " + std::to_string(kRules - 1));
    return Rule(rule);
}

std::string read_table(Table& table, int rule, const py::tuple& lists, const py::list& groups) {
    return table.read(rule_of(rule), lists, groups);
}

// `buffers`: addresses of hyper, control, partials, sums and report, allocated by ops/_kernels.py. `control_rows`: index
// of each constraint of the step among the optimizer's. `values`: c of each; None if it is in the report already.
Job make_job(int rule, const Table& table, int64_t n_groups, std::array<uintptr_t, 5> buffers, int n_controls,
    const std::vector<int>& control_rows, const py::list& values) {
    if (!groups_fit(table.rows(), n_groups))
        throw py::value_error(
            "step: groups must ascend from 0 and stay below the " + std::to_string(n_groups) + " rows of hyper");
    const int n = table.n_constraints();
    if (static_cast<int>(control_rows.size()) != n || static_cast<int>(values.size()) != n)
        throw py::value_error("step: as many values and rows of control are needed as constraints");
    Job job{};
    job.rule = rule_of(rule), job.slots = table.rows().slots(), job.n_constraints = n, job.n_controls = n_controls;
    job.averages = table.has_averages(), job.counts_steps = table.counts_steps();
    job.n_rows = table.rows().size(), job.n_groups = n_groups;
    const auto [chunk, tiles] = table.partition();
    job.chunk = chunk, job.n_tiles = tiles;
    for (int i = 0; i < n; ++i) {
        if (control_rows[i] < 0 || control_rows[i] >= n_controls)
            throw py::value_error("step: there is no row " + std::to_string(control_rows[i]) + " of control");
        job.control_row[i] = control_rows[i];
        if (!values[i].is_none())
            std::tie(job.value[i], job.value_dtype[i]) = table.scalar(values[i], "constraint's value", -1);
    }
    job.hyper = pointer<const double>(buffers[0]), job.control = pointer<const double>(buffers[1]);
    job.partials = pointer<double>(buffers[2]), job.sums = pointer<double>(buffers[3]);
    job.report = pointer<double>(buffers[4]);
    return job;
}

// Returns λ, feasible, short_of and the number of iterations. `gram` has the rows of G one after the other.
py::tuple solve_dual_of(const std::vector<double>& gram, const std::vector<double>& b, unsigned equalities) {
    const size_t n = b.size();
    if (n == 0 || n > kMaxConstraints || gram.size() != n * n)
        throw py::value_error("solve_dual: give n numbers b and n x n numbers G, with n from 1 to 8");
    double matrix[kMaxConstraints][kMaxConstraints];
    for (size_t i = 0; i < gram.size(); ++i) matrix[i / n][i % n] = gram[i];
    std::vector<double> lambda(n);
    const QpSolution solution = solve_dual(int(n), matrix, b.data(), equalities, lambda.data());
    return py::make_tuple(lambda, solution.feasible, solution.short_of, solution.iterations);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "Kernels of unlearn_ext. Call them through unlearn_ext.ops, which checks the arguments.";
    m.attr("MAX_CONSTRAINTS") = kMaxConstraints;
    m.attr("HYPER") = int(kHyper);
    m.attr("CONTROL") = int(kControl);
    m.attr("REPORT") = int(kReport);
    m.def("cpu_isa", [] { return cpu::chosen()->isa; });
    m.def("cpu_isas", [] {
        py::list names;
        for (const auto* kernels : cpu::available()) names.append(kernels->isa);
        return names;
    });
    m.def(
        "use_cpu_isa",
        [](const std::string& name) {
            for (const auto* kernels : cpu::available())
                if (name == kernels->isa) return void(cpu::chosen() = kernels);
            throw py::value_error("this processor does not support " + name + "; cpu_isas() lists what it supports");
        },
        "Select an instruction set, for tests and benchmarks. All give bitwise identical results.");
    m.def("solve_dual", &solve_dual_of, "Solve the dual QP of a step, for tests.");

    py::class_<Table>(m, "Table")
        .def(py::init<py::capsule, py::object, int>(), py::arg("exchange"), py::arg("is_neg"), py::arg("gpu"))
        .def("read", &read_table)
        .def_property_readonly("changed", &Table::changed)
        .def_property_readonly("has_aliasing", &Table::has_aliasing)
        .def("accept", &Table::accept)
        .def_property_readonly("scattered", &Table::scattered)
        .def_property_readonly("absent", &Table::absent)
        .def_property_readonly("tiles", [](const Table& table) { return table.partition().tiles; })
        .def_property_readonly("slots", [](const Table& table) { return table.rows().slots(); })
        .def_property_readonly(
            "bytes", [](const Table& table) { return table.rows().words().size() * sizeof(int64_t); })
        .def("__len__", [](const Table& table) { return table.rows().size(); });
    py::class_<Job>(m, "Job").def(py::init(&make_job));
    m.def(
        "stats",
        [](const Table& table, Job job, bool solve, int threads) {
            job.solve = solve;
            cpu::run_stats(table.rows(), job, threads);
        },
        py::call_guard<py::gil_scoped_release>());
    m.def(
        "apply", [](const Table& table, const Job& job, int threads) { cpu::run_apply(table.rows(), job, threads); },
        py::call_guard<py::gil_scoped_release>());
    m.def("solve", &cpu::run_solve);

#if defined(UX_CUDA)
    m.attr("CUDA_ARCHS") = UX_CUDA_ARCHS;
    m.def("cuda_limit_blocks", &cuda::limit_blocks,
        "Limit the blocks per launch, for tests. Results are bitwise identical for any number.");
    using Address = uintptr_t;
    m.def("cuda_upload", [](const Table& table, Address rows, int device, Address stream) {
        cuda::upload(table.rows().words(), pointer<int64_t>(rows), device, pointer<void>(stream));
    });
    m.def("cuda_stats", [](Job job, bool solve, Address rows, Address counter, int device, Address stream) {
        job.solve = solve;
        cuda::run_stats(pointer<const void>(rows), job, pointer<uint32_t>(counter), device, pointer<void>(stream));
    });
    m.def("cuda_solve",
        [](const Job& job, int device, Address stream) { cuda::run_solve(job, device, pointer<void>(stream)); });
    m.def("cuda_apply", [](const Job& job, Address rows, Address counter, int device, Address stream) {
        cuda::run_apply(pointer<const void>(rows), job, pointer<uint32_t>(counter), device, pointer<void>(stream));
    });
#else
    m.attr("CUDA_ARCHS") = "";
#endif
}
