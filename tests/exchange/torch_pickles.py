"""Files as PyTorch writes them, made without it, and what the golden ones hold."""

import io
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/torch"
FILES = sorted(path.name for path in GOLDEN.iterdir())
BFLOAT16 = ml_dtypes.bfloat16
MAGIC = 0x1950A86A20F9469CFC6C


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    """Dtype, shape and every bit."""
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert got.tobytes() == expected.tobytes()


def ramp(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 8 - 1


def golden_tensors():
    return {
        "conv.weight": ramp(2, 3, 2, 2),
        "float64": ramp(5).astype(np.float64) / 3,
        "float16": ramp(5).astype(np.float16),
        "bfloat16": ramp(2, 3).astype(BFLOAT16),
        "int64": np.array([-(2**40), 0, 2**40]),
        "int32": np.array([-7, 2**30], np.int32),
        "uint8": np.array([[0, 255]], np.uint8),
        "bool": np.array([True, False, True]),
        "transposed": ramp(2, 3).T,
        "transposed_bfloat16": ramp(2, 3).astype(BFLOAT16).T,
        "strided": ramp(4, 6)[1:4:2, 1::2],
        "shared.a": ramp(8)[:4],
        "shared.b": ramp(8)[2:],
        "expanded": np.full(3, 0.5, np.float32),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }


def golden_network(dtype=np.float32):
    shapes = {
        "out_gain": (),
        "freqs": (3,),
        "enc.8x8_conv.weight": (4, 2, 3, 3),
        "enc.8x8_block.0.weight": (4,),
        "enc.8x8_block.0.bias": (4,),
        "dec.0.weight": (4, 4),
        "dec.0.gain": (),
        "dec.1.weight": (2, 2),
        "dec.1.gain": (),
        "out.weight": (1, 4),
        "out.bias": (1,),
    }
    return {
        name: ((np.arange(np.prod(shape)) + 10 * i) / 16).reshape(shape).astype(dtype)
        for i, (name, shape) in enumerate(shapes.items())
    }


class Call:
    """Pickled as a call of a function by name."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Persistent:
    """Pickled as a persistent id."""

    def __init__(self, *pid):
        self.pid = pid


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.pid if isinstance(value, Persistent) else None


def dumps(value, protocol=2):
    file = io.BytesIO()
    Pickler(file, protocol).dump(value)
    return file.getvalue()


def write_zip(path, value, storages=(), byteorder="little"):
    """A zip file as torch.save makes it; bytes are a pickle already."""
    with zipfile.ZipFile(path, "w") as archive:
        content = value if isinstance(value, bytes) else dumps(value)
        archive.writestr("a/data.pkl", content)
        archive.writestr("a/byteorder", byteorder)
        for key, content in enumerate(storages):
            archive.writestr(f"a/data/{key}", content)
    return path


def wrap_legacy(content):
    """A stream as torch.save made it before 1.6, up to the pickled object."""
    head = [pickle.dumps(part, 2) for part in (MAGIC, 1001, {"little_endian": True})]
    return b"".join(head) + content


def legacy_stream(value, storages=()):
    """The whole stream; ``storages`` are float32 arrays."""
    keys = [str(key) for key in range(len(storages))]
    parts = [wrap_legacy(dumps(value)), pickle.dumps(keys, 2)]
    for array in storages:
        parts += [array.size.to_bytes(8, "little"), array.astype("<f4").tobytes()]
    return b"".join(parts)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    return path
