"""A run knows its data, and notices when they are others."""

import json
import logging
import shutil

import pytest

from scm_jax import config as config_lib
from scm_jax.datasets import identity, make_dataset
from scm_jax.runs import evaluate, reference_stats, train, training_data
from scm_jax.runs.directory import reading
from tests.preparation import made_items
from tests.preparation.made_items import arrays


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """One dataset by name: 23 images, a copy of them elsewhere, and 39 others."""
    root = tmp_path_factory.mktemp("prepared")
    made_items.run(arrays(), root / "first")
    shutil.copytree(root / "first", root / "copy")
    made_items.run(arrays(39, seed=1), root / "second")
    return root


def images(root, **options):
    return make_dataset("images", root=root, prepared="tiny", **options)


def make_config(root, **settings):
    c = config_lib.base_config("mlp", dataset="images")
    c.dataset.prepared, c.dataset.root = "tiny", str(root)
    c.network.width, c.network.depth = 8, 1
    c.train.batch_size, c.train.duration_images = 8, 16
    c.log.writers = ("jsonl",)
    c.eval.evaluators, c.eval.steps, c.eval.num_seeds = ("raw_samples",), (1,), 1
    c.eval.num_samples = c.sampling.batch_size = 16
    for key, value in settings.items():
        section, key = key.split("__")
        c[section][key] = value
    return c


class TestIdentity:
    def test_count_and_the_hashes_of_the_manifest(self, roots):
        found = identity.of_dataset(images(roots / "first"))
        manifest = json.loads(
            (made_items.target(roots / "first") / "manifest.json").read_text()
        )["splits"]["train"]
        assert (found.name, found.split, found.count) == ("tiny", "train", 23)
        assert list(found.shards) == [s["sha256"] for s in manifest["shards"]]
        assert str(found) == f"tiny, 23 items, sha256 {found.sha256[:12]}"

    def test_content_tells_them_apart_and_no_path(self, roots):
        first, copy, second = (
            identity.of_dataset(images(roots / name))
            for name in ("first", "copy", "second")
        )
        assert first.same_data(copy) and not first.same_data(second)
        assert first == identity.of_dataset(images(roots / "first", flip=True))
        options = {"root": roots / "first", "prepared": "tiny"}
        sliced = make_dataset("images", "train[:9]", **options)
        assert first == identity.of_dataset(sliced)

    @pytest.mark.parametrize("lost", ["manifest", "size"])
    def test_what_no_manifest_vouches_for_is_read(self, roots, tmp_path, lost):
        shutil.copytree(roots / "first", tmp_path / "data")
        dataset = images(tmp_path / "data")
        path = made_items.target(tmp_path / "data") / "manifest.json"
        manifest = json.loads(path.read_text())
        shard = manifest["splits"]["train"]["shards"][0]
        if lost == "size":
            shard["bytes"], shard["sha256"] = shard["bytes"] + 1, "of other bytes"
            path.write_text(json.dumps(manifest))
        else:
            path.unlink()
        expected = identity.of_dataset(images(roots / "first"))
        assert identity.of_dataset(dataset).same_data(expected)

    def test_data_that_tfds_made_have_one_and_drawn_data_have_none(self, tmp_path):
        digits = make_dataset("digits", root=tmp_path, prepare=True)
        assert identity.of_dataset(digits).count == 1797
        for name in ("mixture", "gaussian", "noise_images", "shapes"):
            assert identity.of_dataset(make_dataset(name)) is None


class TestCheck:
    def begin(self, root, run, step=None, **settings):
        config = make_config(root, **settings)
        entries = training_data.check(config, run, images(root), step)
        run.mkdir(exist_ok=True)
        training_data.write(run, entries)
        return training_data.read(run)

    def test_the_same_data_elsewhere_go_on(self, roots, tmp_path):
        run = tmp_path / "run"
        assert [step for step, _ in self.begin(roots / "first", run)] == [0]
        assert [step for step, _ in self.begin(roots / "copy", run, 2)] == [0]

    def test_other_data_are_refused_with_both_counts_and_hashes(self, roots, tmp_path):
        run = tmp_path / "run"
        self.begin(roots / "first", run)
        with pytest.raises(ValueError, match="have changed since") as caught:
            self.begin(roots / "second", run, 2)
        for name in ("first", "second"):
            assert str(identity.of_dataset(images(roots / name))) in str(caught.value)
        assert "dataset.changed = 'accept'" in str(caught.value)

    def test_who_accepts_them_goes_on_and_the_run_knows_both(
        self, roots, tmp_path, caplog
    ):
        run = tmp_path / "run"
        self.begin(roots / "first", run)
        with caplog.at_level(logging.WARNING):
            entries = self.begin(roots / "second", run, 2, dataset__changed="accept")
        assert [(step, e.count) for step, e in entries] == [(0, 23), (2, 39)]
        assert "have changed since" in caplog.text
        assert "23 items" in training_data.describe(run)
        assert "; from step 2 tiny, 39 items" in training_data.describe(run)
        # From then on these are the run's data, without being told again.
        assert len(self.begin(roots / "second", run, 4)) == 2
        # Back before the change, where a later checkpoint was lost.
        assert len(self.begin(roots / "first", run, 1)) == 1

    def test_a_run_of_an_earlier_version_resumes_and_is_known_from_then(
        self, roots, tmp_path
    ):
        config = config_lib.to_dict(make_config(roots / "first"))
        del config["dataset"]["changed"]
        entries = training_data.check(
            config_lib.as_saved(config), tmp_path, images(roots / "first"), 7
        )
        assert [step for step, _ in entries] == [7]

    def test_a_fresh_start_is_none_of_the_past(self, roots, tmp_path):
        self.begin(roots / "first", tmp_path / "run")
        entries = self.begin(roots / "second", tmp_path / "run")
        assert [e.count for _, e in entries] == [39]

    @pytest.mark.parametrize("section", ["teacher", "init"])
    def test_another_run_must_have_been_trained_on_the_same(
        self, roots, tmp_path, section
    ):
        other = tmp_path / "other"
        self.begin(roots / "first", other)
        settings = {f"{section}__run": str(other)}
        if section == "teacher":
            settings["teacher__source"] = "run"
        run = tmp_path / "run"
        assert self.begin(roots / "copy", run, **settings)
        with pytest.raises(ValueError, match=rf"{section}\.run = .* on other data"):
            self.begin(roots / "second", run, **settings)
        accepted = {**settings, "dataset__changed": "accept"}
        assert self.begin(roots / "second", run, **accepted)
        self.begin(roots / "second", run, 2, **settings)  # was accepted once for all

    def test_damage_and_illegal_values_are_named(self, roots, tmp_path):
        with pytest.raises(ValueError, match=r"dataset\.changed = 'yes'"):
            self.begin(roots / "first", tmp_path / "run", dataset__changed="yes")
        (tmp_path / "data.json").write_text('{"parts": [{}]}')
        with pytest.raises(ValueError, match=r"data\.json is damaged"):
            training_data.read(tmp_path)


def test_reference_statistics_are_kept_apart_by_every_file(roots, tmp_path):
    """Also where neither the number of items nor the 64 that are looked at differ."""
    raw = arrays(200)
    made_items.run(raw, tmp_path / "first")
    raw.fields["image"][1] += 1  # not one of those
    made_items.run(raw, tmp_path / "second")
    first, second = (images(tmp_path / name) for name in ("first", "second"))
    assert reference_stats.fingerprint(first) != reference_stats.fingerprint(second)


def test_a_training_refuses_changed_data_and_its_results_name_them(roots, tmp_path):
    root, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(roots / "first", root)
    first = str(identity.of_dataset(images(root)))
    assert train.train_and_evaluate(make_config(root), run) == "done"
    (row,) = map(json.loads, (run / "results.jsonl").read_text().splitlines())
    assert row["data"] == first
    assert reading.load_run(run).summary["data"] == first

    shutil.rmtree(root)
    shutil.copytree(roots / "second", root)
    second = str(identity.of_dataset(images(root)))
    # A run that is done is left alone; one that was killed before its end is not.
    assert train.train_and_evaluate(make_config(root), run) == "done"
    (run / "summary.json").unlink()
    with pytest.raises(ValueError, match="have changed since it was trained"):
        train.train_and_evaluate(make_config(root), run)
    assert training_data.describe(run) == first

    # What is measured now is another number, and says what it was measured on.
    (new,) = evaluate.evaluate_run(run)
    (again,) = evaluate.evaluate_run(run)
    assert (new["data"], new["measured_on"]) == (first, second)
    assert again["key"] == new["key"]  # read, not measured a second time
    shutil.rmtree(root)
    shutil.copytree(roots / "copy", root)
    (same,) = evaluate.evaluate_run(run)
    assert "measured_on" not in same and same["key"] != new["key"]
