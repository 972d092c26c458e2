"""Classes out of a text: its shapes, and the images that it names."""

import json

import pytest

from scm_jax.datasets.preparation.readers.items import ItemError
from scm_jax.datasets.preparation.readers.sources import open_items, summarize
from tests.preparation.raw_data import encode, picture, write_folder

IMAGES = {f"{n}.png": encode(picture(n)) for n in range(4)}
CLASSES = ("tabby cat", "dog", "tabby cat", "dog")
PAIRS = [(f"{n}.png", CLASSES[n]) for n in range(4)]


def rows(mark, *columns, header=""):
    lines = [mark.join(map(str, row)) for row in zip(*columns, strict=True)]
    return "\n".join(([header] if header else []) + lines) + "\n"


def opened(tmp_path, text, images=IMAGES, suffix="csv", **options):
    path = write_folder(tmp_path / "raw", images)
    file = tmp_path / f"labels.{suffix}"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_items(path, label_file=file, **options)


FILES = [file for file, _ in PAIRS]
SHAPES = {
    "commas": rows(",", FILES, CLASSES),
    "tabs": rows("\t", FILES, CLASSES),
    "semicolons": rows(";", FILES, CLASSES, header="Image;Class"),
    "spaces": rows(" ", FILES, CLASSES),
    "with a mark of its encoding": b"\xef\xbb\xbf"
    + rows(",", FILES, CLASSES, header="file,class").encode(),
    "the class first": rows(",", CLASSES, FILES, header="label,file_name"),
    "the class of any name": rows(",", FILES, CLASSES, header="image_id,diagnosis"),
    "an index": rows(",", range(4), FILES, CLASSES, header=",file,class"),
    "quotes": rows(
        ",", [f'"{f}"' for f in FILES], [f'"{c}"' for c in CLASSES], header="Id,Label"
    ),
    "paths of elsewhere": rows(",", [f"C:\\all\\{f}" for f in FILES], CLASSES),
    "without suffixes": rows(",", range(4), CLASSES),
}


@pytest.mark.parametrize("text", SHAPES.values(), ids=SHAPES)
def test_shapes_of_label_files(tmp_path, text):
    items = opened(tmp_path, text)
    assert items.class_names == ("dog", "tabby cat")
    labels = [int(items.read(index)["label"]) for index in range(4)]
    assert labels == [1, 0, 1, 0]


@pytest.mark.parametrize("content", [dict(PAIRS), PAIRS, {"labels": PAIRS}])
def test_labels_in_json(tmp_path, content):
    items = opened(tmp_path, json.dumps(content), suffix="json")
    assert items.class_names == ("dog", "tabby cat")
    for bad in ("{", "[[1]]", '{"0.png": [1]}'):
        with pytest.raises(ValueError, match="labels.json: "):
            opened(tmp_path, bad, suffix="json")


def test_names_of_files_with_spaces(tmp_path):
    images = {f"IMG {n}.png": IMAGES["0.png"] for n in range(2)}
    for mark in " ,":
        text = rows(mark, images, CLASSES[:2], header="file,class" * (mark == ","))
        assert opened(tmp_path, text, images).class_names == ("dog", "tabby cat")


def test_a_class_with_a_comma_is_quoted(tmp_path):
    text = rows(",", FILES, ['"cat, tabby"'] * 4, header="file,class")
    assert opened(tmp_path, text).class_names == ("cat, tabby",)
    with pytest.raises(ValueError, match="'0.png,cat, tabby', has more columns"):
        opened(tmp_path, text.replace('"', ""))


def test_a_file_in_several_folders_is_named_with_them(tmp_path):
    images = {f"{c}/{n}.png": IMAGES["0.png"] for c in "ab" for n in range(2)}
    text = rows(",", images, CLASSES)
    for given in (text, text.replace("a/", "raw/a/").replace("b/", "raw/b/")):
        items = opened(tmp_path, given, images)
        assert [int(items.read(i)["label"]) for i in range(4)] == [1, 0, 1, 0]
    short = text.replace("a/", "").replace("b/1.png,dog\n", "")
    with pytest.raises(ValueError, match="'1.png,dog', fits several images, a/1.png"):
        opened(tmp_path, short, images)


def test_lines_without_an_image_are_counted(tmp_path):
    items = opened(tmp_path, SHAPES["commas"] + "8.png,owl\n9.png,owl\n")
    assert items.class_names == ("dog", "tabby cat")
    assert "labels.csv without an image: 2" in summarize(items)


EXPECTED = "expected a file and its class in each line"
BAD = {
    "none fits": (rows(",", CLASSES, FILES), "none of its 4 lines names an image. "
                  "It has line 1, 'tabby cat,0.png', and an image is '0.png'; "),
    "an index": (rows(",", range(4), FILES, CLASSES), "line 1, '0,0.png,tabby cat', "
                 "does not say which columns"),
    "two classes": (rows(",", FILES, CLASSES, CLASSES, header="file,class,label"),
                    "line 1, 'file,class,label', does not say which"),
    "several numbers": (rows(" ", FILES, ["1 2"] * 4), "line 1, '0.png 1 2', has sev"),
    "no class": ("0.png,\n1.png,dog\n", f"line 1, '0.png,', has no class; {EXPECTED}"),
    "twice": ("0.png 4\n0.png 5\n", "line 2, '0.png 5', names a file twice"),
    "classes only": ("4\n2\n", "line 1, '4', has no class"),
    "empty": ("\n", f"has no lines; {EXPECTED}"),
    "another encoding": ("0.png,Löwe".encode("latin1"), "is not UTF-8 text"),
}  # fmt: skip


@pytest.mark.parametrize("text, message", BAD.values(), ids=BAD)
def test_bad_label_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=f"labels.csv: {message}"):
        opened(tmp_path, text)


def test_an_image_without_a_line_is_named(tmp_path):
    message = "3.png: has no label, and 3 of 4 items have one; each needs a line in"
    with pytest.raises(ItemError, match=message):
        opened(tmp_path, rows(",", FILES[:3], CLASSES[:3]))


def test_a_label_file_that_is_not_there_or_of_no_use(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.csv"):
        open_items(write_folder(tmp_path / "raw", IMAGES), label_file="no.csv")
    with pytest.raises(ValueError, match="labels.csv': labels 'none' reads no classes"):
        opened(tmp_path, SHAPES["commas"], labels="none")
