"""Raw data in the formats that the preparation reads, tiny, as the tests write them."""

import io
import os
import pickle
import tarfile
import zipfile
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from scm_jax.datasets.preparation.readers.sources import open_items


def picture(number: int, height: int = 4, width: int = 5) -> np.ndarray:
    """An RGB image whose values tell which one it is."""
    values = np.arange(height * width * 3).reshape(height, width, 3)
    return ((values + 31 * number) % 256).astype(np.uint8)


def encode(image: np.ndarray | Image.Image, image_format="PNG", **options) -> bytes:
    if isinstance(image, np.ndarray):
        grey = image.ndim == 3 and image.shape[-1] == 1
        image = Image.fromarray(image[..., 0] if grey else image)
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def png(number: int, height: int = 4, width: int = 5) -> bytes:
    return encode(picture(number, height, width))


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_folder(root, files: dict[str, bytes], links=()):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name, target in dict(links).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, root / name)
    return root


def write_zip(path, files: dict[str, bytes], links=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for name, target in dict(links).items():
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o120777 << 16
            archive.writestr(info, target)
    return path


def tar_bytes(files: dict[str, bytes], links=(), mode="w", kind=tarfile.SYMTYPE):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in dict(links).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return file.getvalue()


def write_tar(path, files: dict[str, bytes], links=(), **how):
    path.write_bytes(tar_bytes(files, links, **how))
    return path


WRITERS = {"folder": write_folder, "zip": write_zip, "tar": write_tar}


def class_files(names=("cat", "ant"), count: int = 2, prefix: str = "") -> dict:
    """Two images for each class, ``cat/1.png``; not in alphabetical order."""
    numbers = iter(range(100))
    return {
        f"{prefix}{name}/{item}.png": png(next(numbers))
        for name in names
        for item in range(count)
    }


class _Python2(pickle._Pickler):
    """As cPickle of Python 2, whose texts and bytes are one type."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_text(self, text):
        content = text.encode() if isinstance(text, str) else text
        self.write(b"T" + len(content).to_bytes(4, "little") + content)

    dispatch[str] = dispatch[bytes] = save_text


def pickle_of_python2(entries: dict) -> bytes:
    file = io.BytesIO()
    _Python2(file, protocol=2).dump(entries)
    return file.getvalue().replace(b"numpy._core.", b"numpy.core.")


def planar(images: np.ndarray) -> np.ndarray:
    """``(n, h, w, 3)`` -> ``(n, 3 h w)``, plane after plane."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def cifar10_files(python2: bool = True, labels_from: int = 0) -> dict[str, bytes]:
    """Two 4x4 images in each batch; image ``i`` of batch ``b`` is picture 10 b + i."""
    dump = pickle_of_python2 if python2 else pickle.dumps
    names = ["aeroplane", "cart"]
    files = {"batches.meta": dump({"label_names": names, "num_vis": 48})}
    batches = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    for number, batch in enumerate(batches):
        images = np.stack([picture(10 * number + i, 4, 4) for i in range(2)])
        labels = [1 + labels_from, labels_from]
        entries = {"batch_label": batch, "labels": labels, "data": planar(images)}
        files[batch] = dump(entries)
    return {f"cifar-10-batches-py/{name}": content for name, content in files.items()}


def labels_of(items) -> list[int]:
    return [int(items.read(index)["label"]) for index in range(len(items))]


def assert_images(items, images) -> None:
    found = [items.read(index)["image"] for index in range(len(items))]
    np.testing.assert_array_equal(found, images)
    assert found[0].dtype == np.uint8


def assert_pictures(items, numbers) -> None:
    assert_images(items, [picture(number) for number in numbers])


def refused(message: str, path, error=ValueError, **options) -> None:
    """Asserts that a source cannot be opened, and what is said."""
    with pytest.raises(error, match=message):
        open_items(path, **options)
