"""The names that a checkpoint's pickle may contain, each with what it stands for. All others are refused.

The table holds everything that `torch.load(weights_only=True)` accepts (torch/_weights_only_unpickler.py), and the
harmless values that training tools and A1111's own checks let stand beside the weights: numpy's arrays and scalars,
`ParameterList`, Lightning's callbacks. No entry is ever imported or called: what is not a tensor or a plain container
becomes an `Inert`.
"""

from collections.abc import Callable, Mapping

import torch

from sd_core.formats.rebuild import (
    LEGACY_TENSOR,
    Function,
    StorageType,
    counter,
    default_dict,
    inert,
    new_parameter,
    ordered_dict,
    parameter,
    parameter_dict,
    size,
    tensor,
    tensor_v3,
    typed,
)

Meaning = StorageType | torch.dtype | Function

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "QInt32Storage": torch.qint32,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QUInt4x2Storage": torch.quint4x2,
    "QUInt2x4Storage": torch.quint2x4,
}

_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32", "bool"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
    *("int64", "int32", "int16", "int8", "int7", "int6", "int5", "int4", "int3", "int2", "int1"),
    *("uint64", "uint32", "uint16", "uint8", "uint7", "uint6", "uint5", "uint4", "uint3", "uint2", "uint1"),
    *("bits16", "bits8", "bits4x2", "bits2x4", "bits1x8"),
    *("qint32", "qint8", "quint8", "quint4x2", "quint2x4"),
)

_Calls = Mapping[str, Callable[[tuple[object, ...]], object]]

_CONTAINERS: _Calls = {
    "collections OrderedDict": ordered_dict,
    "collections defaultdict": default_dict,
    "collections Counter": counter,
    "torch Size": size,
    "torch._tensor _rebuild_from_type_v2": typed,
    "torch.nn.modules.container ParameterDict": parameter_dict,
}

_TENSORS: _Calls = {
    "torch._utils _rebuild_tensor": tensor,
    "torch._utils _rebuild_tensor_v2": tensor,
    "torch._utils _rebuild_tensor_v3": tensor_v3,
    "torch._utils _rebuild_parameter": parameter,
    "torch._utils _rebuild_parameter_with_state": parameter,
    "torch._utils _rebuild_device_tensor_from_cpu_tensor": parameter,
    "torch.nn.parameter Parameter": new_parameter,
    # Tensors without a plain layout in the file: carried along, refused as weights.
    "torch._utils _rebuild_qtensor": inert("a quantized tensor"),
    "torch._utils _rebuild_sparse_tensor": inert("a sparse tensor"),
    "torch._utils _rebuild_nested_tensor": inert("a nested tensor"),
    "torch._utils _rebuild_meta_tensor_no_storage": inert("a tensor without data (on the device meta)"),
    "torch._utils _rebuild_wrapper_subclass": inert("a subclass of Tensor"),
    "torch._utils _rebuild_device_tensor_from_numpy": inert("a tensor stored as a numpy array"),
    **{
        f"{package} {kind}Tensor": inert(LEGACY_TENSOR)
        for package in ("torch", "torch.cuda", "torch.sparse", "torch.cuda.sparse")
        for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool", "")
    },
    "numpy ndarray": inert("a numpy array"),
    **{
        f"numpy.{core}.{name}": inert("a numpy array")
        for core in ("core", "_core")
        for name in ("multiarray _reconstruct", "numeric _frombuffer")
    },
}

# Values that hold no tensors a network could need, and the classes that dtypes and factories are named by.
_INERT = (
    "_codecs encode",
    *("torch device", "torch.serialization _get_layout", "torch.storage TypedStorage", "torch.storage _TypedStorage"),
    *("torch per_tensor_affine", "torch per_tensor_symmetric"),
    *("torch per_channel_affine", "torch per_channel_symmetric", "torch per_channel_affine_float_qparams"),
    "torch.nn.modules.container ParameterList",
    *("numpy dtype", "numpy.core.multiarray scalar", "numpy._core.multiarray scalar"),
    *(
        f"numpy {kind}{bits}"
        for kind, sizes in (("int", "8 16 32 64"), ("uint", "8 16 32 64"))
        for bits in sizes.split()
    ),
    *("numpy float16", "numpy float32", "numpy float64", "numpy complex64", "numpy complex128", "numpy bool_"),
    "collections deque",
    "pytorch_lightning.callbacks model_checkpoint",
    "pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping EarlyStopping",
    "pytorch_lightning.utilities.parsing AttributeDict",
    # PyTorch saves with protocol 2, which spells the builtins as Python 2 does.
    *(f"builtins {name}" for name in ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int")),
    *(f"builtins {name}" for name in ("list", "range", "set", "slice", "str", "tuple")),
    *(f"__builtin__ {name}" for name in ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int")),
    *(f"__builtin__ {name}" for name in ("list", "long", "set", "slice", "str", "tuple", "unicode", "xrange")),
)

ALLOWED: Mapping[str, Meaning] = {
    **{f"torch {name}": StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{f"torch.cuda {name}": StorageType(dtype) for name, dtype in _STORAGES.items()},
    "torch.storage UntypedStorage": StorageType(torch.uint8),
    "torch.storage _UntypedStorage": StorageType(torch.uint8),
    **{f"torch {name}": getattr(torch, name) for name in _DTYPES},
    **{name: Function(name, call) for name, call in _CONTAINERS.items()},
    **{name: Function(name, call, makes_tensor=True) for name, call in _TENSORS.items()},
    **{name: Function(name, inert()) for name in _INERT},
}
