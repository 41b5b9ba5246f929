"""Which nodes of a graph stay in float32 whatever the precision, and which can be quantised.

Found by structure, never by name: a router is what leads from a product to a TopK.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from onnx import NodeProto

from sfn_calib.graph import MOVES, Graph
from sfn_calib.recipe import PRODUCTS, Recipe

NORMS = {"LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"}
EXPONENTIALS = {"Softmax", "LogSoftmax", "Exp", "Log", "Softplus", "ReduceLogSumExp"}
SUMS = {"ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "CumSum"}
# Between a Softmax and its product (attention that guards against rows without a key). In float32
# behind a Softmax, with a Cast to half behind them, they stop TensorRT-RTX 1.7 (mha_fusion).
CHOICES = {"Where", "IsNaN"}
INTEGERS = {2, 3, 4, 5, 6, 7, 9, 12, 13}  # of onnx.TensorProto, with BOOL

REASONS = {
    "router": "decides which filters a token meets: two that score nearly alike change places "
    "under any rounding, and the token's output then differs by far more than rounding",
    "gates": "probabilities: their small values count, and a step of 1/127 is larger than most",
    "exponentials": "exponential of its input: an error there is multiplied, 11.1 overflows fp16",
    "normalization": "divides by a small variance that 10 bits of mantissa cannot sum up",
    "sums": "adds many values: half precision loses the small ones and ends at 65504",
    "indices": "counts tokens and blocks, which must be exact: fp16 has whole numbers up to 2048",
    "constants": "computed of constants alone, once, when an engine is built",
    "attention": "both factors are activations: there is no constant weight to quantise, and both "
    "ranges change with every clip",
    "gated": "adds up the codes that the gates let through, and no path leads around it: its error "
    "reaches the next router whole",
    "gathered": "its weights are gathered block by block: their scales would have to be, too",
    "weight": "its weight has not the layout that has one scale a channel",
    "operators": "the recipe quantises no {operator}",
}


def stays_full(graph: Graph) -> dict[str, str]:
    """Node -> why it computes in float32."""
    found: dict[str, str] = {}
    kinds = (
        ("constants", (n for n in graph.nodes if all(map(graph.is_constant, n.output)))),
        ("router", _routers(graph)),
        ("indices", _index_arithmetic(graph)),
        ("exponentials", (n for n in graph.nodes if n.op_type in EXPONENTIALS)),
        ("gates", _probabilities(graph)),
        ("normalization", (n for n in graph.nodes if n.op_type in NORMS)),
        ("sums", (n for n in graph.nodes if n.op_type in SUMS)),
    )
    for kind, nodes in kinds:
        for node in nodes:
            if node.op_type != "Shape" and graph.touches_floats(node):
                found.setdefault(node.name, REASONS[kind])
    return found


def quantisable(graph: Graph, recipe: Recipe) -> tuple[list[NodeProto], dict[str, str]]:
    """The products that a recipe quantises, and of every other product why it is not."""
    full = stays_full(graph) | dict.fromkeys(_gated_products(graph), REASONS["gated"])
    chosen: list[NodeProto] = []
    not_chosen: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type not in PRODUCTS or not graph.is_float(node.output[0]):
            continue
        if reason := full.get(node.name) or _unfit(graph, node, recipe):
            not_chosen[node.name] = reason
        else:
            chosen.append(node)
    return chosen, not_chosen


def _unfit(graph: Graph, node: NodeProto, recipe: Recipe) -> str | None:
    weight = node.input[1]
    if weight not in graph.constants:
        return REASONS["gathered" if _gathered(graph, weight) else "attention"]
    rank = len(graph.constants[weight].dims)
    if (rank < 3) if node.op_type == "Conv" else (rank != 2):
        return REASONS["weight"]
    if graph.is_constant(node.input[0]):
        return REASONS["weight"]
    if node.op_type not in recipe.operators:
        return REASONS["operators"].format(operator=node.op_type)
    return next((stay.why for stay in recipe.stay if fnmatchcase(node.name, stay.nodes)), None)


def _gathered(graph: Graph, name: str) -> bool:
    return any(
        node.op_type == "Gather" and graph.is_constant(node.input[0]) for node in graph.before(name)
    )


def _routers(graph: Graph) -> Iterable[NodeProto]:
    """From every TopK back to the products that score its candidates."""
    for node in graph.nodes:
        if node.op_type == "TopK":
            yield node
            yield from _back(graph, [node.input[0]], stop=NORMS, last=set(PRODUCTS))


def _index_arithmetic(graph: Graph) -> Iterable[NodeProto]:
    """Float nodes whose results end as integers."""
    for node in graph.nodes:
        if node.op_type == "Cast" and graph.types[node.output[0]] in INTEGERS:
            stop = NORMS | EXPONENTIALS | {"TopK", *PRODUCTS}
            yield from _back(graph, [node.input[0]], stop=stop, last=set())


def _probabilities(graph: Graph) -> Iterable[NodeProto]:
    """What computes on nothing but what a Softmax or TopK gives, to the product that reads it."""
    sources = {"Softmax", "TopK"}
    held = {n for node in graph.nodes if node.op_type in sources for n in node.output}
    for node in graph.nodes:
        floats = graph.float_inputs(node)
        own = [name for name in floats if name in held]
        if node.op_type in sources or not own:
            continue
        if all(name in held or graph.is_constant(name) for name in floats):
            if node.op_type not in CHOICES:
                yield node
            if node.op_type not in PRODUCTS:
                held.update(node.output)


def _gated_products(graph: Graph) -> Iterable[str]:
    """Products of what a gate was multiplied into, where a TopK made the gate."""
    gated = {n for node in graph.nodes if node.op_type == "TopK" for n in node.output}
    for node in graph.nodes:
        if not any(name in gated for name in graph.float_inputs(node)):
            continue
        if node.op_type in PRODUCTS:
            yield node.name
        elif node.op_type in MOVES | {"Mul", "Div", "ReduceSum"}:
            gated.update(node.output)


def _back(graph: Graph, names: list[str], *, stop: set[str], last: set[str]) -> Iterable[NodeProto]:
    """Nodes that lead to `names`: not those of `stop`, and nothing before those of `last`."""
    seen: set[str] = set()
    while names:
        for node in graph.before(names.pop()):
            if node.name in seen or node.op_type in stop:
                continue
            seen.add(node.name)
            yield node
            if node.op_type not in last:
                names.extend(n for n in node.input if n and graph.types.get(n) in (1, 9))
