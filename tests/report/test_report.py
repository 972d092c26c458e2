"""The page holds everything itself and says what it was given."""

import base64
import html.parser
import io
import re

import numpy as np
import PIL.Image
import pytest

from scm_jax.commands import report as report_command
from scm_jax.runs.directory import layout, reading, report
from scm_jax.runs.directory.media import image_grid
from scm_jax.runs.directory.writers import make_writer
from scm_jax.training.seal import CheckpointError

PIXELS = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8, 1)
VOID = {"meta", "img", "use", "path", "rect"}


class Page(html.parser.HTMLParser):
    """Tags in balance, attributes and texts collected."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.texts = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs[k] for k in ("src", "href", "xlink:href") if k in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def make_run(path, offset):
    directory = layout.RunDir(path)
    directory.write_config({"name": path.name, "train": {"batch_size": 128}})
    writer = make_writer((), path)
    for step in range(1, 40):
        loss = offset + 1 / step if step != 7 else float("nan")
        writer.write_scalars(step, {"images": 128 * step, "loss": loss})
        writer.write_arrays(step, {"bins/log_weight": np.full(8, offset * step)})
    writer.write_scalars(39, {"eval/frechet_distance": 0.5})
    writer.close()
    summary = {"parameters": 235_408, "train_macs_per_image": 11_700_000}
    directory.write_summary({**summary, "environment": {"device": "toaster"}})
    return reading.load_run(path)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    rows = [
        {"method": "scd", "steps": 2, "frechet_distance": 0.4471},
        {"method": "sct", "steps": 2, "frechet_distance": 0.5, "note": "<b>"},
    ]
    rows[1]["protocol"] = {"sampler": "hidden"}
    other = {"method": "other", "frechet_distance": 7.25}
    path = report.write_report(
        folder / "deep" / "report.html",
        title="Digits & <numbers>",
        runs=[make_run(folder / "scd", -1.0), make_run(folder / "sct", 0.0)],
        results=[("", rows), ("another way: <k>", [other])],
        grids={"real": image_grid(PIXELS), "scd, 2 steps": image_grid(PIXELS[::-1])},
        commands=[("Train it.", "scm train --config='a & b'")],
        intro="First paragraph.\n\nSecond <i>.",
    )
    return path.read_text()


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_the_page_is_whole_and_needs_nothing_else(text, page):
    assert page.open == []
    assert "script" not in page.tags and "link" not in page.tags
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert "url(http" not in text and "@import" not in text
    assert re.findall(r"<\?xml|<!DOCTYPE svg", text) == []


def test_ids_are_unique_and_references_exist(text, page):
    assert len(page.ids) == len(set(page.ids)) > 0
    targets = {link[1:] for link in page.links if link.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert targets and targets <= set(page.ids)


def test_curves_take_their_colours_from_the_page(text):
    assert "#0a0b0" not in text and "#0a0c0" not in text
    assert "stroke: var(--run-0)" in text and "stroke: var(--run-1)" in text
    assert "currentColor" in text


def test_everything_given_is_on_the_page(page):
    shown = " ".join(page.texts)
    for expected in (
        *("Digits & <numbers>", "Second <i>.", "frechet distance", "0.4471", "0.5000"),
        *("<b>", "another way: <k>", "7.250", "scm train --config='a & b'"),
        *("loss: scd", "loss: sct", "learned log-weight over t"),
        *("235,408", "11.7 M", "toaster", "train.batch_size"),
    ):
        assert expected in shown
    assert "raw tangent norm over t" not in shown


def test_pictures_survive_bit_by_bit(page):
    prefix = "data:image/png;base64,"
    pictures = [v.removeprefix(prefix) for v in page.links if v.startswith(prefix)]
    found = [PIL.Image.open(io.BytesIO(base64.b64decode(p))) for p in pictures]
    assert len(found) == 2
    np.testing.assert_array_equal(found[0], image_grid(PIXELS))
    np.testing.assert_array_equal(found[1], image_grid(PIXELS[::-1]))


def test_parts_without_content_are_left_out(tmp_path):
    path = report.write_report(tmp_path / "r.html", title="Empty")
    text = path.read_text()
    assert Page(text).open == []
    assert "<h2>" not in text


class TestDamagedRuns:
    """One run's damage costs nobody else's page."""

    @pytest.fixture
    def pair(self, tmp_path):
        return [make_run(tmp_path / name, 0.0) for name in ("whole", "hurt")]

    def page_of(self, tmp_path, pair):
        path = report.write_report(tmp_path / "r.html", title="T", runs=pair)
        page = Page(path.read_text())
        assert page.open == []
        return [text for text in page.texts if text.strip()]

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            (b'{"step": 3, "lo', "line 3: "),
            (b'{"a": "\xff"}', "line 3: 'utf-8' codec can't decode"),
            (b"[1]", "line 3: not an object"),
        ],
    )
    def test_a_damaged_line_is_left_out_and_named(self, tmp_path, pair, line, why):
        path = pair[1].dir.metrics_path
        lines = path.read_bytes().split(b"\n")
        lines[2] = line
        path.write_bytes(b"\n".join(lines))
        shown = self.page_of(tmp_path, pair)
        (warning,) = (text for text in shown if "Left out" in text)
        assert f"{path}, {why}" in warning
        # Both are shown with all their curves, the other one without a warning.
        assert {"loss: whole", "loss: hurt"} <= set(shown)
        assert shown.count("235,408") == 2

    @pytest.mark.parametrize("name", ["summary.json", "config.json"])
    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": "\xff"}'])
    def test_a_damaged_object_is_left_out_and_named(
        self, tmp_path, pair, name, content
    ):
        (pair[1].path / name).write_bytes(content)
        shown = self.page_of(tmp_path, pair)
        (warning,) = (text for text in shown if "Left out" in text)
        assert str(pair[1].path / name) in warning
        assert {"loss: whole", "loss: hurt"} <= set(shown)

    def test_an_empty_file_of_metrics_is_no_damage(self, tmp_path, pair):
        pair[1].dir.metrics_path.write_bytes(b"")
        shown = self.page_of(tmp_path, pair)
        assert not any("Left out" in text for text in shown)
        assert "loss: whole" in shown and "loss: hurt" not in shown

    def test_a_path_in_another_encoding_can_be_shown(self, tmp_path):
        shown = self.page_of(tmp_path, [make_run(tmp_path / "d\udce9", 0.0)])
        assert not any("Left out" in text for text in shown)

    def test_the_command_shows_every_run(self, tmp_path, pair, monkeypatch, caplog):
        """Rows of results with a damaged line, and samples that cannot be drawn."""
        for run in pair:
            run.dir.append_result({"steps": 1, "frechet_distance": 0.25})
        with pair[1].dir.results_path.open("ab") as file:
            file.write(b'{"steps": 2, \n{"steps": 4, "frechet_distance": 0.125}\n')

        def sample(run, num, steps):
            if run.name == "hurt":
                raise CheckpointError("none of the 2 checkpoints is whole")
            return reading.Samples(np.zeros((4, 8, 8, 1), np.float32), PIXELS)

        monkeypatch.setattr(reading.Run, "sample", sample)
        for run in pair:
            run.dir.config_path.write_text('{"sampling": {"steps": 2}}')
        out = tmp_path / "page.html"
        report_command.report_runs([str(run.path) for run in pair], str(out))
        page = Page(out.read_text())
        shown = " ".join(page.texts)
        assert f"{pair[1].dir.results_path}, line 2: " in shown
        assert f"samples of {pair[1].path}: none of the 2" in shown
        assert "0.1250" in shown and page.tags.count("img") == 1
        assert "line 2: " in caplog.text and "none of the 2" in caplog.text


class TestFormatTable:
    def test_alignment_and_missing_values(self):
        rows = [
            {"method": "teacher", "nfe": 35, "distance": 0.46712},
            {"method": "scd", "nfe": 2, "distance": np.float32(0.5), "note": "x"},
        ]
        assert report.format_table(rows).splitlines() == [
            "method   nfe  distance  note",
            "-------  ---  --------  ----",
            "teacher   35    0.4671  -",
            "scd        2    0.5000  x",
        ]

    def test_columns_are_chosen_and_ordered(self):
        rows = [{"a": 1, "b": 2, "c": 3}]
        assert report.format_table(rows, ["c", "a"]).split() == list("ca--31")

    def test_values_of_very_different_size_keep_their_digits(self):
        rows = [{"s": 12.5}, {"s": 0.000123}, {"s": float("nan")}]
        assert report.format_table(rows).split()[2:] == ["12.5", "0.000123", "nan"]

    def test_counts_stay_whole_where_a_table_has_gaps(self):
        rows = [{"nfe": 35.0}, {"nfe": float("nan")}, {"nfe": 0.0}]
        assert report.format_table(rows).split()[2:] == ["35", "nan", "0"]

    def test_no_rows(self):
        assert report.format_table([], ["a"]) == "a\n-"
