"""Write embeddings as HDF5, Parquet or NumPy's .npz, by the suffix of the output. One chunk is in memory at a time.

.h5 and .npz contain the same arrays, for P proteins in input order with R residues in all, hidden size H:
    names [P], lengths [P], settings (JSON), and the requested ones of mean, bos, max [P, H]
    with residues: residues [R, H] and offsets [P + 1]; protein i has the rows offsets[i] to offsets[i + 1]
.parquet has one row per protein: name, length, mean, bos, max (H numbers each), residues (a list of vectors). The
settings are in the metadata of the schema.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from amplify_ds.errors import AmplifyError
from amplify_ds.inference.embeddings import Settings
from amplify_ds.inference.name_arrays import as_arrays, decode_names
from amplify_ds.inference.resumable import Chunks

FORMATS = (".h5", ".parquet", ".npz")


@dataclass(frozen=True)
class Shape:
    """The sizes of the output, its settings, and the description that is stored in it. longest_name: characters."""

    proteins: int
    residues: int
    longest_name: int
    hidden_size: int
    settings: Settings
    description: dict

    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Return {name: (shape, dtype)} of the arrays in an .h5 or .npz output."""
        arrays: dict[str, tuple[tuple[int, ...], DTypeLike]] = {
            "names": ((self.proteins,), np.dtype(f"U{self.longest_name}")),
            "lengths": ((self.proteins,), "int32"),
        }
        for kind in self.settings.include:
            rows = self.residues if kind == "residues" else self.proteins
            arrays[kind] = ((rows, self.hidden_size), self.settings.dtype)
        if "residues" in self.settings.include:
            arrays["offsets"] = ((self.proteins + 1,), "int64")
        return {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in arrays.items()}


def check_format(output: Path) -> None:
    """Raises AmplifyError if the suffix of the output is unknown, or if the package that writes it is missing."""
    if output.suffix not in FORMATS:
        raise AmplifyError(f"{output}: the name must end in {', '.join(FORMATS)}; the suffix sets the format")
    if output.suffix == ".h5":
        try:
            import h5py  # noqa: F401
        except ImportError:
            raise AmplifyError(
                f"{output}: h5py, which writes HDF5, is not installed: pip install -r requirements.txt"
            ) from None


def write(path: Path, chunks: Chunks, shape: Shape) -> None:
    {".h5": _write_hdf5, ".npz": _write_npz, ".parquet": _write_parquet}[path.suffix](path, chunks, shape)


def _write_hdf5(path: Path, chunks: Chunks, shape: Shape) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["settings"] = json.dumps(shape.description)
        for name, (size, dtype) in shape.arrays().items():
            data = file.create_dataset(name, size, h5py.string_dtype() if dtype.kind == "U" else dtype)
            begin = 0
            for part in map(decode_names, chunks.read()) if name == "names" else _parts(chunks, name):
                data[begin : begin + len(part)] = part
                begin += len(part)


def _write_npz(path: Path, chunks: Chunks, shape: Shape) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, (size, dtype) in shape.arrays().items():
            with archive.open(_entry(name), "w", force_zip64=True) as file:
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": size}
                np.lib.format.write_array_header_1_0(file, header)
                names = as_arrays(map(decode_names, chunks.read()), dtype)
                for part in names if name == "names" else _parts(chunks, name):
                    file.write(np.ascontiguousarray(part, dtype).tobytes())
        with archive.open(_entry("settings"), "w") as file:
            np.lib.format.write_array(file, np.array(json.dumps(shape.description)))


def _entry(name: str) -> zipfile.ZipInfo:
    """Return an entry with a fixed date, so that equal embeddings give equal files. Only names are compressed."""
    entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED if name == "names" else zipfile.ZIP_STORED
    return entry


def _parts(chunks: Chunks, name: str) -> Iterator[np.ndarray]:
    """Yield the array `name` of each chunk; `offsets` are computed from the lengths."""
    if name != "offsets":
        yield from (arrays[name] for arrays in chunks.read())
        return
    end = np.zeros(1, np.int64)
    yield end
    for arrays in chunks.read():
        ends = end[-1] + np.cumsum(arrays["lengths"], dtype=np.int64)
        yield ends
        end = ends


def _write_parquet(path: Path, chunks: Chunks, shape: Shape) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    vector = pa.list_(pa.from_numpy_dtype(shape.settings.dtype), shape.hidden_size)
    fields = [pa.field("name", pa.string()), pa.field("length", pa.int32())]
    fields += [pa.field(kind, pa.list_(vector) if kind == "residues" else vector) for kind in shape.settings.include]
    schema = pa.schema(fields, metadata={"settings": json.dumps(shape.description)})
    with parquet.ParquetWriter(path, schema) as writer:
        for arrays in chunks.read():
            columns = [pa.array(decode_names(arrays), pa.string()), pa.array(arrays["lengths"], pa.int32())]
            for kind in shape.settings.include:
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(arrays[kind].reshape(-1)), type=vector)
                if kind == "residues":
                    ends = np.cumsum([0, *arrays["lengths"]], dtype=np.int32)
                    vectors = pa.ListArray.from_arrays(ends, vectors)
                columns.append(vectors)
            writer.write_table(pa.table(columns, schema=schema))
