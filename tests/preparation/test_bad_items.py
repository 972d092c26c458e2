"""Items that cannot be stored, and arguments that cannot be meant."""

import dataclasses

import numpy as np
import pytest

from scm_jax.datasets.preparation import manifest
from scm_jax.datasets.preparation.readers.items import ItemError
from tests.preparation import made_items as made


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_item_stops_and_a_rerun_after_mending_goes_on(tmp_path, plain, workers):
    with pytest.raises(ItemError, match=r"a\.zip: 14\.png does not decode"):
        made.run(made.counted(bad=(14,)), tmp_path, workers=workers)
    assert not made.target(tmp_path).exists()
    mended = made.counted()
    assert made.contents(made.run(mended, tmp_path)) == plain
    assert 14 in mended.reads
    if workers == 1:
        assert mended.reads == [0, *range(12, made.NUM)]


def test_items_that_moved_are_stored_again(tmp_path):
    """A bad file was removed: what lies behind it has other names and is made anew."""

    class Named(made.Counted):
        def name(self, index):
            return f"{self.fields['image'][index].tobytes()}"

    with pytest.raises(ItemError):
        made.run(Named(**vars(made.arrays()), bad=(21,)), tmp_path)
    rest = {k: np.delete(v, 5, axis=0) for k, v in made.arrays().fields.items()}
    again = Named(rest, made.arrays().class_names, made.arrays().origin)
    folder = made.run(again, tmp_path)
    assert again.reads == [0, *range(4, made.NUM - 1)]
    made.assert_stored(folder, rest["image"])


def test_changed_raw_data_are_said(tmp_path, caplog):
    with pytest.raises(ItemError):
        made.run(made.counted(bad=(14,)), tmp_path)
    origin = made.arrays().origin | {"num_bytes": 5}
    folder = made.run(dataclasses.replace(made.arrays(), origin=origin), tmp_path)
    assert "are not what they were" in caplog.text and "--fresh" in caplog.text
    assert manifest.read(folder)["splits"]["train"]["recipe"]["origin"] == origin


def test_fresh_makes_all_shards_again(tmp_path):
    with pytest.raises(ItemError):
        made.run(made.counted(bad=(14,)), tmp_path)
    again = made.counted()
    made.run(again, tmp_path, fresh=True)
    assert again.reads == [0, *range(made.NUM)]


@pytest.mark.parametrize("bad", [(14,), (0, 22)])
def test_bad_items_may_be_skipped_and_are_recorded(tmp_path, bad, caplog):
    with pytest.raises(ItemError, match=r"skip_bad = |does not decode"):
        made.run(made.counted(bad=(1, *bad)), tmp_path / "another", skip_bad=len(bad))
    caplog.clear()
    folder = made.run(made.counted(bad=bad), tmp_path, skip_bad=len(bad))
    assert f"{len(bad)} of these items were left out" in caplog.text
    assert f"{bad[0]}.png does not decode" in caplog.text
    split = manifest.read(folder)["splits"]["train"]
    assert split["count"] == made.NUM - len(bad)
    assert [s["item"] for s in split["skipped"]] == [f"item {k}" for k in bad]
    assert f"{bad[0]}.png does not decode" in split["skipped"][0]["why"]
    made.assert_stored(folder, np.delete(made.arrays().fields["image"], bad, axis=0))


def test_skipped_items_come_back_when_they_are_mended(tmp_path, plain):
    with pytest.raises(ItemError, match="9.png"):
        made.run(made.counted(bad=(1, 9)), tmp_path, skip_bad=1)
    assert made.contents(made.run(made.arrays(), tmp_path)) == plain


def test_too_many_bad_items_over_all_shards(tmp_path):
    with pytest.raises(ItemError, match=r"19\.png .* 2 other bad items were skipped"):
        made.run(made.counted(bad=(2, 9, 19)), tmp_path, skip_bad=2)
    with pytest.raises(ItemError, match="none of the 2 items could be used|does not"):
        bad = made.counted(bad=(0, 1), raw=made.arrays(num=2))
        made.run(bad, tmp_path / "b", skip_bad=9)


def changed(field, value):
    """Item 7 is another one."""
    fields = {k: list(v) for k, v in made.arrays().fields.items()}
    fields[field][7] = value
    return dataclasses.replace(made.arrays(), fields=fields)


def latent(value):
    values = made.LATENTS.copy()
    values[7, 1, 2, 3] = value
    return made.ArrayItems({"latent": values})


WIDE, FOUR = np.zeros((8, 9, 3), np.uint8), np.zeros((8, 8, 4), np.uint8)
BAD_ITEMS = {
    r"item 7 has the label 3; legal are 0\.\.2": (changed("label", 3), {}),
    "item 7 has the label -1": (changed("label", -1), {}),
    r"item 7 has shape \(8, 9, 3\).*--recipe=center_": (changed("image", WIDE), {}),
    "item 7: the image is 8 pixels high": (changed("image", WIDE), {"size": 8}),
    r"item 7 is uint8 \(8, 8, 4\); images are uint8": (changed("image", FOUR), {}),
    "item 7 has values that are not finite in float32": (latent(np.nan), {}),
    "item 7 has values .* in float16": (latent(1e5), {"dtype": "float16"}),
}
ILLEGAL = {
    "there are no items at made": (made.arrays(num=0), {}),
    "'box' needs a size": (made.arrays(), {"recipe": "box"}),
    "recipe = 'bx' .* did you mean 'box'": (made.arrays(), {"recipe": "bx", "size": 4}),
    "is for latents; images are uint8": (made.arrays(), {"dtype": "float16"}),
    "not one of float16, float32": (latent(0), {"dtype": "int8"}),
    "'Train 1' is not a split": (made.arrays(), {"split": "Train 1"}),
    "the others have made": (made.arrays(), {"fresh": True, "process_count": 2}),
    "number of classes is not": (made.ArrayItems(made.arrays().fields), {}),
}


@pytest.mark.parametrize("message", BAD_ITEMS)
def test_items_that_cannot_be_meant_are_named(tmp_path, message):
    raw, options = BAD_ITEMS[message]
    with pytest.raises(ItemError, match=message):
        made.run(raw, tmp_path, **options)
    assert not made.target(tmp_path).exists()


@pytest.mark.parametrize("message", ILLEGAL)
def test_illegal_arguments(tmp_path, message):
    raw, options = ILLEGAL[message]
    with pytest.raises(ValueError, match=message):
        made.run(raw, tmp_path, **options)
