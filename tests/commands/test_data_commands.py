"""From raw files to prepared data, by the commands that a user types."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from scm_jax.datasets import pipeline, storage
from scm_jax.datasets.imagenet64_variants import IMAGENET64_VARIANTS
from scm_jax.datasets.preparation import manifest, prepare, recipes
from scm_jax.datasets.shapes import ShapeSource
from tests.commands.in_process import scm
from tests.preparation import raw_data


def prepare_pets(root, raw, *flags, check=0):
    own = ("--name=pets", f"--source={raw}", f"--root={root}")
    return scm("data", "prepare", *own, *flags, check=check)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """24 photographs of two classes in several sizes, prepared by command to 8x8."""
    folder = tmp_path_factory.mktemp("flowers")
    rng = np.random.default_rng(0)
    for index in range(24):
        sides = rng.integers(9, 24, 2)
        file = folder / "raw" / ("rose", "daisy")[index % 2] / f"{index}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*sides, 3), np.uint8)).save(file)
    flags = ("--name=flowers", f"--source={folder / 'raw'}", "--size=8")
    flags = (*flags, "--recipe=center_crop_dhariwal", f"--root={folder}")
    done = scm("data", "prepare", *flags, "--shard_items=10", "--workers=2")
    return folder, flags, done


def test_prepare_says_where_and_how_fast(prepared):
    folder, flags, done = prepared
    assert done.stdout.strip() == str(folder / "flowers/1.0.0")
    assert "24 items in" in done.stderr and "items/s" in done.stderr
    found = manifest.read(folder / "flowers/1.0.0")
    assert found["class_names"] == ["daisy", "rose"]
    assert found["splits"]["train"]["recipe"]["recipe"] == "center_crop_dhariwal"
    again = scm("data", "prepare", *flags, "--shard_items=10")
    assert again.stdout == done.stdout and "items in" not in again.stderr


def test_verify_and_inspect(prepared, tmp_path):
    folder, _, _ = prepared
    flags = ("--dataset=flowers", f"--root={folder}")
    said = scm("data", "verify", *flags).stdout
    assert "all of 24 items in 3 shards: whole" in said
    page = tmp_path / "page.png"
    facts, _ = scm("data", "inspect", *flags, f"--out={page}").stdout.splitlines()
    assert json.loads(facts)["num_classes"] == 2
    with Image.open(page) as opened:
        assert opened.width > 500


def test_a_broken_shard_is_named_and_the_exit_code_is_1(prepared, tmp_path):
    folder = tmp_path / "flowers/1.0.0"
    shutil.copytree(prepared[0] / "flowers/1.0.0", folder)
    shard = folder / "flowers-train.array_record-00001-of-00003"
    shard.write_bytes(shard.read_bytes()[:1000])
    done = scm("data", "verify", f"--dataset={folder}", "--quick", check=1)
    assert f"{shard} is cut off: 1,000 of" in done.stdout
    assert "1 problems" in done.stdout


def test_a_bad_item_is_named_and_nothing_is_left_under_the_name(prepared, tmp_path):
    raw = raw_data.write_folder(tmp_path / "raw", raw_data.class_files(count=3))
    (raw / "cat/1.png").write_bytes(raw_data.encode(raw_data.picture(1))[:40])
    done = prepare_pets(tmp_path, raw, check=1)
    assert "cat/1.png" in done.stderr and "Traceback" not in done.stderr
    assert [p for p in os.listdir(tmp_path / "pets") if not p.startswith(".")] == []
    prepare_pets(tmp_path, raw, "--skip_bad=1")
    split = manifest.read(tmp_path / "pets/1.0.0")["splits"]["train"]
    assert split["count"] == 5 and "cat/1.png" in split["skipped"][0]["item"]


# --- recipes --------------------------------------------------------------------------


def test_cifar10_and_latents_by_their_names(tmp_path):
    """Recipes that are as declared, and archives that are not, are told apart."""
    archive = tmp_path / "cifar-10-python.tar.gz"
    raw_data.write_tar(archive, raw_data.cifar10_files(), mode="w:gz")
    flags = (f"--source={archive}", f"--root={tmp_path}")
    done = scm("data", "prepare", "--dataset=cifar10", *flags, check=1)
    assert "has 2 classes, and 'cifar10' has 10" in done.stderr
    latent = np.arange(8 * 64 * 64, dtype=np.float32).reshape(8, 64, 64) / 9e3
    names = [f"00000/img-mean-std-{k:08d}.npy" for k in range(3)]
    labels = {"labels": [[name, 3 * k] for k, name in enumerate(names)]}
    content = dict.fromkeys(names, raw_data.npy(latent))
    content["dataset.json"] = json.dumps(labels).encode()
    archive = raw_data.write_zip(tmp_path / "img512-sd.zip", content)
    flags = (f"--source={archive}", f"--root={tmp_path}", "--dtype=float16")
    done = scm("data", "prepare", "--dataset=imagenet512_latents", *flags)
    assert "holds 3 items" in done.stderr and "1,281,167" in done.stderr
    found = manifest.read(tmp_path / "imagenet512_latents/1.0.0")
    assert (found["shape"], found["dtype"]) == ([64, 64, 8], "float16")
    assert found["num_classes"] == 1000
    assert found["encoder"]["pixel_range"] == "[0, 1]"


def test_flags_of_writing_reach_the_preparation(tmp_path, monkeypatch):
    raw = raw_data.write_folder(tmp_path / "raw", raw_data.class_files())
    given = {}
    monkeypatch.setattr(prepare, "prepare", lambda *_, **how: given.update(how))
    flags = {"workers": 2, "shard_items": 5, "skip_bad": 4, "fresh": True}
    wanted = flags | {"process_index": 1, "process_count": 3}
    flags |= {"process_id": 1, "num_processes": 3}
    prepare_pets(tmp_path, raw, *(f"--{name}={flags[name]}" for name in flags))
    assert given.items() >= wanted.items()


def test_a_users_folder_with_a_recipe(tmp_path):
    files = raw_data.class_files(count=2)
    raw_data.write_folder(tmp_path / "mine/raw", files)
    (tmp_path / "mine/recipe.toml").write_text(
        'name = "mine"\nsource = "raw"\nsize = 4\nrecipe = "box"\nnum_classes = 2\n'
    )
    done = scm("data", "prepare", f"--dataset={tmp_path}/mine", f"--root={tmp_path}/a")
    assert done.stdout.strip() == f"{tmp_path}/a/mine/1.0.0"
    assert manifest.read(tmp_path / "a/mine/1.0.0")["shape"] == [4, 4, 3]


def test_classes_from_a_text_file(tmp_path):
    files = {f"{k}.png": raw_data.encode(raw_data.picture(k)) for k in range(4)}
    raw = raw_data.write_folder(tmp_path / "raw", files)
    text = tmp_path / "labels.csv"
    text.write_text("".join(f"{k},{k % 2 + 1}\n" for k in range(4)))
    prepare_pets(tmp_path, raw, f"--label_file={text}", "--label_base=1")
    found = manifest.read(tmp_path / "pets/1.0.0")
    assert found["splits"]["train"]["items_per_class"] == [2, 2]


def test_every_recipe_of_the_checkout_is_read_and_found():
    found = recipes.names()
    assert {"cifar10", "digits", "imagenet64", "imagenet512_latents"} <= set(found)
    for name in set(found) - {"digits"}:
        file = recipes.find(name)
        assert recipes.read(file).name == name
    assert recipes.find("imagenet512") == recipes.find("imagenet512_latents")
    assert recipes.find("digits") is None and storage.find_builder("digits")


@pytest.mark.parametrize("variant", IMAGENET64_VARIANTS)
def test_variants_of_imagenet64(variant):
    chosen = IMAGENET64_VARIANTS[variant]
    recipe = recipes.read(recipes.find("imagenet64"), variant)
    assert (recipe.name, recipe.recipe) == (chosen.folder, chosen.recipe)
    assert recipe.size == 64
    options = recipes.open_options(recipe, "npz")
    assert options["label_base"] == chosen.label_base
    assert options["labels"] == ("required" if chosen.labelled else "none")
    assert options["num_classes"] == (1000 if chosen.labelled else None)
    assert recipes.open_options(recipe, "tfds")["label_base"] == 0


BAD_RECIPES = {
    r"key = 'siz' .* did you mean 'size'": 'name = "a"\nsiz = 4',
    "size = '4' must be of the type int": 'name = "a"\nsize = "4"',
    "has no name": "size = 4",
    "recipe.toml: ": "name = ",
}


@pytest.mark.parametrize("message", BAD_RECIPES)
def test_recipes_that_cannot_be_meant(tmp_path, message):
    file = tmp_path / "recipe.toml"
    file.write_text(BAD_RECIPES[message])
    with pytest.raises(ValueError, match=message):
        recipes.read(file)
    with pytest.raises(ValueError, match="has no variants"):
        recipes.read(recipes.find("cifar10"), "edm2")


def test_the_part_of_a_source_that_a_split_is(tmp_path):
    files = raw_data.class_files(prefix="Training/")
    files |= raw_data.class_files(count=1, prefix="Testing/")
    raw = raw_data.write_zip(tmp_path / "raw.zip", {**files, "pred/0.png": b""})
    done = prepare_pets(tmp_path, raw)
    line = f"{raw}: kind zip, split train, 4 items, 2 classes (ant, cat); not read: "
    assert done.stderr.startswith(f"{line}Testing (2), pred (1)")
    prepare_pets(tmp_path, raw, "--split=test")
    found = manifest.read(tmp_path / "pets/1.0.0")
    assert found["class_names"] == ["ant", "cat"]
    counts = {name: split["count"] for name, split in found["splits"].items()}
    assert counts == {"train": 4, "test": 2}
    done = prepare_pets(tmp_path, raw, "--split=validation", check=1)
    assert "none of them 'validation'" in done.stderr


def test_what_raw_data_have_no_use_for_is_refused(tmp_path):
    raw = raw_data.write_folder(tmp_path / "raw", raw_data.class_files())
    for flag in ("--label_base=1", "--label_key=y", "--source_split=val"):
        done = prepare_pets(tmp_path, raw, flag, check=1)
        assert flag[2:11] in done.stderr and not (tmp_path / "pets").exists()
    done = scm("data", "prepare", "--dataset=digits", "--label_file=a.csv", check=2)
    assert "--label_file" in done.stderr


def test_the_largest_image_is_a_flag(tmp_path):
    raw = raw_data.write_folder(tmp_path / "raw", raw_data.class_files())
    said = prepare_pets(tmp_path, raw, "--max_pixels=19", check=1).stderr
    assert "ant/0.png: the image has 5 x 4 pixels, more than --max_pixels=19" in said
    prepare_pets(tmp_path, raw, "--max_pixels=20")


# --- the command line -----------------------------------------------------------------


@pytest.mark.parametrize(
    "args, code, message",
    [
        (["data"], 2, "data prepare  "),
        (["data", "--help"], 0, "data verify  "),
        (["data", "prepar"], 1, "did you mean 'data prepare'?"),
        (["data", "prepare"], 2, "either --dataset=NAME or"),
        (["data", "prepare", "--name=a"], 2, "missing --source"),
        (["data", "prepare", "--dataset=cifar10"], 2, "missing --source=PATH"),
        (["data", "prepare", "--dataset=cifar"], 2, "there are captioned_shapes"),
        (["data", "prepare", *"--dataset=cifar10 --source=a --size=8".split()], 2,
         "recipe.toml has size = 32"),
        (["data", "verify", "--dataset=no", "--root=x"], 1, "'no' is not prepared"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_wrong_command_line(args, code, message):
    assert message in "".join(scm(*args, check=code))


def test_help_lists_the_flags_of_a_command():
    command = [sys.executable, "-m", "scm_jax", "data", "prepare", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    listed = [line.split()[0] for line in said.splitlines() if "--" in line]
    assert {"--dataset", "--source", "--workers", "--skip_bad"} <= set(listed)
    assert "--verbosity" not in listed  # absl's own


def test_shapes_are_prepared_as_they_are_drawn(tmp_path):
    flags = ("--dataset=shapes", f"--root={tmp_path}")
    scm("data", "prepare", *flags, "--num_items=20", "--split=test")
    source = pipeline.read_prepared(tmp_path / "shapes/1.0.0", "test")
    expected = ShapeSource("test", 20).gather(np.arange(20))
    found = source.gather(np.arange(20))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    own = ("--name=mine", "--kind=drawn", "--source=shapes", f"--root={tmp_path}")
    done = scm("data", "prepare", *own, check=2)
    assert "--num_items" in done.stderr
