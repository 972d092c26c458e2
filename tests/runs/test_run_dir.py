"""Whose directory it is, what is written there, and how a run is read back."""

import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from scm_jax.runs.directory import layout, reading, run_configs
from scm_jax.runs.directory.writers import make_writer

CONFIG = {
    "name": "digits",
    "network": {"name": "dit", "width": 64},
    "train": {"batch_size": 128, "betas": (0.9, 0.99)},
    "log": {"every_images": 1280},
}


def changed(**sections):
    """CONFIG with some keys of its sections replaced."""
    config = {k: dict(v) if isinstance(v, dict) else v for k, v in CONFIG.items()}
    for section, values in sections.items():
        config[section].update(values)
    return config


@pytest.fixture
def run_dir(tmp_path):
    directory = layout.RunDir(tmp_path / "digits")
    directory.write_config(CONFIG)
    return directory


class TestWriteConfig:
    def test_resume_with_the_same_config_changes_nothing(self, run_dir):
        before = run_dir.config_path.stat().st_mtime_ns
        run_dir.write_config(json.loads(json.dumps(CONFIG)))
        assert run_dir.config_path.stat().st_mtime_ns == before
        assert run_dir.read_config()["train"]["betas"] == [0.9, 0.99]

    def test_another_config_is_refused_with_both_values(self, run_dir):
        other = changed(network={"width": 96}, train={"betas": (0.9, 0.999)})
        other["network"]["depth"] = 3
        with pytest.raises(ValueError) as error:
            run_dir.write_config(other)
        message = str(error.value)
        assert "network.width: 64 there, 96 here" in message
        assert "network.depth: (absent) there, 3 here" in message
        assert "train.betas: [0.9, 0.99] there, [0.9, 0.999] here" in message
        assert "batch_size" not in message
        assert run_dir.read_config()["network"]["width"] == 64

    def test_a_missing_key_is_a_difference(self, run_dir):
        other = changed()
        del other["train"]["betas"]
        match = r"train.betas: \[0.9, 0.99\] there, \(absent\) here"
        with pytest.raises(ValueError, match=match):
            run_dir.write_config(other)

    def test_logging_may_change_on_resume(self, run_dir):
        run_dir.write_config(changed(log={"every_images": 10}))
        assert run_dir.read_config()["log"]["every_images"] == 10

    def test_checkpoints_without_a_config_are_nobodys(self, tmp_path):
        (tmp_path / "checkpoints" / "40").mkdir(parents=True)
        with pytest.raises(ValueError, match="checkpoints but no config"):
            layout.RunDir(tmp_path).write_config(CONFIG)

    def test_a_broken_config_file_is_named(self, run_dir):
        run_dir.config_path.write_text('{"name"')
        with pytest.raises(ValueError, match="is not JSON"):
            run_dir.write_config(CONFIG)

    def test_numpy_scalars_never_reach_the_file(self, tmp_path):
        with pytest.raises(ValueError, match=r"config train\.lr"):
            layout.RunDir(tmp_path / "x").write_config({"train": {"lr": np.float32(1)}})
        assert not (tmp_path / "x").exists()


class TestConfigHash:
    def test_golden(self):
        # changing this value orphans every run directory that a sweep made before
        assert run_configs.config_hash(CONFIG) == "32fc879b54"

    def test_only_keys_that_change_results_count(self):
        same = changed(log={"every_images": 1}, train={"betas": [0.9, 0.99]})
        same["name"] = "other"
        assert run_configs.config_hash(same) == run_configs.config_hash(CONFIG)
        other = changed(train={"batch_size": 128.0})
        assert run_configs.config_hash(other) != run_configs.config_hash(CONFIG)


class TestLoadRun:
    def test_no_run_there(self, run_dir):
        with pytest.raises(FileNotFoundError, match="there is no such directory"):
            reading.load_run(run_dir.path / "none")
        match = r"holds no config.json; runs below it: .*digits"
        with pytest.raises(FileNotFoundError, match=match):
            reading.load_run(run_dir.path.parent)

    def test_a_new_run_is_empty(self, run_dir):
        run = reading.load_run(run_dir.path)
        assert (run.name, run.state, run.summary) == ("digits", "new", {})
        assert len(run.metrics) == len(run.results) == 0
        assert run.config.network.width == 64
        assert run.config.to_dict()["train"]["betas"] == [0.9, 0.99]

    def test_metrics_after_a_kill_and_a_resume(self, run_dir):
        writer = make_writer((), run_dir.path)
        for step in (1, 2, 3):
            writer.write_scalars(step, {"images": 10 * step, "loss": 1.0 / step})
        writer.close()
        with run_dir.metrics_path.open("a") as file:
            file.write('{"step": 4, "im')
        writer = make_writer((), run_dir.path, resume_step=2)
        writer.write_scalars(3, {"images": 30, "loss": float("nan")})
        writer.write_arrays(3, {"bins/loss": [1.0, float("nan")]})
        run = reading.load_run(run_dir.path)
        metrics = run.metrics
        assert list(metrics["step"]) == [1, 2, 3]
        assert list(metrics["images"]) == [10, 20, 30]
        np.testing.assert_array_equal(metrics["loss"], [1.0, 0.5, np.nan])
        np.testing.assert_array_equal(metrics["bins/loss"][2], [1.0, np.nan])
        assert run.state == "started"
        writer.write_scalars(4, {"loss": 0.25})
        assert len(run.metrics) == 4  # a live run is read afresh
        writer.close()

    def test_results_and_summary(self, run_dir):
        run_dir.append_result({"steps": 1, "frechet_distance": np.float32(0.5)})
        with run_dir.results_path.open("a") as file:
            file.write('{"steps": 2')
        run_dir.append_result({"steps": 2, "frechet_distance": float("nan")})
        run = reading.load_run(run_dir.path)
        assert list(run.results["steps"]) == [1, 2]
        np.testing.assert_array_equal(run.results["frechet_distance"], [0.5, np.nan])
        run_dir.write_summary({"parameters": 10, "final": {"loss": np.float32(0.5)}})
        assert run.summary == {"parameters": 10, "final": {"loss": 0.5}}
        assert run.state == "done"

    def test_a_stop_on_nan_shows_in_the_state(self, run_dir):
        run_dir.nonfinite_dir.mkdir()
        (run_dir.nonfinite_dir / "batch.npz").touch()
        assert reading.load_run(run_dir.path).state == "nonfinite"


class TestSample:
    @pytest.fixture
    def asked(self):
        return []

    @pytest.fixture
    def run(self, run_dir, asked):
        def make_sampler(run):
            assert run.config.network.width == 64
            asked.append("made")

            def sample(num, **options):
                asked.append((num, options))
                x = np.full((num, 2, 2, 1), 0.5, np.float32)
                pixels = np.full((num, 2, 2, 1), 200, np.uint8)
                texts = ("a star",) * num if options["prompt"] else ()
                return reading.Samples(x, pixels, texts, {"seed": options["seed"]})

            return sample

        return reading.load_run(run_dir.path, make_sampler)

    def test_arguments_reach_one_sampler(self, run, asked):
        samples = run.sample(3)
        run.sample(2, steps=4, seed=7, label=5, ema="0.05")
        nothing = dict.fromkeys(("label", "ema", "prompt", "guidance"))
        assert asked == [
            "made",
            (3, {"steps": 2, "seed": 0, **nothing}),
            (2, {"steps": 4, "seed": 7, **nothing, "label": 5, "ema": "0.05"}),
        ]
        assert len(samples) == 3
        assert samples.x.dtype == np.float32
        assert samples.pixels.shape == (3, 2, 2, 1)

    def test_shows_and_saves_itself(self, run, tmp_path):
        samples = run.sample(3)
        samples.save(tmp_path / "deep" / "grid.png", columns=3)
        image = PIL.Image.open(tmp_path / "deep" / "grid.png")
        assert image.size == samples.grid(3).size
        assert np.asarray(image)[0, 0] == 200
        samples.save(tmp_path / "x.npy")
        np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), samples.x)
        assert samples._repr_png_()[:4] == b"\x89PNG"
        assert 'src="data:image/png;base64,' in samples._repr_html_()

    def test_prompts_stand_below_and_in_a_line_each(self, run, tmp_path):
        samples = run.sample(2, prompt="a star", seed=3)
        samples.save(tmp_path / "grid.png")
        image = np.asarray(PIL.Image.open(tmp_path / "grid.png"))
        assert (image[:128, :128] == 200).all() and (image[:128, 128:136] == 255).all()
        assert (image[136:, :128] < 100).any(), "no text"
        text = (tmp_path / "grid.jsonl").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        one = {"prompt": "a star", "seed": 3}
        assert rows == [{"sample": 0, **one}, {"sample": 1, **one}]

    def test_bad_requests(self, run, run_dir, tmp_path):
        with pytest.raises(ValueError, match="num=0"):
            run.sample(0)
        with pytest.raises(ValueError, match=r"legal are \.png, \.npy"):
            run.sample(1).save(tmp_path / "grid.jpg")
        with pytest.raises(ValueError, match=r"scm_jax\.load_run"):
            reading.load_run(run_dir.path).sample(1)

    def test_vectors_have_numbers_instead_of_pictures(self, tmp_path):
        samples = reading.Samples(np.array([[1.0], [3.0]], np.float32))
        assert samples._repr_png_() is None
        assert "mean 2, standard deviation 1" in samples._repr_html_()
        with pytest.raises(ValueError, match="vectors"):
            samples.grid()


def test_notebook_view_escapes_and_shows_the_last_metrics(tmp_path):
    directory = layout.RunDir(tmp_path / "a<b>")
    directory.write_config({**CONFIG, "note": "<script>"})
    directory.write_summary({"parameters": 235_000})
    writer = make_writer((), directory.path)
    writer.write_scalars(1, {"images": 10, "loss": 0.125})
    writer.write_scalars(2, {"images": 20, "eval/frechet_distance": 0.5})
    writer.close()
    page = reading.load_run(directory.path)._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "a&lt;b&gt;" in page
    for shown in ("235,000", "done", "0.125", "0.5", "network.width"):
        assert shown in page


def test_environment():
    environment = layout.environment()
    assert environment["versions"]["jax"]
    assert environment["device_count"] >= 1
    assert json.loads(json.dumps(environment)) == environment


def test_reading_runs_imports_nothing_heavy():
    code = (
        "import sys, scm_jax.cost.counts\n"
        "from scm_jax.runs.directory import layout, report, writers\n"
        "heavy = {'tensorflow', 'torch', 'tensorflow_datasets', 'pandas', 'matplotlib',"
        " 'tensorboardX', 'clu', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
