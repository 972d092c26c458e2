"""The manifest: counts, moments and hashes, and the checks of data against it."""

import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image

from scm_jax.datasets import storage
from scm_jax.datasets.preparation import inspection, manifest, verify
from tests.preparation.made_items import ArrayItems, arrays, run

RNG = np.random.default_rng(2)
NORMAL = (3 + 5 * RNG.standard_normal((10, 4, 4, 8))).astype(np.float32)
LATENTS = ArrayItems(
    {"latent": NORMAL, "label": np.arange(10) % 4},
    ("a", "b", "c", "d", "none of them"),
    {"kind": "edm", "path": "latents.zip"},
)


@pytest.fixture
def folder(tmp_path):
    return run(arrays(), tmp_path)


def problems(folder, **options):
    return list(verify.verify(folder, **options))


def test_counts_hashes_and_recipe(folder):
    found = manifest.read(folder)
    assert (found["name"], found["field"], found["dtype"]) == ("tiny", "image", "uint8")
    assert found["shape"] == [8, 8, 3] and found["num_classes"] == 3
    assert found["class_names"] == ["a", "b", "c"]
    split = found["splits"]["train"]
    assert split["count"] == 23 and split["items_per_class"] == [8, 8, 7]
    assert [shard["items"] for shard in split["shards"]] == [4, 4, 4, 4, 4, 3]
    for shard in split["shards"]:
        content = (folder / shard["file"]).read_bytes()
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()
        assert shard["bytes"] == len(content)
    expected = {"recipe": "none", "size": 0, "shard_items": 4, "options": {}}
    assert split["recipe"] == expected | {"origin": arrays().origin}
    assert split["skipped"] == []
    assert {"date", "numpy", "pillow", "scm_jax"} <= set(split["made"])


def test_moments_of_images_are_of_pixels_between_minus_one_and_one(folder):
    found = manifest.read(folder)
    x = arrays().fields["image"] / 127.5 - 1
    split = found["splits"]["train"]
    np.testing.assert_allclose(split["mean"], x.mean((0, 1, 2)), rtol=0, atol=1e-14)
    np.testing.assert_allclose(split["std"], x.std((0, 1, 2)), rtol=1e-14)
    assert "[-1, 1]" in found["statistics_of"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_moments_of_latents_are_raw_and_of_what_is_stored(tmp_path, dtype):
    found = manifest.read(run(LATENTS, tmp_path, dtype=dtype, encoder={"a": "b"}))
    split = found["splits"]["train"]
    x = LATENTS.fields["latent"].astype(dtype).astype(np.float64)
    np.testing.assert_allclose(split["mean"], x.mean((0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(split["std"], x.std((0, 1, 2)), rtol=1e-13)
    assert split["items_per_class"] == [3, 3, 2, 2, 0]
    assert found["encoder"] == {"a": "b"}


def test_moments_do_not_lose_digits_far_from_zero():
    """Images of level 255 with one pixel of 254: the variance is exact."""
    n = 10**9
    sums = {"total": [255 * n - 1], "squares": [255**2 * n - 255**2 + 254**2]}
    mean, std = manifest.moments("image", [{"count": n, **sums}])
    share = 1 / n
    assert std[0] == pytest.approx(np.sqrt(share * (1 - share)) / 127.5, rel=1e-12)
    assert mean[0] == pytest.approx(1 - share / 127.5, rel=1e-15)


def test_what_is_no_manifest_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="data prepare"):
        manifest.read(tmp_path)
    (tmp_path / "manifest.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"manifest\.json is not a manifest"):
        manifest.read(tmp_path)


def test_data_of_a_tfds_builder_are_measured(tmp_path):
    folder = storage.prepare("digits", tmp_path)
    found = manifest.describe_prepared(folder)
    assert found == manifest.read(folder) and found["shape"] == [8, 8, 1]
    split = found["splits"]["train"]
    # data/digits/README.md
    levels = (np.array([split["mean"], split["std"]])[:, 0] + [1, 0]) * 127.5
    np.testing.assert_allclose(levels, [4.884164579855314, 6.016787548672236])
    assert split["items_per_class"][:3] == [178, 182, 177] and split["count"] == 1797
    assert problems(folder) == []


# --- verify ---------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [arrays(), arrays(classes=0), LATENTS])
def test_whole_data_have_no_problem(tmp_path, raw):
    folder = run(raw, tmp_path)
    run(raw, tmp_path, split="test")
    seen = []
    assert list(verify.verify(folder, on_shard=seen.append)) == []
    assert sum(seen) == 2 * len(raw)
    assert problems(folder, quick=True) == []


def first(folder, number=1):
    return sorted(folder.glob("*array_record*"))[number]


@pytest.mark.parametrize("quick", [True, False])
def test_a_truncated_shard_is_named(folder, quick):
    shard = first(folder)
    content = shard.read_bytes()
    shard.write_bytes(content[:100])
    found = problems(folder, quick=quick)
    assert f"{shard} is cut off: 100 of {len(content):,} bytes" in found[0]
    assert len(found) == (1 if quick else 2)
    assert quick or "cannot be opened" in found[1]


@pytest.mark.parametrize("quick", [True, False])
def test_a_missing_and_a_grown_shard_are_named(folder, quick):
    first(folder, 0).unlink()
    with open(first(folder, 2), "ab") as file:
        file.write(b"more")
    found = problems(folder, quick=quick)
    assert "00000-of-00006 is missing" in found[0]
    assert "00003-of-00006 has grown" in found[1]


def test_changed_bytes_name_the_item(tmp_path):
    raw = arrays(num=8, shape=(64, 64, 3))
    folder = run(raw, tmp_path)
    shard = first(folder)
    content = bytearray(shard.read_bytes())
    place = content.index(raw.fields["image"][6, 20].tobytes())  # stored as they are
    content[place] ^= 255
    shard.write_bytes(content)
    assert "another sha256" in problems(folder, quick=True)[0]
    found = problems(folder)
    assert len(found) == 2
    assert "00001-of-00002: item 2 (item 6 of the split) cannot be decoded" in found[1]


EDITS = {
    "item 2 .* has the label 2; legal are 0..1": lambda m: m.update(num_classes=2),
    r"item 0 .* is uint8 \(8, 8, 3\)": lambda m: m.update(shape=[8, 8, 1]),
    "item 0 .* is uint8 ": lambda m: m.update(dtype="int8"),
    "items per class are not": lambda m: train(m)["items_per_class"].reverse(),
    "'test' is in manif": lambda m: m["splits"].update(test=train(m)),
    "info.json has shards of other lengths": lambda m: train(m)["shards"].pop(),
}


def train(found):
    return found["splits"]["train"]


@pytest.mark.parametrize("message", EDITS)
def test_data_that_are_not_as_declared(folder, message):
    found = manifest.read(folder)
    EDITS[message](found)
    (folder / "manifest.json").write_text(json.dumps(found))
    assert any(re.search(message, problem) for problem in problems(folder))


def test_values_that_are_not_finite_name_the_item():
    found = {"field": "latent", "shape": [2], "dtype": "float32", "num_classes": 0}
    item = {"latent": np.array([1, np.nan], np.float32)}
    assert verify._problem(item, found) == "has values that are not finite"


# --- inspect --------------------------------------------------------------------------


def test_page_shows_items_and_moments(tmp_path):
    """Latents without classes; a command draws a page of images with classes."""
    folder = run(LATENTS, tmp_path, labelled=False)
    out = tmp_path / "page.png"
    facts = inspection.inspect(folder, "train", out, num=5)
    split = manifest.read(folder)["splits"]["train"]
    assert facts["count"] == len(LATENTS)
    assert (facts["mean"], facts["std"]) == (split["mean"], split["std"])
    with Image.open(out) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    with pytest.raises(ValueError, match="split of"):
        inspection.inspect(folder, "val", out)
    with pytest.raises(ValueError, match="'val' is not one of"):
        problems(folder, split="val")


def test_pictures_of_latents_are_centred_on_their_mean():
    facts = {"mean": [3.0] * 8, "std": [2.0] * 8}
    values = np.full((1, 2, 2, 8), 3.0, np.float32)
    values[0, 0, 0] = 3 + 2.5 * 2
    shown = inspection._shown(values, {"field": "latent"}, facts)
    assert shown.shape == (1, 2, 2, 3) and shown.dtype == np.uint8
    assert (shown[0, 0, 0] == 255).all() and (shown[0, 1, 1] == 127).all()


def test_pictures_with_few_levels_use_all_of_the_grey_scale():
    values = np.array([0, 8, 16], np.uint8).reshape(1, 1, 3, 1)
    shown = inspection._shown(values, {"field": "image"}, {})
    assert shown.ravel().tolist() == [0, 127, 255]
