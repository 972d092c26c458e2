"""What the writers leave on disk, read back by other means."""

import contextlib
import json
import struct
import sys
from unittest import mock

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from scm_jax.runs.directory import media, writers

PIXELS = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2, 1) * 20


def rows(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = path.read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


@pytest.fixture
def fake_clu(monkeypatch):
    """Stands in for clu's writer: keeps every call."""
    module = mock.Mock()
    monkeypatch.setitem(sys.modules, "clu.metric_writers", module)
    return module.create_default_writer.return_value


class TestJsonl:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "run" / "metrics.jsonl"

    @pytest.fixture
    def writer(self, path):
        with contextlib.closing(writers.JsonlWriter(path)) as writer:
            yield writer

    def test_a_row_is_on_disk_as_soon_as_it_is_written(self, path, writer):
        writer.write_scalars(7, {"images": 896, "loss": jnp.float32(0.1)})
        (row,) = rows(path)
        assert row.pop("wall_time") > 1.7e9
        assert row == {"step": 7, "images": 896, "loss": 0.1}

    def test_nonfinite_values_are_null_and_named(self, path, writer):
        writer.write_scalars(1, {"loss": np.float32("nan"), "ok": 1.5})
        writer.write_arrays(3, {"bins/loss": jnp.array([1.0, jnp.nan, -jnp.inf])})
        scalars, arrays = rows(path)
        assert (scalars["loss"], scalars["nonfinite"]) == (None, ["loss"])
        assert scalars["ok"] == 1.5
        assert arrays["bins/loss"] == [1.0, None, None]

    def test_resume_appends_after_a_whole_line_and_marks_the_step(self, path):
        with contextlib.closing(writers.JsonlWriter(path)) as writer:
            writer.write_scalars(1, {"loss": 3.0})
        with path.open("a") as file:
            file.write('{"step": 2, "lo')  # killed while writing
        with contextlib.closing(writers.JsonlWriter(path, resume_step=1)) as writer:
            writer.write_scalars(2, {"loss": 2.0})
        found = rows(path)
        assert [row.get("step") for row in found] == [1, None, 2]
        assert found[1]["resume_step"] == 1

    def test_a_whole_row_without_its_line_end_is_kept(self, path):
        path.parent.mkdir()
        path.write_text('{"step": 1, "loss": 3.0}')
        with contextlib.closing(writers.JsonlWriter(path)) as writer:
            writer.write_scalars(2, {"loss": 2.0})
        assert [row["step"] for row in rows(path)] == [1, 2]

    @pytest.mark.parametrize("name", ["step", "wall_time", "nonfinite", "resume_step"])
    def test_a_metric_cannot_take_the_name_of_a_row_key(self, writer, name):
        with pytest.raises(ValueError, match=name):
            writer.write_scalars(1, {name: 1.0})

    def test_shapes_are_checked(self, path, writer):
        with pytest.raises(ValueError, match=r"'loss' has shape \(2,\).*write_arrays"):
            writer.write_scalars(1, {"loss": np.zeros(2)})
        with pytest.raises(ValueError, match="'x' has 5000 elements; at most 4096"):
            writer.write_arrays(1, {"x": np.zeros(5000)})
        assert rows(path) == []
        writer.close()  # and again as the fixture ends


class TestPng:
    def test_name_and_pixels(self, tmp_path):
        writers.PngWriter(tmp_path).write_images(30, {"samples/2 steps": PIXELS})
        (path,) = tmp_path.iterdir()
        assert path.name == "samples_2 steps_00000030.png"
        sheet = np.asarray(PIL.Image.open(path))
        # two columns of 8 x 8 tiles with a gap of 2: the third image is lower left
        np.testing.assert_array_equal(sheet[10:18:4, 0:8:4], PIXELS[2, :, :, 0])

    def test_what_is_no_picture_is_refused(self, tmp_path):
        two = np.zeros((1, 2, 2, 2), np.uint8)
        for pixels in (PIXELS.astype(np.float32), PIXELS[0], PIXELS[:0], two):
            with pytest.raises(ValueError, match="uint8 with one or three channels"):
                writers.PngWriter(tmp_path).write_images(0, {"x": pixels})


def events(directory):
    """The events of all files of a directory, without TensorFlow."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(directory.glob("events.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[12 + length + 4 :]
    return found


class TestTensorBoard:
    def test_scalars_lists_images_and_hparams(self, tmp_path):
        writer = writers.TensorBoardWriter(tmp_path)
        writer.write_scalars(5, {"loss": jnp.float32(0.25)})
        writer.write_arrays(5, {"bins/loss": np.array([1.0, 2.0])})
        writer.write_images(5, {"samples": PIXELS})
        writer.write_hparams({"net": {"width": 64}, "eval": [1, 2]})
        writer.close()
        values = {
            value.tag: (event.step, value)
            for event in events(tmp_path)
            for value in event.summary.value
        }
        scalars = {tag: (step, v.simple_value) for tag, (step, v) in values.items()}
        assert scalars["loss"] == (5, 0.25)
        assert scalars["bins/loss/01"] == (5, 2.0)
        assert values["samples"][1].image.height == 2
        assert "_hparams_/session_start_info" in values
        assert "tensorflow" not in sys.modules

    def test_resume_hides_what_came_after_the_restored_step(self, tmp_path):
        from tensorboardX.proto.event_pb2 import SessionLog

        writers.TensorBoardWriter(tmp_path, resume_step=10).close()
        starts = [e for e in events(tmp_path) if e.HasField("session_log")]
        assert [e.step for e in starts] == [11]
        assert starts[0].session_log.status == SessionLog.START


class TestClu:
    def test_without_tensorflow_the_error_names_the_extra(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "clu.metric_writers", None)
        with pytest.raises(ImportError, match=r"'clu'.*pip install 'scm_jax\[tf\]'"):
            writers.make_writer(["clu"], tmp_path)

    def test_calls_reach_clu(self, tmp_path, fake_clu):
        writer = writers.CluWriter(tmp_path)
        writer.write_scalars(3, {"loss": 1.0})
        writer.write_arrays(3, {"bins": [1.0, 2.0]})
        writer.write_hparams({"net": {"width": 64}})
        assert fake_clu.mock_calls == [
            mock.call.write_scalars(3, {"loss": 1.0}),
            mock.call.write_scalars(3, {"bins/00": 1.0, "bins/01": 2.0}),
            mock.call.write_hparams({"net.width": 64}),
        ]


class TestMakeWriter:
    def test_jsonl_and_png_are_always_written(self, tmp_path):
        writer = writers.make_writer((), tmp_path)
        writer.write_scalars(1, {"loss": 1.0})
        writer.write_images(1, {"samples": PIXELS})
        writer.close()
        assert (tmp_path / "metrics.jsonl").exists()
        assert (tmp_path / "samples" / "samples_00000001.png").exists()

    def test_unknown_name(self, tmp_path):
        match = r"log.writers = 'tensorbord' .*did you mean 'tensorboard'"
        with pytest.raises(ValueError, match=match):
            writers.make_writer(["tensorbord"], tmp_path)
        assert not list(tmp_path.iterdir())

    def test_every_writer_takes_every_call(self, tmp_path, fake_clu):
        assert len(writers.WRITERS) >= 4
        writer = writers.make_writer(writers.WRITERS, tmp_path, resume_step=4)
        assert len(writer.writers) == len(writers.WRITERS)
        writer.write_scalars(5, {"loss": 1.0, "images": 10})
        writer.write_arrays(5, {"bins/loss": [1.0, 2.0]})
        writer.write_images(5, {"samples": PIXELS})
        writer.write_texts(5, {"note": "text"})
        writer.write_hparams({"a": {"b": 1}, "c": None})
        writer.flush()
        writer.close()
        methods = [call[0] for call in fake_clu.mock_calls]
        assert methods.count("write_scalars") == 2
        assert {"write_images", "write_texts", "write_hparams"} <= set(methods)
        texts = [row for row in rows(tmp_path / "metrics.jsonl") if "note" in row]
        assert texts[0]["note"] == "text"


class TestImageGrid:
    def test_positions_scale_and_gap(self):
        image = media.image_grid(PIXELS, columns=3, scale=2)
        assert image.size == (3 * 4 + 2 * 2, 4)
        sheet = np.asarray(image)
        np.testing.assert_array_equal(sheet[::2, 0:4:2], PIXELS[0, :, :, 0])
        np.testing.assert_array_equal(sheet[1::2, 13:16:2], PIXELS[2, :, :, 0])

    def test_colour_and_default_columns(self):
        image = media.image_grid(np.zeros((5, 4, 6, 3), np.uint8), scale=1)
        assert (image.mode, image.size) == ("RGB", (3 * 6 + 2 * 2, 2 * 4 + 2))
        with pytest.raises(ValueError, match="scale=0"):
            media.image_grid(PIXELS, scale=0)
