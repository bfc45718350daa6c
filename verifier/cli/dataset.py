"""Reads labelled data: an .npz file, or a folder of arrays or of images sorted by class. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from verifier.errors import VerifierError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLES = ("x", "images", "inputs", "data", "X")
LABELS = ("y", "labels", "targets", "target", "Y")
"""Names of arrays that are looked for, in this order."""
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm")
BATCH = 256


def read_dataset(path: Path, scale: float | None = None) -> Iterator[tuple[NDArray, NDArray[np.int64]]]:
    """Batches (samples [N, *shape], labels [N]) of a data set.

    An .npz file has an array of samples and one of labels, named as in SAMPLES and LABELS, or exactly one of real and
    one of whole numbers. A folder has x.npy and y.npy, or a folder per class with a sample in each file (.npy, or
    images, which become [channels, height, width] in 0..1); classes count from 0 in the order of names, or are the
    names where these are numbers. Samples are divided by `scale`.

    Raises VerifierError where the data cannot be read.
    """
    import numpy as np

    if path.is_dir():
        pairs = {end: path / f"{end}.npy" for end in ("x", "y")}
        if not all(p.is_file() for p in pairs.values()):
            return _by_class(path, scale)
        x, y = (_load(p)[""] for p in pairs.values())
    elif path.is_file():
        x, y = _pair(path, _load(path))
    else:
        raise VerifierError(f"{path} does not exist. Give an .npz file or a folder.")
    if len(x) != len(y) or y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise VerifierError(
            f"{path}: the samples have shape {x.shape}, the labels shape {y.shape} and type {y.dtype}; there must be "
            "one whole number per sample."
        )
    return _batches(_real(path, x, scale), y.astype(np.int64))


def _batches(x: NDArray, y: NDArray[np.int64]) -> Iterator[tuple[NDArray, NDArray[np.int64]]]:
    return ((x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(x), BATCH))


def _load(path: Path) -> dict[str, NDArray]:
    """The arrays by their names; the one of an .npy file has the empty name."""
    import numpy as np

    try:
        loaded = np.load(path)
        return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {"": loaded}
    except (OSError, ValueError, EOFError) as error:
        raise VerifierError(
            f"{path} cannot be read as .npy or .npz ({error}). Write it with numpy.save."
        ) from error


def _pair(path: Path, arrays: dict[str, NDArray]) -> tuple[NDArray, NDArray]:
    """The samples and the labels."""
    import numpy as np

    x, y = (next((arrays[n] for n in names if n in arrays), None) for names in (SAMPLES, LABELS))
    if x is None or y is None:
        real = [a for a in arrays.values() if np.issubdtype(a.dtype, np.floating)]
        whole = [a for a in arrays.values() if np.issubdtype(a.dtype, np.integer) and a.ndim == 1]
        if len(arrays) != 2 or len(real) != 1 or len(whole) != 1:
            names = ", ".join(filter(None, arrays)) or "no names"
            raise VerifierError(f"{path} has {names}. Name the samples x and the labels y (numpy.savez).")
        x, y = real[0], whole[0]
    return x, y


def _real(path: Path, x: NDArray, scale: float | None) -> NDArray:
    """Real numbers as they are, whole ones only with a scale."""
    import numpy as np

    if not np.issubdtype(x.dtype, np.floating):
        if scale is None:
            raise VerifierError(
                f"{path}: the samples are {x.dtype}. Say what to divide them by: --scale 255 for bytes in 0..1, "
                "--scale 1 to take them as they are."
            )
        x = x.astype(np.float32)
    return x if scale in (None, 1) else (x / np.asarray(scale, x.dtype))


def _by_class(path: Path, scale: float | None) -> Iterator[tuple[NDArray, NDArray[np.int64]]]:
    """One folder per class."""
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    numbers = all(p.name.isdecimal() for p in folders)
    files = [
        (file, int(folder.name) if numbers else k)
        for k, folder in enumerate(folders)
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in (".npy", *IMAGES)
    ]
    if not files:
        raise VerifierError(
            f"{path} has neither x.npy and y.npy nor folders, one per class, with .npy files or images."
        )
    return _read_files(_mixed(files), scale)


def _mixed(files: Sequence[tuple[Path, int]]) -> list[tuple[Path, int]]:
    """Class by class in turn, so that the first few are of all classes."""
    seen: dict[int, int] = {}
    keys = []
    for k, (_, label) in enumerate(files):
        seen[label] = seen.get(label, -1) + 1
        keys.append((seen[label], k))
    return [files[k] for _, k in sorted(keys)]


def _read_files(
    files: Sequence[tuple[Path, int]], scale: float | None
) -> Iterator[tuple[NDArray, NDArray[np.int64]]]:
    import numpy as np

    for start in range(0, len(files), BATCH):
        part = files[start : start + BATCH]
        arrays = [_sample(file, scale) for file, _ in part]
        odd = next((k for k, a in enumerate(arrays) if a.shape != arrays[0].shape), None)
        if odd is not None:
            raise VerifierError(
                f"{part[odd][0]} has shape {arrays[odd].shape}, and {part[0][0]} {arrays[0].shape}. All samples must "
                "have one shape."
            )
        yield np.stack(arrays), np.array([label for _, label in part], np.int64)


def _sample(file: Path, scale: float | None) -> NDArray:
    import numpy as np

    if file.suffix.lower() == ".npy":
        return _real(file, _load(file)[""], scale)
    try:
        from PIL import Image  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise VerifierError(f"reading {file} needs Pillow: pip install pillow.") from error
    try:
        pixels = np.asarray(Image.open(file))
    except OSError as error:
        raise VerifierError(f"{file} cannot be read as an image ({error}).") from error
    channels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    return channels.astype(np.float32) / np.float32(255 if scale is None else scale)


def read_array(file: Path, name: str = "") -> np.ndarray:
    """The one array of an .npy or .npz file; of several the one called `name`. Raises VerifierError."""
    arrays = _load(file)
    if name in arrays:
        return arrays[name]
    if len(arrays) != 1:
        raise VerifierError(f"{file} has the arrays {', '.join(arrays)}. Give a file with one.")
    return next(iter(arrays.values()))
