"""Which engines a bundle needs on a GPU: one for each part of the model and each device graph."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfn_rt.backends.base import PartSpec
from sfn_rt.backends.cuda import Gpu
from sfn_rt.bundle import FULL, Bundle
from sfn_rt.engines.cache import Wanted
from sfn_rt.engines.flavour import Flavour
from sfn_rt.engines.onnx_file import OnnxFile, read_onnx
from sfn_rt.exceptions import BackendError


@dataclass(frozen=True)
class EnginePart:
    """One graph of a bundle that becomes an engine."""

    name: str
    precision: str  # of this part: a precision of the whole model may leave parts as they are
    spec: PartSpec  # what every precision of it takes and gives
    graph: OnnxFile

    def wanted(
        self, flavour: Flavour, where: Gpu | Sequence[str], max_batch: int | None = None
    ) -> Wanted:
        """The engine to look for or build: for a GPU, or for targets such as "SM89"."""
        if isinstance(where, Gpu):
            architectures: tuple[str, ...] = (where.architecture,)
            # TensorRT tunes for a model of GPU, TensorRT-RTX for an architecture.
            gpu = None if flavour.ahead_of_time else where.name
        else:
            architectures, gpu = tuple(f"sm_{target[2:]}" for target in where), None
        return Wanted(
            part=self.name,
            precision=self.precision,
            graph=self.graph.sha256(),
            flavour=flavour.name,
            version=flavour.version,
            architectures=architectures,
            gpu=gpu,
            max_batch=max_batch,
        )


def engine_parts(bundle: Bundle, precision: str = FULL) -> Iterator[EnginePart]:
    """The parts of a bundle at a precision, then the graphs that keep a stream on the GPU."""
    manifest, variants = bundle.manifest, bundle.variants(precision)
    for name, path in bundle.graphs(precision).items():
        yield EnginePart(name, variants[name], manifest.parts[name].spec, read_onnx(path))
    for name, path in bundle.device_graphs().items():
        yield EnginePart(name, FULL, manifest.device[name].spec, read_onnx(path))


def targets_here(flavour: Flavour, gpu: Gpu) -> tuple[str, ...] | None:
    """What to name to the builder so that it builds for this GPU; None: nothing."""
    if not flavour.ahead_of_time:
        return None
    target = f"SM{gpu.architecture.removeprefix('sm_')}"
    if target not in flavour.targets:
        raise BackendError(
            f"{flavour.title} knows no {gpu.architecture} ({gpu.name}), only "
            f"{', '.join(flavour.targets)}; take --backend tensorrt or cuda"
        )
    return (target,)


def build_command(
    bundle: Path,
    flavour: str,
    precision: str,
    *,
    engines: Path | None = None,
    max_batch: int | None = None,
    max_frame: tuple[int, int] | None = None,
) -> str:
    """What to type to get the engines."""
    words = ["sfn-rt build", f"--bundle {bundle}", f"--backend {flavour}"]
    if precision != FULL:
        words.append(f"--precision {precision}")
    if max_batch is not None:
        words.append(f"--max-batch {max_batch}")
    if max_frame is not None:
        words.append(f"--max-frame {max_frame[1]}x{max_frame[0]}")
    if engines is not None:
        words.append(f"--engines {engines}")
    return f"`{' '.join(words)}`"
