"""llama.cpp through its C interface, for the test of exported control vectors.

`pip install xllamacpp` brings a llama.cpp whose symbols are visible; no wheel of llama-cpp-python
is on the package index. Its own loader reads the control vector; that function is C++, so the two
structures that it takes and gives are laid out here by hand (as libstdc++ has them).
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest

LOADER = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"


class Params(ctypes.Structure):
    """Parameters of a model or a context, which are only passed on: more room than they take."""

    _fields_ = [("bytes", ctypes.c_char * 4096)]


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("token", "embd", "pos", "n_seq", "seq", "logits")),
    ]


class LoadInfo(ctypes.Structure):
    """common_control_vector_load_info: a strength and a std::string, in the layout that wheels for
    manylinux2014 are built with: one pointer to the characters, and before them the length, the
    capacity and the number of other owners."""

    _fields_ = [("strength", ctypes.c_float), ("text", ctypes.c_void_p)]


class Data(ctypes.Structure):
    """common_control_vector_data: a width and a std::vector<float>."""

    _fields_ = [
        ("width", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("begin", "end", "capacity")),
    ]


class LlamaCpp:
    """A GGUF model in llama.cpp."""

    def __init__(self, path: Path) -> None:
        package = pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
        (library,) = Path(package.__file__).parent.glob("xllamacpp*.so")
        lib = self._lib = ctypes.CDLL(str(library))
        pointer, number = ctypes.c_void_p, ctypes.c_int32
        for name, gives, takes in (
            ("llama_model_default_params", Params, []),
            ("llama_context_default_params", Params, []),
            ("llama_model_load_from_file", pointer, [ctypes.c_char_p, Params]),
            ("llama_init_from_model", pointer, [pointer, Params]),
            ("llama_batch_get_one", Batch, [pointer, number]),
            ("llama_decode", number, [pointer, Batch]),
            ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), [pointer, number]),
            (
                "llama_set_adapter_cvec",
                number,
                [pointer, pointer, ctypes.c_size_t, number, number, number],
            ),
            ("llama_free", None, [pointer]),
            ("llama_model_free", None, [pointer]),
            ("llama_log_set", None, [pointer, pointer]),
            (LOADER, pointer, [pointer, pointer]),
        ):
            getattr(lib, name).restype, getattr(lib, name).argtypes = gives, takes
        log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self._log = log(lambda level, text, data: None)
        lib.llama_log_set(ctypes.cast(self._log, pointer), None)
        self._model = lib.llama_model_load_from_file(
            str(path).encode(), lib.llama_model_default_params()
        )
        assert self._model

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lib.llama_model_free(self._model)

    def logits(
        self, ids: Sequence[int], vocabulary: int, vector: Path | None = None, layers: int = 0
    ) -> np.ndarray:
        """Logits [V] after some tokens, with a control vector file on all layers."""
        lib = self._lib
        context = lib.llama_init_from_model(self._model, lib.llama_context_default_params())
        assert context
        if vector is not None:
            data = self._loaded(vector)
            count = ((data.end or 0) - (data.begin or 0)) // 4
            given = lib.llama_set_adapter_cvec(context, data.begin, count, data.width, 1, layers)
            assert given == 0
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        batch = lib.llama_batch_get_one(ctypes.cast(tokens, ctypes.c_void_p), len(ids))
        assert lib.llama_decode(context, batch) == 0
        found = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (vocabulary,)).copy()
        lib.llama_free(context)
        return found

    def _loaded(self, path: Path) -> Data:
        """What llama.cpp's own loader makes of a control vector file."""
        text = str(path).encode() + b"\0"
        shared = 1000  # owners: it is not freed there
        header = struct.pack("qqii", len(text) - 1, len(text) - 1, shared, 0)
        string = ctypes.create_string_buffer(header + text)
        info = LoadInfo(1.0, ctypes.addressof(string) + len(header))
        begin = ctypes.addressof(info)
        end = begin + ctypes.sizeof(info)
        several = (ctypes.c_void_p * 3)(begin, end, end)  # a std::vector of one
        data = Data()
        getattr(self._lib, LOADER)(ctypes.addressof(data), ctypes.addressof(several))
        assert data.width > 0, "llama.cpp cannot read the file"
        return data
