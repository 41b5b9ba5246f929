"""The one place where `--backend` and `--precision` become something that computes.

What is asked for and not there is an error that names what to install; nothing falls back.
"""

from sfn_rt.backends.base import Backend
from sfn_rt.bundle import Bundle
from sfn_rt.exceptions import BackendError
from sfn_rt.options import BackendOptions

# ONNX Runtime has no kernels for bf16 on the processor, and runs fp8 only without optimising.
GPU_ONLY = ("bf16", "fp8")


def open_backend(bundle: Bundle, options: BackendOptions, *, threads: int | None = None) -> Backend:
    """A backend with every part of `bundle`; on a device also the graphs that keep a stream there.

    Raises BundleError where the bundle lacks the precision, BackendError where this machine lacks
    the library, the device or an engine.
    """
    variants = bundle.variants(options.precision)
    if options.name == "cpu":
        from sfn_rt.backends.ort import OrtBackend

        if options.precision in GPU_ONLY:
            raise BackendError(
                f"--precision {options.precision} runs on GPUs only; take --backend tensorrt or "
                f"tensorrt-rtx, or another precision of {bundle.folder}"
            )
        return OrtBackend.from_bundle(bundle, threads=threads, variants=variants)
    if options.name == "cuda":
        from sfn_rt.backends.ort import OrtDevice

        return OrtDevice.from_bundle(bundle, precision=options.precision, device=options.device)
    from sfn_rt.backends.trt import TrtBackend

    return TrtBackend.from_bundle(
        bundle,
        flavour=options.name,
        precision=options.precision,
        cache=options.engines,
        device=options.device,
    )
