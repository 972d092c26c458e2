"""The frozen reader is the recorded one, and agreement tells true from false images."""

import numpy as np
import pytest

from scm_jax.datasets import make_dataset, shape_captions
from scm_jax.datasets.shapes import ShapeSource
from scm_jax.evaluation import CaptionAgreement, Subject
from scm_jax.evaluation.features import shapes_reader

NUM = 300
INFO = make_dataset("captioned_shapes", num_items=8).info


@pytest.fixture(scope="module")
def weights():
    return shapes_reader.load_weights()


def test_the_reader_names_the_words_of_fresh_items(weights):
    source = ShapeSource("test", 60_000)
    indices = np.arange(59_000, 60_000)
    found = shapes_reader.read(weights, source.gather(indices)["image"])
    right = shape_captions.targets(source.attributes(indices))
    least = dict.fromkeys(shapes_reader.HEADS, 0.94)
    least |= {"size": 0.9, "second": 0.87, "place": 0.92}
    shares = {k: (found[k] == right[k]).mean() for k in least}
    assert all(shares[k] > least[k] for k in least), shares
    assert {k: len(v) for k, v in shape_captions.LEGAL.items()} == shapes_reader.HEADS
    with pytest.raises(ValueError, match=r"expected uint8 \(n, 32, 32, 3\)"):
        shapes_reader.read(weights, np.zeros((2, 64, 64, 3), np.uint8))


def drawn(change):
    """A subject whose samples are the true images, changed."""

    def pixels(num, steps, seed, part, prompts):
        kinds = {INFO.questions(num, k).prompts.texts: k for k in ("seen", "held_out")}
        true = INFO.questions(num, kinds[prompts.texts]).pixels
        yield from np.array_split(change(true), 3)

    sampling = {"sampler": "consistency", "times": (), "guidance": 1.0, "ema": "0.05"}
    return Subject(
        sigma_data=0.5,
        pixels=pixels,
        questions=INFO.questions,
        quantization=lambda: "x*127.5+127.5",
        dataset="captioned_shapes",
        sampling=sampling,
    )


def test_agreement_of_true_others_and_mirrored_images():
    measure = CaptionAgreement(num_samples=NUM)
    true = measure(drawn(lambda x: x))
    for kind in ("seen", "held_out"):
        for share in ("agreement", "all_words"):
            assert true[f"{share}_{kind}"] == true[f"{share}_{kind}_real"]
        assert true[f"agreement_{kind}_real"] > 0.94
    others = measure(drawn(lambda x: np.roll(x, 1, axis=0)))
    assert others["agreement_seen"] < 0.4 and others["all_words_seen"] < 0.02
    assert others["agreement_seen_real"] == true["agreement_seen_real"]
    mirrored = measure(drawn(lambda x: x[:, :, ::-1]))
    assert mirrored["place_seen"] < 0.55 and mirrored["color_seen"] > 0.98
    protocol = true["protocol"]
    assert protocol["extractor_sha256"] == shapes_reader.WEIGHTS_SHA256
    assert protocol["num_samples"] == NUM and len(protocol["reference_sha256"]) == 64
