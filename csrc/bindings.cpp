// The one file that knows Python. Tensors arrive as addresses that ops.py has checked; nothing of torch is linked.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/kernels.h"
#include "rules.h"
#if defined(UX_CUDA)
#include "cuda/step.h"
#endif

namespace py = pybind11;
using namespace ux;

namespace {

template <class T> T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }

Job make_job(int rule, uintptr_t rows, int64_t n_rows, int64_t n_chunks, int64_t n_groups, uintptr_t hyper, uintptr_t control,
             uintptr_t partials, uintptr_t sums, uintptr_t report, bool solve) {
    if (rule < 0 || rule > int(Rule::adamw)) throw py::value_error("rule must be 0 (project), 1 (sgd) or 2 (adamw)");
    if (n_rows < 0 || n_chunks < 0 || n_groups < 1) throw py::value_error("a job needs counts >= 0 and at least one group");
    if (!hyper || !control || !sums || !report) throw py::value_error("a job needs hyper, control, sums and report");
    return {Rule(rule), at<const Row>(rows), n_rows, n_chunks, n_groups, at<const double>(hyper), at<const double>(control),
            at<double>(partials), at<double>(sums), at<double>(report), solve};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "Kernels of unlearn_ext. Use unlearn_ext.ops, which checks what it passes.";
    m.attr("CHUNK") = kChunk;
    m.attr("SUMS") = int(kSums);
    m.attr("HYPER") = int(kHyper);
    m.attr("CONTROL") = int(kControl);
    m.attr("REPORT") = int(kReport);
    m.def("cpu_isa", [] { return cpu::chosen()->isa; });
    m.def("cpu_isas", [] {
        py::list names;
        for (const auto* kernels : cpu::available()) names.append(kernels->isa);
        return names;
    });
    m.def("use_cpu_isa", [](const std::string& name) {
        for (const auto* kernels : cpu::available())
            if (name == kernels->isa) return void(cpu::chosen() = kernels);
        throw py::value_error("this processor has no " + name);
    }, "For tests and benchmarks: every instruction set gives the same bits.");

    py::class_<Job>(m, "Job").def(py::init(&make_job));
    m.def("stats", [](const Job& job, int threads) { cpu::run_stats(job, threads); }, py::call_guard<py::gil_scoped_release>());
    m.def("apply", [](const Job& job, int threads) { cpu::run_apply(job, threads); }, py::call_guard<py::gil_scoped_release>());

#if defined(UX_CUDA)
    m.attr("CUDA_ARCHS") = UX_CUDA_ARCHS;
    m.def("cuda_stats", [](const Job& job, uintptr_t counter, int device, uintptr_t stream) {
        cuda::run_stats(job, at<uint32_t>(counter), device, at<void>(stream));
    });
    m.def("cuda_apply", [](const Job& job, uintptr_t counter, int device, uintptr_t stream) {
        cuda::run_apply(job, at<uint32_t>(counter), device, at<void>(stream));
    });
#else
    m.attr("CUDA_ARCHS") = "";
#endif
}
