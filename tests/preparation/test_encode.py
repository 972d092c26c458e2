"""Images to latents: which item is what, interruptions, and the manifest."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from scm_jax.datasets import latents, pipeline
from scm_jax.datasets.preparation import encode, prepare
from scm_jax.datasets.preparation.readers import sources
from scm_jax.datasets.preparation.readers.items import ArrayItems, ItemError
from scm_jax.files import state_dict
from scm_jax.networks import autoencoder
from scm_jax.networks.external import autoencoder as exchange
from scm_jax.runs import latents as latents_lib
from tests.commands.in_process import scm
from tests.hang import HANG

ROOT = pathlib.Path(__file__).resolve().parents[2]
NUM, BATCH = 7, 3
IDENTITY = {"pixel_range": "[0,1]", "name": "stub", "sha256": "0" * 64}


def pictures(num=NUM):
    rng = np.random.default_rng(0)
    return ArrayItems(
        {
            "image": rng.integers(0, 256, (num, 4, 6, 3), np.uint8),
            "label": np.arange(num) % 2,
        },
        class_names=("a", "b"),
        origin={"kind": "memory", "path": "pictures"},
    )


class Stub:
    """Latents that tell which image, and which way round, they are of."""

    def __init__(self, dies_at=None):
        self.calls, self.dies_at = [], dies_at

    def __call__(self, images):
        assert images.shape == (BATCH, 4, 6, 3) and images.dtype == np.uint8
        if len(self.calls) == self.dies_at:
            raise KeyboardInterrupt
        self.calls.append(images)
        return latent_of(images)

    @property
    def encoder(self):
        return encode.Encoder(self, BATCH, IDENTITY)


def latent_of(images):
    """``(b, h / 2, w / 2, 8)``: sums of corners, which a flip changes."""
    corner = images[:, ::2, ::2].astype(np.float32)
    other = images[:, 1::2, 1::2].astype(np.float32)
    return np.concatenate([corner, other, corner[..., :2]], axis=-1)


# --- items ----------------------------------------------------------------------------


def test_items_are_the_latents_of_their_images_in_whole_batches():
    raw, stub = pictures(), Stub()
    items = encode.EncodedItems(raw, stub.encoder)
    assert len(items) == NUM and items.class_names == raw.class_names
    for index in range(NUM):
        found = items.read(index)
        image = raw.fields["image"][index : index + 1]
        np.testing.assert_array_equal(found["latent"], latent_of(image)[0])
        assert found["label"] == index % 2 and "image" not in found
    assert len(stub.calls) == 3  # 3 + 3 + 1: the last one filled up
    assert not stub.calls[-1][1:].any()


def test_reading_from_the_middle_makes_the_same_batches():
    stub = Stub()
    encode.EncodedItems(pictures(), stub.encoder).read(4)
    np.testing.assert_array_equal(stub.calls[0], pictures().fields["image"][3:6])


def test_flips_are_encoded_beside_their_images():
    raw = pictures()
    items = encode.EncodedItems(raw, Stub().encoder, flips=True)
    assert len(items) == 2 * NUM and items.name(5) == "item 2, mirrored"
    image = raw.fields["image"][2:3]
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
    raw = pictures()
    broken = Broken(raw.fields, raw.class_names, raw.origin)
    items = encode.EncodedItems(broken, Stub().encoder)
    for index in (0, 2, 3, 4, 6):
        image = raw.fields["image"][index : index + 1]
        np.testing.assert_array_equal(items.read(index)["latent"], latent_of(image)[0])
    with pytest.raises(ItemError, match="item 1 does not decode"):
        items.read(1)
    with pytest.raises(ItemError, match=r"item 5 has shape \(2, 6, 3\).*\(4, 6, 3\)"):
        items.read(5)


# --- datasets -------------------------------------------------------------------------


def encoded(target, stub, **settings):
    settings = {"shard_items": 3, "quiet": True, **settings}
    return encode.encode_dataset(pictures(), stub.encoder, target, **settings)


def stored(folder, split="train"):
    return {f.name: f.read_bytes() for f in sorted(folder.glob(f"*-{split}.*"))}


def test_the_dataset_holds_latents_labels_and_the_encoder(tmp_path):
    folder = encoded(tmp_path / "small" / "1.0.0", Stub(), dtype="float16")
    source = pipeline.read_prepared(folder, "train")
    fields = source.gather(np.arange(NUM))
    assert fields["latent"].dtype == np.float16
    np.testing.assert_array_equal(
        fields["latent"], latent_of(pictures().fields["image"])
    )
    assert fields["label"].tolist() == [0, 1, 0, 1, 0, 1, 0]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["encoder"] == IDENTITY
    assert manifest["field"] == "latent" and manifest["shape"] == [2, 3, 8]


def test_an_interrupted_encoding_goes_on_with_the_same_bytes(tmp_path):
    whole = encoded(tmp_path / "a" / "latents" / "1.0.0", Stub())
    target = tmp_path / "b" / "latents" / "1.0.0"
    with pytest.raises(KeyboardInterrupt):
        encoded(target, Stub(dies_at=2))
    assert not target.exists()
    stub = Stub()
    assert encoded(target, stub) == target
    assert len(stub.calls) == 2  # the first batch to learn the shape, and the last
    assert stored(target) == stored(whole) and len(stored(whole)) == 3


def test_shards_are_whole_batches(tmp_path):
    folder = encoded(tmp_path / "latents" / "1.0.0", Stub(), shard_items=4)
    lengths = json.loads((folder / "manifest.json").read_text())["splits"]["train"]
    assert [shard["items"] for shard in lengths["shards"]] == [6, 1]


@pytest.mark.parametrize("split", ["train", "test"])
def test_another_encoder_does_not_add_to_a_dataset(split, tmp_path):
    target = tmp_path / "latents" / "1.0.0"
    encoded(target, Stub())
    stub = Stub()
    other = encode.Encoder(stub, BATCH, {**IDENTITY, "pixel_range": "[-1,1]"})
    with pytest.raises(ValueError, match=r"(?s)encoder.*\[0,1\].*\[-1,1\]"):
        encode.encode_dataset(
            pictures(), other, target, split=split, quiet=True, shard_items=3
        )


def test_shards_of_another_encoder_are_not_taken_over(tmp_path):
    target = tmp_path / "latents" / "1.0.0"
    with pytest.raises(KeyboardInterrupt):
        encoded(target, Stub(dies_at=2))
    stub = Stub()
    other = encode.Encoder(stub, BATCH, {**IDENTITY, "sha256": "1" * 64})
    encode.encode_dataset(pictures(), other, target, quiet=True, shard_items=3)
    assert len(stub.calls) >= 3


# --- with an autoencoder --------------------------------------------------------------


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A file of random weights: two pixels to a position."""
    module = autoencoder.AutoencoderKL(
        block_channels=(4, 4), num_blocks=1, num_groups=2
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: (0.3 * rng.standard_normal(a.shape)).astype(np.float32),
        autoencoder.abstract_params(module),
    )
    folder = tmp_path_factory.mktemp("vae")
    (folder / "config.json").write_text('{"norm_num_groups": 2}')
    path = folder / "vae.safetensors"
    state_dict.write_state_dict(path, exchange.export_autoencoder(module, params))
    return path


@pytest.mark.parametrize(["pixel_range", "low"], [("pm1", -1.0), ("unit", 0.0)])
def test_pixels_enter_the_autoencoder_in_the_named_range(pixel_range, low, vae):
    encoder = latents_lib.make_encoder(vae, pixel_range, batch_size=2)
    assert encoder.identity["pixel_range"] == f"[{low:.0f},1]"
    assert encoder.identity["sha256"] and encoder.identity["name"] == "vae.safetensors"
    images = pictures().fields["image"][:2]
    found = encoder.encode(images)
    module, params = exchange.load_autoencoder(vae)
    x = low + (1 - low) * images.astype(np.float32) / 255
    run = jax.jit(
        lambda p, x: autoencoder.encode(module, p, x),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    expected = np.concatenate(run(params, x), axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert found.shape == (2, 2, 3, 8) and np.abs(found[..., :4]).max() > 0.1


def test_the_command_encodes_a_prepared_dataset(vae, tmp_path):
    """Prepared images in, latents out, whose measured constants training can take."""
    prepare.prepare(pictures(4), tmp_path / "pictures" / "1.0.0", quiet=True)
    arguments = {
        "dataset": "pictures",
        "root": tmp_path,
        "out_name": "latents",
        "vae": vae,
        "pixel_range": "unit",
        "batch_size": 4,
    }
    given = [f"--{name}={value}" for name, value in arguments.items()]
    done = subprocess.run(
        [sys.executable, "-m", "scm_jax", "data", "encode", "--flips", *given],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "latents" / "1.0.0"
    assert done.stdout.strip() == str(folder)
    items = sources.open_items(folder)
    assert len(items) == 8 and items.read(3)["label"] == 1
    encoder = latents_lib.make_encoder(vae, "unit", batch_size=4)
    expected = encode.EncodedItems(pictures(4), encoder, flips=True).read(3)
    np.testing.assert_allclose(items.read(3)["latent"], expected["latent"], rtol=1e-5)
    measured = latents.find_whitening(folder, "measured")
    assert measured.pixel_range == "[0,1]"


def contents(folder):
    """File -> bytes; the manifest without when and with what it was made."""
    found = {file.name: file.read_bytes() for file in folder.iterdir()}
    manifest = json.loads(found["manifest.json"])
    for split in manifest["splits"].values():
        del split["made"]
    return found | {"manifest.json": json.dumps(manifest)}


def test_two_commands_at_once_store_the_same_bytes(vae, tmp_path):
    """Each has a shard in its hands at the same time; see ``encode_program``."""
    folder, log = tmp_path / "pictures" / "1.0.0", tmp_path / "log"
    log.mkdir()
    prepare.prepare(pictures(), folder, quiet=True)
    common = [f"--dataset={folder}", f"--vae={vae}", "--batch_size=2", "--flips"]
    common += ["--out_name=latents", "--shard_items=4"]  # 14 items
    program = [sys.executable, "-m", "tests.preparation.encode_program", str(log)]
    program += [*common, f"--root={tmp_path / 'two'}", "--num_processes=2"]
    both = [
        subprocess.Popen(
            [*program, f"--process_id={k}"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for k in range(2)
    ]
    scm("data", "encode", *common, f"--root={tmp_path / 'one'}")
    target = tmp_path / "two" / "latents" / "1.0.0"
    for process in both:
        said = process.communicate(timeout=HANG)[0]
        assert (process.returncode, said.strip()) == (0, str(target))
    wrote = sorted(file.name for file in log.glob("wrote-*"))
    assert wrote == ["wrote-0-0", "wrote-1-0", "wrote-2-1", "wrote-3-0"]
    assert contents(target) == contents(tmp_path / "one" / "latents" / "1.0.0")
    assert os.listdir(target.parent) == ["1.0.0"]
