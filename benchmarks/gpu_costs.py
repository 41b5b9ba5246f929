"""What a graph must do at least: FLOPs of its products, bytes of its weights, inputs and outputs.

    python benchmarks/gpu_costs.py BUNDLE

The floors of benchmarks/gpu.py are made of these. A device has no onnx package, so `make
wheelhouse` counts where it packs, and the counts travel. Prints one line of JSON.

Counted for one frame: `batch` is 1, other dynamic axes as in USUAL.
"""

import argparse
import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import shape_inference

USUAL = {"batch": 1, "tokens": 16, "height": 576, "width": 720}
Shape = tuple[int, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    print(json.dumps(bundle_costs(parser.parse_args().bundle)))


def bundle_costs(folder: Path) -> dict[str, Any]:
    """Of every part of a bundle, and of its device graphs, in fp32."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    entries = {**manifest["parts"], **manifest.get("device", {})}
    return {part: graph_cost(folder / e["files"][e["default"]]) for part, e in entries.items()}


def graph_cost(path: Path) -> dict[str, Any]:
    """Counts of one graph for one frame."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    for value in graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if axis.HasField("dim_param"):
                axis.dim_value = USUAL[axis.dim_param]
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {v.name: _shape(v) for v in [*inferred.value_info, *inferred.input, *inferred.output]}
    shapes |= {w.name: tuple(w.dims) for w in graph.initializer}
    flops, unknown = 0, []
    for node in graph.node:
        counted = _flops(node, shapes)
        if counted is None:
            unknown.append(f"{node.op_type} {node.name}")
        flops += counted or 0
    return {
        "flops": flops,
        "weights": sum(_bytes(w.data_type, tuple(w.dims)) for w in graph.initializer),
        "inputs": sum(_value_bytes(v, shapes) for v in graph.input),
        "outputs": sum(_value_bytes(v, shapes) for v in graph.output if v.name != "routing"),
        "uncounted": unknown,
    }


def _flops(node: Any, shapes: dict[str, Shape | None]) -> int | None:
    """2 a multiply-add; 0 for what is no product, None where a shape is not known."""
    if node.op_type not in ("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"):
        return 0
    out = shapes.get(node.output[0])
    first, second = (shapes.get(name) for name in node.input[:2])
    if out is None or first is None or second is None or node.op_type == "Einsum":
        return None
    if node.op_type == "ConvTranspose":
        return 2 * prod(first) * prod(second[1:])
    if node.op_type == "Conv":
        return 2 * prod(out) * prod(second[1:])
    turned = any(a.name == "transA" and a.i for a in node.attribute)
    return 2 * prod(out) * (first[0] if turned else first[-1])


def _shape(value: Any) -> Shape | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    axes = [axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim]
    return None if None in axes else tuple(axis for axis in axes if axis is not None)


def _value_bytes(value: Any, shapes: dict[str, Shape | None]) -> int:
    shape = shapes.get(value.name)
    return 0 if shape is None else _bytes(value.type.tensor_type.elem_type, shape)


def _bytes(kind: int, shape: Shape) -> int:
    return prod(shape) * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).itemsize


if __name__ == "__main__":
    main()
