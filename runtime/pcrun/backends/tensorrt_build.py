"""From a bundle's graph to a native TensorRT engine, by the tensorrt package.

The network is strongly typed: TensorRT computes each operator in the type that the graph states, float16 and
int8 where the exporter put them. TensorRT 11 knows nothing else. For a float32 bundle TensorRT 10 can still
choose float16 itself (`BuilderFlag.FP16`, deprecated there); int8 it could only guess, from ranges that its
calibrators no longer measure, so that is left to `pcexport build --precision int8 --int8-activations signed`.
"""

from typing import Any

from pcrun.backends.tensorrt_cache import MOST_IMAGES
from pcrun.bundle.bundle import Bundle
from pcrun.errors import BackendError
from pcrun.machine.gpu import import_tensorrt

_SHOWN_ERRORS = 3


def engine_precision(stored: str, wanted: str | None, tensorrt: Any) -> str:
    """What an engine computes in.

    Args:
        stored: the bundle's precision.
        wanted: another one, or None for the bundle's.
        tensorrt: the package.

    Raises:
        BackendError: TensorRT cannot make that of the bundle.
    """
    precision = wanted or stored
    if stored == "bf16":
        raise BackendError(
            "The bundle was built for bfloat16 in OpenVINO; its graph is float32. Expected a bundle built "
            "with `pcexport build --precision fp32`, fp16 or int8; compile one of those."
        )
    if precision == stored:
        return precision
    if (stored, precision) == ("fp32", "fp16"):
        if hasattr(tensorrt.BuilderFlag, "FP16"):
            return precision
        raise BackendError(
            f"TensorRT {tensorrt.__version__} computes in the types that a graph states, and this bundle's "
            "are float32. Expected a graph in float16; build the bundle with `pcexport build --precision "
            "fp16`."
        )
    flag = " --int8-activations signed" if precision == "int8" else ""
    raise BackendError(
        f"The bundle's embedder computes in {stored}, {precision} was asked for. Expected a graph in that "
        f"precision, because ranges and thresholds belong to it; build the bundle with `pcexport build "
        f"--precision {precision}{flag}`."
    )


def build_engine(bundle: Bundle, precision: str) -> tuple[bytes, int]:
    """Build an engine for this machine; takes minutes.

    Args:
        bundle: whose embedder to build.
        precision: as `engine_precision` gives it.

    Returns:
        The engine, and how many images it takes per call.

    Raises:
        BackendError: TensorRT cannot read the graph or build it.
    """
    tensorrt = import_tensorrt()
    log = make_logger(tensorrt)
    # TensorRT's objects refer to each other without keeping each other alive.
    builder = tensorrt.Builder(log)
    by_choice = precision != bundle.manifest.embedding.precision
    typed = 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(0 if by_choice else typed)
    parser = tensorrt.OnnxParser(network, log)
    if not parser.parse(bundle.embedder):
        errors = [parser.get_error(number).desc() for number in range(parser.num_errors)]
        raise _refused(tensorrt, bundle, "read", errors or log.errors)
    config = builder.create_builder_config()
    # By itself TensorRT rounds float32 products to 10 bits.
    config.clear_flag(tensorrt.BuilderFlag.TF32)
    if by_choice:
        config.set_flag(tensorrt.BuilderFlag.FP16)
    most_images = _add_profile(bundle, builder, config)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refused(tensorrt, bundle, "build", log.errors)
    return bytes(plan), most_images


def make_logger(tensorrt: Any) -> Any:
    """A logger that keeps errors: TensorRT's own prints to standard output, where results go."""

    class Log(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            # Nothing may be raised in here.
            if severity in (tensorrt.Logger.ERROR, tensorrt.Logger.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def _add_profile(bundle: Bundle, builder: Any, config: Any) -> int:
    spec, hw = bundle.manifest.embedding, bundle.manifest.preprocess.input_hw
    if spec.batch is not None:
        return spec.batch
    profile = builder.create_optimization_profile()
    profile.set_shape(spec.input_name, (1, *hw, 3), (1, *hw, 3), (MOST_IMAGES, *hw, 3))
    config.add_optimization_profile(profile)
    return MOST_IMAGES


def _refused(tensorrt: Any, bundle: Bundle, what: str, errors: list[str]) -> BackendError:
    reasons = "; ".join(" ".join(error.split()) for error in errors[:_SHOWN_ERRORS]) or "no reason given"
    advice = "build the bundle again with this version of pcexport, whose graphs keep to TensorRT's rules"
    if bundle.manifest.embedding.precision == "int8":
        advice = (
            "TensorRT takes int8 around zero alone; build the bundle again with `--precision int8 "
            "--int8-activations signed`"
        )
    return BackendError(
        f"TensorRT {tensorrt.__version__} cannot {what} the bundle's embedder: {reasons}. Expected a graph "
        f"that it documents; {advice}."
    )
