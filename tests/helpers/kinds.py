"""Things that a caller may pass where a tensor is expected."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

Shape = tuple[int, ...]


def values(shape: Shape, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _of(dtype: torch.dtype) -> Callable[[Shape, int], Tensor]:
    return lambda shape, seed: values(shape, seed).to(dtype)


def _with(number: float) -> Callable[[Shape, int], Tensor]:
    def make(shape: Shape, seed: int) -> Tensor:
        tensor = values(shape, seed)
        if tensor.numel():
            tensor.view(-1)[seed % tensor.numel()] = number
        return tensor

    return make


def _misaligned(shape: Shape, seed: int) -> Tensor:
    plain = values(shape, seed)
    if not plain.numel():
        return plain
    raw = bytearray(b"\0" + plain.numpy().tobytes())
    return torch.frombuffer(raw, dtype=torch.float32, offset=1).view(shape)


def _gaps(shape: Shape, seed: int) -> Tensor:
    return values((*shape, 2), seed)[..., 0]


def _inference(shape: Shape, seed: int) -> Tensor:
    with torch.inference_mode():
        return values(shape, seed)


def _fake(shape: Shape, seed: int) -> Tensor:
    with FakeTensorMode():
        return torch.zeros(shape)


def _csr(shape: Shape, seed: int) -> Tensor:
    return torch.ones(3, 3).to_sparse_csr()


#: Real tensors that own their memory, in every dtype and memory layout that a step accepts.
GOOD: dict[str, Callable[[Shape, int], object]] = {
    "float32": _of(torch.float32),
    "bfloat16": _of(torch.bfloat16),
    "float16": _of(torch.float16),
    "float64": _of(torch.float64),
    "transposed": lambda shape, seed: values(shape[::-1], seed).permute(*reversed(range(len(shape)))),
    "gaps": _gaps,
    "off by an element": lambda shape, seed: values((values(shape, 0).numel() + 1,), seed)[1:].view(shape),
    "requires grad": lambda shape, seed: values(shape, seed).requires_grad_(),
    "copy on write": lambda shape, seed: torch._lazy_clone(values(shape, seed)),
    "small": lambda shape, seed: values(shape, seed) * 1e-6,
    "large": lambda shape, seed: values(shape, seed) * 1e4,
    "zeros": lambda shape, seed: torch.zeros(shape),
    "nan": _with(torch.nan),
    "inf": _with(torch.inf),
    "minus inf": _with(-torch.inf),
}

#: Things that must be refused, or read as torch reads them.
ODD: dict[str, Callable[[Shape, int], object]] = {
    "zero stride": lambda shape, seed: values((1,) * len(shape), seed).expand(shape),
    "overlapping": lambda shape, seed: values((64,), seed).as_strided(shape, (1,) * len(shape)),
    "misaligned": _misaligned,
    "negated": lambda shape, seed: torch._neg_view(values(shape, seed)),
    "imaginary": lambda shape, seed: values(shape, seed).to(torch.cfloat).mul(1j).conj().imag,
    "inference": _inference,
    "zero tensor": lambda shape, seed: torch._efficientzerotensor(shape),
    "float8": _of(torch.float8_e5m2),
    "complex": _of(torch.cfloat),
    "conjugated": lambda shape, seed: values(shape, seed).to(torch.cfloat).conj(),
    "integers": _of(torch.int64),
    "booleans": _of(torch.bool),
    "sparse": lambda shape, seed: values(shape, seed).to_sparse(),
    "sparse rows": _csr,
    "quantised": lambda shape, seed: torch.quantize_per_tensor(values(shape, seed), 0.1, 0, torch.quint8),
    "mkldnn": lambda shape, seed: torch.ones(3, 3).to_mkldnn(),
    "meta": lambda shape, seed: torch.empty(shape, device="meta"),
    "fake": _fake,
    "another shape": lambda shape, seed: values((*shape, 2), seed),
    "nothing": lambda shape, seed: None,
    "a number": lambda shape, seed: 3,
    "a string": lambda shape, seed: "tensor",
    "an array": lambda shape, seed: values(shape, seed).numpy(),
}
KINDS = GOOD | ODD
