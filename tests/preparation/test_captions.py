"""Captions beside images: every layout, what is missing, and what training reads."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from scm_jax.datasets import make_dataset
from scm_jax.datasets.preparation import caption_facts, inspection, manifest, verify
from scm_jax.datasets.preparation.readers.items import ItemError
from scm_jax.datasets.preparation.readers.sources import open_items, summarize
from scm_jax.runs.directory.run_configs import config_hash
from tests.commands.in_process import scm
from tests.preparation import raw_data
from tests.preparation.made_items import Counted, arrays, contents, run, target

IMAGES = {"a.png": raw_data.png(0, 4, 4), "b.png": raw_data.png(1, 4, 4)}
STAR, MOON = ("a red star", "star"), ("a blue moon",)
LINES = "\n".join(
    json.dumps({"file_name": name, "text": text})
    for name, text in [("a.png", STAR[0]), ("b.png", MOON[0]), ("a.png", STAR[1])]
).encode()
COCO = {
    "images": [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}],
    "annotations": [
        *({"image_id": 7, "caption": text} for text in STAR),
        {"image_id": 9, "caption": MOON[0]},
    ],
}
TEXTS = {"a.txt": b"a red\tstar\r\n\nstar", "b.txt": "\ufeffa blue moon".encode()}
OBJECTS = {
    "a.json": json.dumps({"caption": list(STAR), "label": 3}).encode(),
    "b.json": json.dumps({"text": MOON[0], "label": 1}).encode(),
}
CSV = (
    b"path,text\nimg/a.png,a red star\nimg/b.png,a blue moon\nimg/a.png,star\nz.png,q\n"
)


def parquet(folder):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    table = arrow.table({"image_path": ["a.png", "b.png"], "captions": [STAR, MOON]})
    parquet.write_table(table, folder / "table.parquet")


def layout(kind, folder):
    """Two images with captions in a layout: the source, and how it is read."""
    plain = folder / "img"
    if kind in ("txt", "json", "metadata.jsonl"):
        beside = {"txt": TEXTS, "json": OBJECTS}.get(kind, {kind: LINES})
        return raw_data.write_folder(plain, IMAGES | beside), {}
    if kind.startswith("shard"):
        beside = TEXTS if kind == "shard txt" else OBJECTS
        files = {n: c for k in "ab" for n, c in (IMAGES | beside).items() if n[0] == k}
        return raw_data.write_tar(folder / "shard-000.tar", files), {}
    raw_data.write_folder(plain, IMAGES)
    tables = {"table.csv": CSV, "coco.json": json.dumps(COCO).encode()}
    tables["by_file.json"] = json.dumps({"a.png": STAR, "b.png": MOON[0]}).encode()
    if kind == "table.parquet":
        parquet(folder)
    else:
        (folder / kind).write_bytes(tables[kind])
    return plain, {"caption_file": folder / kind}


LAYOUTS = [
    *("txt", "json", "metadata.jsonl", "shard txt", "shard json"),
    *("table.csv", "coco.json", "by_file.json", "table.parquet"),
]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_gives_all_captions_of_an_item(tmp_path, kind):
    source, options = layout(kind, tmp_path)
    items = open_items(source, **options)
    said = [set(items.read(index)["captions"]) for index in range(len(items))]
    assert said == [set(STAR), set(MOON)]
    assert "captions in" in summarize(items)
    assert ("not there: 1" in summarize(items)) == (kind == "table.csv")
    if not options:
        assert "captions" not in open_items(source, captions="none").read(0)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("t.csv", b"name,text\na.png,x", r"row 1 has \['name', 'text'\]; expected"),
        ("t.jsonl", b'{"file_name": "a.png"}', "row 1 has .*--caption_key=KEY"),
        ("t.jsonl", b"{", "cannot be read as a table of captions"),
        ("t.json", b'{"a.png": 3}', "a.png: the caption 3 is not a text"),
        ("t.csv", b"file,text\nz.png,x", "none of its 1 lines names an image"),
    ],
)
def test_tables_that_do_not_fit_say_why(tmp_path, name, content, message):
    source = raw_data.write_folder(tmp_path / "img", IMAGES)
    (tmp_path / name).write_bytes(content)
    raw_data.refused(message, source, caption_file=tmp_path / name)
    raw_data.refused("captions are required", source, captions="required")


def test_a_few_texts_beside_images_are_no_captions_unless_required(tmp_path):
    more = {f"{k}.png": raw_data.png(k) for k in range(3)}
    files = IMAGES | more | {"a.txt": b"x", "b.json": b'{"label": 1}'}
    source = raw_data.write_folder(tmp_path / "img", files)
    assert "captions" not in open_items(source).read(0)
    assert open_items(source, captions="required").read(3)["captions"] == ("x",)
    other = raw_data.write_folder(tmp_path / "npz", {"x.npz": b""})
    with pytest.raises(ValueError, match="has no captions beside its images"):
        open_items(other, kind="npz", captions="required")


# --- prepared -------------------------------------------------------------------------

SAID = [
    ("a red star", "red"),
    (),
    ("a blue moon", "the moon", "a moon"),
    ("a " * 20,),
] * 3


@dataclasses.dataclass(frozen=True)
class Captioned(Counted):
    """Twelve images, of which every fourth has no caption."""

    def read(self, index):
        return {**super().read(index), "captions": SAID[index]}


def captioned(bad=()):
    return Captioned(**vars(arrays(12)), bad=bad)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("captioned")
    run(captioned(), root, options={"context_length": 12})
    run(captioned(), root, split="test")
    return root


def test_the_manifest_says_how_captions_are_read_and_what_is_missing(root):
    found = manifest.read(target(root))
    reading, facts = found["captions"], found["splits"]["test"]["captions"]
    assert reading["words"] == ["a", "blue", "moon", "red", "star", "the"]
    assert (reading["split"], reading["length"], reading["most_tokens"]) == (
        *("train", 12),
        20,
    )
    assert facts == {
        "count": 18,
        "most": 3,
        "longer": 3,
        "without": 3,
        "first_without": ["item 1", "item 5", "item 9"],
    }
    said = " ".join(caption_facts.summary(found, "train"))
    assert "items without a caption: 3 (item 1, item 5, item 9)" in said
    assert "longer than the context: 3" in said
    assert not list(verify.verify(target(root)))


def test_an_interrupted_preparation_keeps_its_captions(root, tmp_path):
    with pytest.raises(ItemError):
        run(captioned(bad=(9,)), tmp_path, options={"context_length": 12})
    again = captioned()
    run(again, tmp_path, options={"context_length": 12})
    assert min(again.reads[1:]) == 8  # after the first item, which says what they are
    run(captioned(), tmp_path, split="test", workers=2)
    assert contents(target(tmp_path)) == contents(target(root))


def test_what_does_not_fit_is_refused(root, tmp_path):
    with pytest.raises(ItemError, match="item 1 has no caption, which --missing"):
        run(captioned(), tmp_path, options={"missing_captions": "refuse"})
    with pytest.raises(ValueError, match="with captions, unlike the split 'val' now"):
        run(arrays(12), root, split="val")
    run(arrays(), tmp_path)
    with pytest.raises(ValueError, match=r"'tiny' has no captions: prepare it again"):
        make_dataset("images", root=tmp_path, prepared="tiny", captioned=True)
    with pytest.raises(ValueError, match=r"needs dataset\.captioned = True"):
        make_dataset("images", root=tmp_path, prepared="tiny", states="t5")


def test_the_default_context_holds_nearly_all_captions():
    reading = caption_facts.reading_part([("x", SAID[3])], "train")
    assert reading["length"] == 24 and reading["most_tokens"] == 20


def test_training_reads_one_of_the_captions_of_an_item(root):
    data = make_dataset("images", root=root, prepared="tiny", captioned=True)
    text = data.info.text
    assert (text.length, data.info.num_classes) == (12, 3)
    examples = data.info.examples()
    assert examples.texts[:2] == ("a red star", "a blue moon")
    assert examples.fields["tokens"].shape == (3, 12)
    raw = data.opened.gather(np.arange(12))
    assert raw["tokens"].shape == (12, 3, 12) and raw["tokens"].dtype == np.int32
    np.testing.assert_array_equal(raw["num_captions"], [2, 1, 3, 1] * 3)
    assert raw["tokens"][3, 0].all()  # cut
    legal = [{tuple(row) for row in item[: max(n, 1)]} for item, n in zip(
        raw["tokens"].tolist(), raw["num_captions"], strict=True
    )]  # fmt: skip
    seen = [set() for _ in range(12)]
    batch = jax.jit(data.to_batch)
    iterator = data.iterator(12, seed=0)
    for _ in range(12):
        part = next(iterator)
        for item, row in zip(part.items[:, 2], batch(part).tokens, strict=True):
            seen[item].add(tuple(row.tolist()))
    assert seen == legal and seen[1] == {(0,) * 12}
    plain = make_dataset("images", root=root, prepared="tiny")
    assert plain.info.text is None and set(plain.opened.gather(np.arange(1))) == {
        *("image", "label")
    }


def test_runs_without_captions_keep_their_hash():
    old = {"dataset": {"name": "images", "prepared": "tiny"}}
    new = {"dataset": {**old["dataset"], "captioned": False, "states": ""}}
    assert config_hash(new) == config_hash(old)
    new["dataset"]["captioned"] = True
    assert config_hash(new) != config_hash(old)


def test_commands_tell_what_is_missing(tmp_path):
    files = IMAGES | {"c.png": raw_data.png(2, 4, 4)} | TEXTS
    source = raw_data.write_folder(tmp_path / "img", files)
    own = ("--name=said", f"--source={source}", f"--root={tmp_path}")
    told = scm("data", "prepare", *own, "--context_length=9").stderr
    assert "captions in 2 .txt beside the images" in told
    assert "items without a caption: 1 " in told and "c.png" in told
    flags = ("--dataset=said", f"--root={tmp_path}")
    assert "without a caption: 1" in scm("data", "verify", *flags).stdout
    page = inspection.inspect(tmp_path / "said/1.0.0", "train", tmp_path / "p.png")
    assert page["captions"]["without"] == 1
    fresh = ("--name=new", *own[1:], "--missing_captions=refuse")
    assert "c.png has no caption" in scm("data", "prepare", *fresh, check=1).stderr
