"""An ONNX graph under construction: nodes one after another, weights in a file beside it. Knows ONNX, no models."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from threefold.errors import MissingExtraError

#: Operators of 2022, which every onnxruntime since 1.13 has; file format of the same time.
OPSET, IR_VERSION = 17, 8


def onnx_module() -> ModuleType:
    """The package, or an error that says how to install it."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "onnx", "an export to ONNX") from error
    return onnx


class Graph:
    """Every method adds to the graph and returns the name of what it made.

    Weights go straight to `<file>.data`, in 32 bits, so a model larger than the 2 GB of a protobuf message is written
    without a second copy of it in memory.
    """

    def __init__(self, path: Path) -> None:
        self._onnx = onnx_module()
        self._path = path
        self._data = path.with_name(path.name + ".data").open("wb")
        self._nodes: list[Any] = []
        self._initial: list[Any] = []
        self._made = 0

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The result of an operator."""
        (name,) = self.split(kind, *inputs, outputs=1, **attributes)
        return name

    def split(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """The results of an operator that has several."""
        names = [self._name(kind) for _ in range(outputs)]
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def constant(self, values: Any, kind: type = np.float32) -> str:
        """A few numbers, kept in the graph itself."""
        name = self._name("constant")
        self._initial.append(self._onnx.numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def weight(self, tensor: Tensor) -> str:
        """A parameter, in the file beside the graph."""
        array = np.ascontiguousarray(tensor.detach().float().numpy())
        name = self._name("weight")
        proto = self._onnx.TensorProto(
            name=name,
            data_type=self._onnx.TensorProto.FLOAT,
            dims=array.shape,
            data_location=self._onnx.TensorProto.EXTERNAL,
        )
        self._data.write(b"\0" * (-self._data.tell() % 64))  # onnxruntime maps whole blocks
        where = {"location": Path(self._data.name).name, "offset": self._data.tell(), "length": array.nbytes}
        for key, value in where.items():
            proto.external_data.add(key=key, value=str(value))
        self._data.write(array.tobytes())
        self._initial.append(proto)
        return name

    def save(
        self,
        inputs: Mapping[str, Sequence[str | int]],
        outputs: Mapping[str, tuple[str, Sequence[str | int]]],
        about: Mapping[str, str],
    ) -> None:
        """Write the graph.

        inputs   {name: shape} of int64; a word in a shape is any size
        outputs  {name: (what it is in the graph, shape)} of float32
        about    facts about the model, kept as its metadata
        """
        helper, proto = self._onnx.helper, self._onnx.TensorProto
        for name, (made, _) in outputs.items():
            self._nodes.append(helper.make_node("Identity", [made], [name]))
        takes = [helper.make_tensor_value_info(name, proto.INT64, list(shape)) for name, shape in inputs.items()]
        gives = [helper.make_tensor_value_info(name, proto.FLOAT, list(shape)) for name, (_, shape) in outputs.items()]
        graph = helper.make_graph(self._nodes, "threefold", takes, gives, self._initial)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], producer_name="threefold", ir_version=IR_VERSION)
        helper.set_model_props(model, dict(about))
        self._data.close()
        self._onnx.save_model(model, str(self._path))
        self._onnx.checker.check_model(str(self._path))

    def close(self) -> None:
        """Let go of the file of weights, whether or not the graph was saved."""
        with contextlib.suppress(OSError):
            self._data.close()

    def _name(self, kind: str) -> str:
        self._made += 1
        return f"{kind}_{self._made}"
