"""Images to latents: which item is what, interruptions, and the manifest."""

import os
import threading

import numpy as np
import pytest

from scm_jax.datasets import latents, pipeline
from scm_jax.datasets.preparation import encode, manifest, prepare
from scm_jax.datasets.preparation.readers import sources
from scm_jax.datasets.preparation.readers.items import ItemError
from scm_jax.files import state_dict
from scm_jax.networks import autoencoder
from scm_jax.networks.external import autoencoder as exchange
from scm_jax.runs import latents as latents_lib
from tests.commands.in_process import scm
from tests.networks.reference import draw_small, quick_jit
from tests.preparation.made_items import ArrayItems, arrays, contents

NUM, BATCH = 7, 3
IDENTITY = {"pixel_range": "[0,1]", "name": "stub", "sha256": "0" * 64}


def pictures(num=NUM):
    return arrays(num, (4, 6, 3), classes=2)


class Stub:
    """Latents that tell which image, and which way round, they are of."""

    def __init__(self, dies_at=None, barrier=None):
        self.calls, self.dies_at, self.barrier = [], dies_at, barrier

    def __call__(self, images):
        assert images.shape == (BATCH, 4, 6, 3) and images.dtype == np.uint8
        if len(self.calls) == self.dies_at:
            raise KeyboardInterrupt
        if len(self.calls) == 1 and self.barrier is not None:
            self.barrier.wait(60)
        self.calls.append(images)
        return latent_of(images)

    def encoder(self, **identity):
        return encode.Encoder(self, BATCH, IDENTITY | identity)


def latent_of(images):
    """``(b, h / 2, w / 2, 8)``: sums of corners, which a flip changes."""
    corner = images[:, ::2, ::2].astype(np.float32)
    other = images[:, 1::2, 1::2].astype(np.float32)
    return np.concatenate([corner, other, corner[..., :2]], axis=-1)


def assert_latents(items, indices):
    images = latent_of(pictures().fields["image"])
    for index in indices:
        np.testing.assert_array_equal(items.read(index)["latent"], images[index])


# --- items ----------------------------------------------------------------------------


def test_items_are_the_latents_of_their_images_in_whole_batches():
    raw, stub = pictures(), Stub()
    items = encode.EncodedItems(raw, stub.encoder())
    assert len(items) == NUM and items.class_names == raw.class_names
    assert_latents(items, range(NUM))
    assert len(stub.calls) == 3  # 3 + 3 + 1: the last one filled up
    assert not stub.calls[-1][1:].any()
    found = items.read(5)
    assert found["label"] == 1 and "image" not in found


def test_reading_from_the_middle_makes_the_same_batches():
    stub = Stub()
    encode.EncodedItems(pictures(), stub.encoder()).read(4)
    np.testing.assert_array_equal(stub.calls[0], pictures().fields["image"][3:6])


def test_flips_are_encoded_beside_their_images():
    items = encode.EncodedItems(pictures(), Stub().encoder(), flips=True)
    assert len(items) == 2 * NUM and items.name(5) == "item 2, mirrored"
    image = pictures().fields["image"][2:3]
    np.testing.assert_array_equal(items.read(4)["latent"], latent_of(image)[0])
    mirrored = latent_of(image[:, :, ::-1])[0]
    np.testing.assert_array_equal(items.read(5)["latent"], mirrored)
    assert items.read(4)["label"] == items.read(5)["label"] == 0
    assert not np.array_equal(mirrored, items.read(4)["latent"][:, ::-1])


class Broken(ArrayItems):
    def read(self, index):
        if index == 1:
            raise ItemError("item 1 does not decode")
        fields = super().read(index)
        return {**fields, "image": fields["image"][:2]} if index == 5 else fields


def test_a_bad_image_is_an_error_of_its_own_item_only():
    items = encode.EncodedItems(Broken(**vars(pictures())), Stub().encoder())
    assert_latents(items, (0, 2, 3, 4, 6))
    with pytest.raises(ItemError, match="item 1 does not decode"):
        items.read(1)
    with pytest.raises(ItemError, match=r"item 5 has shape \(2, 6, 3\).*\(4, 6, 3\)"):
        items.read(5)


# --- datasets -------------------------------------------------------------------------


def encoded(root, encoder, **settings):
    settings = {"shard_items": 3, **settings}
    target = root / "latents/1.0.0"
    return encode.encode_dataset(pictures(), encoder, target, **settings)


def test_the_dataset_holds_latents_labels_and_the_encoder(tmp_path):
    folder = encoded(tmp_path, Stub().encoder(), dtype="float16")
    fields = pipeline.read_prepared(folder, "train").fields
    assert fields["latent"].dtype == np.float16
    expected = latent_of(pictures().fields["image"])
    np.testing.assert_array_equal(fields["latent"], expected)
    assert fields["label"].tolist() == [0, 1, 0, 1, 0, 1, 0]
    found = manifest.read(folder)
    assert found["encoder"] == IDENTITY
    assert found["field"] == "latent" and found["shape"] == [2, 3, 8]


def test_an_interrupted_encoding_goes_on_with_the_same_bytes(tmp_path):
    whole = encoded(tmp_path / "a", Stub().encoder())
    with pytest.raises(KeyboardInterrupt):
        encoded(tmp_path / "b", Stub(dies_at=2).encoder())
    assert not (tmp_path / "b/latents/1.0.0").exists()
    stub = Stub()
    folder = encoded(tmp_path / "b", stub.encoder())
    assert len(stub.calls) == 2  # the first batch to learn the shape, and the last
    assert contents(folder) == contents(whole)


def test_shards_are_whole_batches(tmp_path):
    folder = encoded(tmp_path, Stub().encoder(), shard_items=4)
    split = manifest.read(folder)["splits"]["train"]
    assert [shard["items"] for shard in split["shards"]] == [6, 1]


@pytest.mark.parametrize("split", ["train", "test"])
def test_another_encoder_does_not_add_to_a_dataset(split, tmp_path):
    encoded(tmp_path, Stub().encoder())
    with pytest.raises(ValueError, match=r"(?s)encoder.*\[0,1\].*\[-1,1\]"):
        encoded(tmp_path, Stub().encoder(pixel_range="[-1,1]"), split=split)


def test_shards_of_another_encoder_are_not_taken_over(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        encoded(tmp_path, Stub(dies_at=2).encoder())
    stub = Stub()
    encoded(tmp_path, stub.encoder(sha256="1" * 64))
    assert len(stub.calls) >= 3


def test_two_commands_at_once_store_the_same_bytes(tmp_path):
    """Three shards; both commands are in the middle of their first one at once."""
    settings = {"flips": True, "shard_items": 6, "process_count": 2}
    barrier = threading.Barrier(2)
    stubs = [Stub(barrier=barrier) for _ in range(2)]
    threads = [
        threading.Thread(
            target=encoded, args=given, kwargs=settings | {"process_index": k}
        )
        for k, given in enumerate((tmp_path, stub.encoder()) for stub in stubs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Both read the first batch for its shape; it is not encoded again. Four are left.
    assert sum(len(stub.calls) for stub in stubs) == 2 + 4
    assert os.listdir(tmp_path / "latents") == ["1.0.0"]
    alone = encoded(tmp_path / "alone", Stub().encoder(), **settings)
    assert contents(tmp_path / "latents/1.0.0") == contents(alone)


# --- with an autoencoder --------------------------------------------------------------


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A file of random weights: two pixels to a position."""
    module = autoencoder.AutoencoderKL(
        block_channels=(4, 4), num_blocks=1, num_groups=2
    )
    params = draw_small(module)
    folder = tmp_path_factory.mktemp("vae")
    (folder / "config.json").write_text('{"norm_num_groups": 2}')
    path = folder / "vae.safetensors"
    state_dict.write_state_dict(path, exchange.export_autoencoder(module, params))
    return path


@pytest.fixture(scope="module")
def moments_of(vae):
    """(two images, where 0 enters) -> mean and standard deviation, compiled once."""
    module, params = exchange.load_autoencoder(vae)
    run = quick_jit(lambda p, x: autoencoder.encode(module, p, x))

    def moments(images, low):
        x = low + (1 - low) * images.astype(np.float32) / 255
        return np.concatenate(run(params, x), axis=-1)

    return moments


@pytest.mark.parametrize(["pixel_range", "low"], [("pm1", -1.0), ("unit", 0.0)])
def test_pixels_enter_the_autoencoder_in_the_named_range(
    pixel_range, low, vae, moments_of
):
    encoder = latents_lib.make_encoder(vae, pixel_range, batch_size=2)
    assert encoder.identity["pixel_range"] == f"[{low:.0f},1]"
    assert encoder.identity["sha256"] and encoder.identity["name"] == "vae.safetensors"
    images = pictures().fields["image"][:2]
    found, expected = encoder.encode(images), moments_of(images, low)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert found.shape == (2, 2, 3, 8) and np.abs(found[..., :4]).max() > 0.1


def test_the_command_encodes_a_prepared_dataset(vae, moments_of, tmp_path):
    """Prepared images in, latents out, whose measured constants training can take."""
    prepare.prepare(pictures(2), tmp_path / "pictures" / "1.0.0")
    given = ["--dataset=pictures", f"--root={tmp_path}", "--out_name=latents"]
    given += [f"--vae={vae}", "--pixel_range=unit", "--batch_size=2", "--flips"]
    folder = tmp_path / "latents" / "1.0.0"
    assert scm("data", "encode", *given).stdout.strip() == str(folder)
    items = sources.open_items(folder)
    assert len(items) == 4 and items.read(3)["label"] == 1
    expected = moments_of(pictures(2).fields["image"][:, :, ::-1], 0)[1]
    found = items.read(3)["latent"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    measured = latents.find_whitening(folder, "measured")
    assert measured.pixel_range == "[0,1]"
