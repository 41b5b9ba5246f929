"""Small graphs for tests of conversions, and what parts of a bundle are fed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from sfn_calib.recipe import Budget, Recipe
from sfn_rt.backends.base import Array, PartSpec

F32 = onnx.TensorProto.FLOAT


def node(operator: str, inputs: Sequence[str], output: str, **attributes: object) -> NodeProto:
    """A node called as what it computes."""
    return make_node(operator, list(inputs), [output], name=f"{output}/{operator}", **attributes)


def write(
    path: Path,
    nodes: Sequence[NodeProto],
    constants: dict[str, Array],
    shapes: dict[str, Sequence[int | str]],
    outputs: Sequence[str] = ("y",),
) -> Path:
    """A graph whose inputs are those of `shapes` that are no outputs."""
    values = {name: make_tensor_value_info(name, F32, shape) for name, shape in shapes.items()}
    graph = make_graph(
        list(nodes),
        "small",
        [value for name, value in values.items() if name not in outputs],
        [values[name] for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = make_model(graph, opset_imports=[make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return path


def chain(path: Path, seed: int = 0) -> Path:
    """x (batch, 16) through two products with a LayerNormalization between them."""
    rng = np.random.default_rng(seed)
    constants = {
        "a": rng.standard_normal((16, 32)).astype(np.float32) / 4,
        "b": rng.standard_normal((32, 8)).astype(np.float32) / 6,
        "scale": np.ones(32, np.float32),
    }
    nodes = [
        node("MatMul", ["x", "a"], "wide"),
        node("LayerNormalization", ["wide", "scale"], "normed"),
        node("Gelu", ["normed"], "bent"),
        node("MatMul", ["bent", "b"], "y"),
    ]
    return write(path, nodes, constants, {"x": ["batch", 16], "y": ["batch", 8]})


def feeds_of(spec: PartSpec, n: int = 3, batch: int = 2, seed: int = 0) -> list[dict[str, Array]]:
    """Normally distributed inputs; token ids and masks are ones."""
    rng = np.random.default_rng(seed)

    def draw(shape: Sequence[int | str], dtype: str) -> Array:
        sizes = [size if isinstance(size, int) else {"batch": batch}.get(size, 7) for size in shape]
        if dtype == "int64":
            return np.ones(sizes, np.int64)
        return rng.standard_normal(sizes).astype(np.float32)

    return [{t.name: draw(t.shape, t.dtype) for t in spec.inputs} for _ in range(n)]


def recipe(precision: str, **settings: object) -> Recipe:
    """A recipe with nothing but the defaults beside what is given."""
    budget = Budget(auc_points=0.3, spearman=0.9, rerouted=0.5)
    return Recipe(name=precision, precision=precision, budget=budget, **settings)  # type: ignore[arg-type]
