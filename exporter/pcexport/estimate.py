"""What a build will take, said before it starts."""

import shutil
from pathlib import Path

from pcexport.config import BuildConfig
from pcexport.errors import BuildError
from pcexport.graph.network import TracedNetwork
from pcexport.graph.precision import changes_embeddings
from pcexport.memory_bank.coreset import coreset_memory_bytes, coreset_size
from pcexport.progress import Steps
from pcrun.machine.threads import available_cores
from pcrun.words import plural

# Resident memory besides memory bank and coreset, measured: onnxruntime, with and without torch.
_BASE_MEMORY_BYTES = {True: 1_150_000_000, False: 350_000_000}


def announce_needs(
    images: int, network: TracedNetwork, config: BuildConfig, staging: Path, steps: Steps
) -> None:
    """Say what the build will take before it starts, and refuse when the disk cannot hold it.

    Raises:
        BuildError: too little free disk space.
    """
    patches = images * network.spec.patches
    entries = coreset_size(patches, ratio=config.coreset_ratio, size=config.coreset_size)
    dim = min(config.project or network.spec.dim, network.spec.dim)
    projected = min(config.projection_dim, dim) if config.projection != "none" else 0
    # Another precision or a projection is compared with the float32 embeddings.
    reference = network.spec.dim if changes_embeddings(config) else 0
    bank_bytes = entries * dim * 4
    # The bank is written twice: as rows, and inside the index.
    disk = patches * (dim + projected + reference) * 4 + 2 * bank_bytes + len(network.onnx)
    # The bank is held as rows and by the index, by the detector that calibrates, and by a fold's bank.
    memory = _BASE_MEMORY_BYTES[network.needs_torch] + 6 * bank_bytes + 3 * len(network.onnx)
    if config.coreset == "kcenter":
        threads = config.threads or available_cores()
        memory += coreset_memory_bytes(patches, projected or dim, entries, threads=threads)
    steps.say(
        f"{images} {plural(images, 'image')} x {network.spec.patches} patches x {dim} = "
        f"{patches:,} embeddings, memory bank {entries:,}; needs about {disk / 1e9:.2f} GB of disk and "
        f"{memory / 1e9:.1f} GB of memory"
    )
    free = shutil.disk_usage(staging).free
    if disk > free:
        raise BuildError(
            f"The build needs about {disk / 1e9:.1f} GB beside the output, {free / 1e9:.1f} GB are free. "
            "Choose another -o, fewer images, or a smaller image size."
        )
