"""Videos on disk as clips: timestamps, lengths and rates are checked, none replaced."""

import io
import json
import wave
from fractions import Fraction

import av
import jax
import numpy as np
import pytest

from scm_jax.config import base_config
from scm_jax.datasets import latents as datasets_latents
from scm_jax.datasets import make_dataset
from scm_jax.datasets.pixels import PIXEL_RANGES
from scm_jax.datasets.preparation import encode, inspection, prepare, verify
from scm_jax.datasets.preparation.readers import clip_items, sources
from scm_jax.datasets.preparation.readers.items import ItemError
from scm_jax.networks import autoencoder
from scm_jax.networks.external import video_autoencoder
from scm_jax.networks.video_autoencoder import VideoAutoencoder
from scm_jax.runs import latents, sample
from scm_jax.runs.setup import experiment
from tests.networks.reference import draw_small, quick_jit
from tests.preparation.raw_data import write_folder, write_tar

SIDE = 16


def levels(number, frames):
    """Grey levels that tell video and frame: ``(t,)``."""
    return 40 * number + 4 * np.arange(frames) + 16


def video(number, frames, rate=8, times=None, noise=False):
    """A file without loss; ``times`` in units of ``1 / rate`` replace 0, 1, 2, ..."""
    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("libx264rgb", Fraction(rate))
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.options = "rgb24", {"qp": "0", "bf": "2"}
        for i, grey in enumerate(levels(number, frames)):
            pixels = np.full((SIDE, SIDE, 3), grey, np.uint8)
            if noise:
                pixels += rng.integers(0, 64, pixels.shape, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts = i if times is None else times[i]
            frame.time_base = Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def open_clips(path, **options):
    return sources.open_items(path, **{"frames": 3, "channels": 1, **options})


def assert_clip(items, index, number, first, stride=1):
    clip = items.read(index)["clip"]
    assert clip.shape == (3, SIDE, SIDE, 1) and clip.dtype == np.uint8
    grey = levels(number, 20)[first::stride][:3, None, None, None]
    np.testing.assert_array_equal(clip, np.broadcast_to(grey, clip.shape))


def test_a_video_gives_all_clips_that_fit_with_class_and_caption(tmp_path):
    lengths = {"cat/a": (0, 7), "dog/b": (1, 5), "dog/c": (2, 2)}
    files = {f"{name}.mp4": video(*length) for name, length in lengths.items()}
    files |= {"cat/a.txt": b"a cat", "dog/b.txt": b"a dog\none dog", "dog/c.txt": b"c"}
    items = open_clips(write_folder(tmp_path / "videos", files))
    assert len(items) == 3 and items.class_names == ("cat", "dog")
    assert items.origin["frame_rate"] == 8.0
    assert "1 of them are shorter than a clip of 3 frames" in " ".join(items.notes)
    # Not in order: the file is decoded again.
    for index, number, first in ((1, 0, 3), (0, 0, 0), (2, 1, 0)):
        assert_clip(items, index, number, first)
    assert items.read(2)["captions"] == ("a dog", "one dog")
    assert [int(items.read(i)["label"]) for i in range(3)] == [0, 0, 1]
    strided = open_clips(tmp_path / "videos", stride=2)
    assert len(strided) == 2 and strided.origin["frame_rate"] == 4.0
    assert_clip(strided, 0, 0, 0, stride=2)
    assert strided.name(1).endswith("dog/b.mp4, frame 0")


def test_shards_and_lists_hold_videos_too(tmp_path):
    files = {"0.mp4": video(0, 3), "0.txt": b"zero", "1.mp4": video(1, 3)}
    write_tar(tmp_path / "shard-0.tar", files | {"1.txt": b"one"})
    shards = open_clips(tmp_path / "shard-0.tar", kind="webdataset")
    table = b"video,caption\n0.mp4,zero\n1.mp4,one\n"
    del files["0.txt"]
    folder = write_folder(tmp_path / "flat", files | {"metadata.csv": table})
    for items in (shards, open_clips(folder)):
        assert [items.read(i)["captions"] for i in range(2)] == [("zero",), ("one",)]
        assert_clip(items, 1, 1, 0)


def test_other_rates_are_refused_or_brought_to_one(tmp_path):
    files = {"a.mp4": video(0, 8, rate=8), "b.mp4": video(2, 16, rate=16)}
    folder = write_folder(tmp_path / "mixed", files)
    message = r"b.mp4: has 16 frames per second, and .*a.mp4 has 8; --frame_rate=RATE"
    with pytest.raises(ItemError, match=message):
        open_clips(folder)
    items = open_clips(folder, frame_rate=4.0)
    assert len(items) == 2 and items.origin["frame_rate"] == 4.0
    assert_clip(items, 0, 0, 0, stride=2)
    assert_clip(items, 1, 2, 0, stride=4)


def test_uneven_times_are_refused_or_made_even(tmp_path):
    folder = write_folder(
        tmp_path, {"c.mp4": video(1, 8, times=[0, 1, 2, 3, 5, 7, 9, 11])}
    )
    with pytest.raises(ItemError, match=r"c.mp4: its frames are not evenly spaced"):
        open_clips(folder)
    clip = open_clips(folder, frame_rate=4.0, frames=6).read(0)["clip"]
    # Times 0, 2, 4, ... eighths of a second; of two equally near frames the first.
    assert (clip[:, 0, 0, 0] - 56).tolist() == [0, 8, 12, 16, 20, 24]


def test_what_is_no_whole_video_is_named(tmp_path):
    whole, sound = video(0, 9), io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(800))
    bad = {
        "is damaged or cut off": whole[: len(whole) // 2],
        "has no video stream": sound.getvalue(),
    }
    for message, content in bad.items():
        folder = write_folder(tmp_path / message.replace(" ", "_"), {"x.mp4": content})
        with pytest.raises(ItemError, match=rf"x.mp4: .*{message}"):
            open_clips(folder)
    folder = write_folder(tmp_path / "whole", {"x.mp4": whole})
    with pytest.raises(ValueError, match=r"none of 1 videos has the 12 frames of a cl"):
        open_clips(folder, frames=12)
    with pytest.raises(ValueError, match=r"holds no videos; videos end in .mp4"):
        open_clips(write_folder(tmp_path / "images", {"a.png": b""}))
    np.savez(tmp_path / "x.npz", np.zeros(3))
    with pytest.raises(ValueError, match=r"frames = 3.*has no videos"):
        open_clips(tmp_path / "x.npz", kind="npz")
    with pytest.raises(ValueError, match=r"stride = 0"):
        open_clips(folder, stride=0)


def test_frames_that_do_not_decode_are_an_error(tmp_path):
    """All packets are there, and one of them is damaged."""
    content = video(0, 40, noise=True)
    with av.open(io.BytesIO(content)) as file:
        packets = [(p.pos, p.size) for p in file.demux(video=0) if p.size]
    start, size = packets[30]
    whole = bytearray(content)
    whole[start + size // 2 : start + size] = bytes(size - size // 2)
    items = open_clips(write_folder(tmp_path, {"x.mp4": bytes(whole)}))
    assert items.read(0)["clip"].std() > 10
    with pytest.raises(ItemError, match=r"x.mp4: .*damaged or cut off"):
        for index in range(len(items)):
            items.read(index)


def test_prepared_clips_are_trained_on(tmp_path):
    files = {f"{n}.mp4": video(n, 6) for n in range(3)}
    items = open_clips(write_folder(tmp_path / "raw", files))
    target = tmp_path / "root" / "mine" / "1.0.0"
    prepare.prepare(items, target, recipe="box", size=8, options={"frames": 3})
    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest["field"] == "clip" and manifest["shape"] == [3, 8, 8, 1]
    assert manifest["frame_rate"] == 8.0
    assert manifest["splits"]["train"]["recipe"]["options"] == {"frames": 3}
    expected = np.mean([levels(n, 6) for n in range(3)]) / 127.5 - 1
    assert manifest["splits"]["train"]["mean"][0] == pytest.approx(expected)
    data = make_dataset("images", prepared="mine", root=tmp_path / "root", flip=True)
    assert data.info.sample_shape == (3, 8, 8, 1) and data.info.frame_rate == 8.0
    batch = data.to_batch(next(data.iterator(6, seed=0)))
    shown = np.sort(data.info.to_pixels(np.asarray(batch.x))[:, 0, 0, 0, 0])
    assert shown.tolist() == sorted(n * 40 + 16 + f for n in range(3) for f in (0, 12))
    page = inspection.inspect(target, "train", tmp_path / "page.png", num=4)
    assert page["shape"] == [3, 8, 8, 1] and page["count"] == 6
    assert (tmp_path / "page.png").stat().st_size > 1000
    assert not list(verify.verify(target))
    other = open_clips(tmp_path / "raw", stride=2)
    with pytest.raises(ValueError, match=r"frame_rate = 8.0; the new split has 4.0"):
        prepare.prepare(other, target, split="test", recipe="box", size=8)


def test_encoded_clips_are_decoded_inside_the_sampler(tmp_path):
    """Three frames are two positions of a latent, at the clips' rate."""
    root = tmp_path / "root"
    files = {f"{n}.mp4": video(n, 6, noise=True) for n in range(2)}
    items = open_clips(write_folder(tmp_path / "raw", files), channels=3)
    prepare.prepare(items, root / "mine/1.0.0", recipe="box", size=8)
    sizes = {"block_channels": (4, 4, 6), "time": (False, True), "num_blocks": 1}
    module = VideoAutoencoder(**sizes, latent_channels=3)
    params = draw_small(module)
    weights = tmp_path / "tiny.npz"
    np.savez(weights, **video_autoencoder.export_autoencoder(module, params))
    clips = sources.open_items(root / "mine/1.0.0", kind="tfds", split="train")
    encoder = latents.make_encoder(weights, batch_size=2)
    encode.encode_dataset(clips, encoder, root / "mine_latents/1.0.0")
    data = make_dataset("latents", prepared="mine_latents", root=root)
    assert data.info.sample_shape == (2, 2, 2, 3) and data.info.frame_rate == 8.0
    assert data.arrays()[0].shape == (4, 2, 2, 2, 3)
    config = base_config("mlp", "diffusion", "latents")
    config.dataset.update({"prepared": "mine_latents", "root": str(root)})
    config.network.update({"width": 8, "depth": 1})
    config.sampling.update({"decoder": str(weights), "steps": 1, "batch_size": 2})
    config.sampling.sampler = "consistency"
    built = experiment.build(config)
    generate = sample.Generator(built, jax.jit(built.init_params)()["net"])
    x, pixels = generate(3, pixels=True)
    assert x.shape == (3, 2, 2, 2, 3) and pixels.shape == (3, 3, 8, 8, 3)
    raw = datasets_latents.unwhiten(x, data.info.whitening())
    decoded = quick_jit(lambda z: autoencoder.decode(module, params, z))(raw)
    expected = PIXEL_RANGES["pm1"].to_uint8(decoded)
    assert np.mean(pixels != np.asarray(expected)) < 0.02 and pixels.std() > 5


def test_nearest_frames_keep_the_length_in_time():
    times = np.arange(30) / 30 + 5.0
    assert len(clip_items.nearest_frames(times, 10.0)) == 10
    assert len(clip_items.nearest_frames(times, 60.0)) == 60
