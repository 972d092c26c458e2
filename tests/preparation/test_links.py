"""Links in folders, tars and zips, to files, to folders and to nothing."""

import tarfile

import pytest

from scm_jax.datasets.preparation.prepare import prepare
from scm_jax.datasets.preparation.readers.items import ItemError
from scm_jax.datasets.preparation.readers.sources import open_items
from tests.preparation import raw_data as raw

EACH = pytest.mark.parametrize("write", raw.WRITERS.values())
ARCHIVES = pytest.mark.parametrize("write", [raw.write_zip, raw.write_tar])


def assert_class(items, name, numbers):
    wanted = items.class_names.index(name)
    read = [items.read(index) for index in range(len(items))]
    found = [item["image"].tobytes() for item in read if item["label"] == wanted]
    assert found == [raw.picture(number).tobytes() for number in numbers]


@EACH
def test_links_are_followed(tmp_path, write):
    # cat is 0 and 1, ant 2 and 3.
    links = {"owl/0.png": "../cat/1.png", "owl/1.png": "0.png", "yak": "ant"}
    items = open_items(write(tmp_path / "raw", raw.class_files(), links))
    assert items.class_names == ("ant", "cat", "owl", "yak") and len(items) == 8
    assert_class(items, "owl", [1, 1])
    assert_class(items, "yak", [2, 3])


def test_hard_links_in_a_tar_are_from_its_root(tmp_path):
    links = {"owl/0.png": "./cat/0.png", "owl/1.png": "ant/1.png"}
    files = {f"./{name}": content for name, content in raw.class_files().items()}
    path = raw.write_tar(tmp_path / "raw", files, links, kind=tarfile.LNKTYPE)
    assert_class(open_items(path), "owl", [0, 3])


@ARCHIVES
def test_a_link_to_what_is_hidden_is_an_item(tmp_path, write):
    files = {**raw.class_files(), ".store/x": raw.png(7)}
    path = write(tmp_path / "raw", files, {"owl/0.png": "../.store/x"})
    assert_class(open_items(path), "owl", [7])


@EACH
def test_links_to_nothing_are_bad_items(tmp_path, write):
    outside = tmp_path / "outside.png"
    outside.write_bytes(raw.png(0))
    links = {"cat/8.png": "8.png", "cat/9.png": "gone.png", "cat/.#0": "someone@host"}
    links |= {"cat/notes.txt": "gone"}
    if write is not raw.write_folder:  # no file outside of an archive is ever read
        links |= {"cat/6.png": str(outside), "cat/7.png": "../../outside.png"}
    path = write(tmp_path / "raw", raw.class_files(), links)
    items = open_items(path)
    bad = range(4, len(items))
    assert (
        len(items) == 8 - 2 * (write is raw.write_folder)
        and "1 hidden" in items.notes[-1]
    )
    for index in bad:
        with pytest.raises(ItemError, match="cat/[6-9].png: is a link to nothing: "):
            items.read(index)
    with pytest.raises(ItemError, match="cat/[6-9].png: is a link to nothing"):
        prepare(items, tmp_path / "pets/1.0.0")
    prepare(items, tmp_path / "pets/1.0.0", skip_bad=len(bad))


@EACH
def test_a_class_folder_that_is_a_link_to_nothing(tmp_path, write):
    path = write(tmp_path / "raw", raw.class_files(), {"bat": "../gone"})
    raw.refused("folder bat/ is empty, or a link to nothing", path)


@ARCHIVES
def test_a_folder_that_links_to_itself(tmp_path, write):
    links = {"cat/again": ".", "cat/all": "..", "cat/a": "b", "cat/b": "a"}
    assert len(open_items(write(tmp_path / "raw", raw.class_files(), links))) == 4


def test_links_in_webdataset_shards(tmp_path):
    files, links = {"0.jpg": raw.png(0), "0.cls": b"3"}, {"1.jpg": "0.jpg"}
    path = raw.write_tar(tmp_path / "a.tar", files, {**links, "1.cls": "0.cls"})
    items = open_items(path)
    assert items.origin["kind"] == "webdataset" and items.read(1)["label"] == 3


def test_a_source_that_is_a_link_to_nothing(tmp_path):
    path = raw.write_folder(tmp_path / "raw", {}, {"ant.tar": "gone.tar"})
    for source in (path, path / "ant.tar", path / "*.tar"):
        raw.refused("is a link to nothing: gone.tar", source, error=FileNotFoundError)
    path = raw.write_tar(tmp_path / "train.tar", {}, {"n01.tar": "n02.tar"})
    raw.refused("train.tar: n01.tar is a link to nothing", path)
