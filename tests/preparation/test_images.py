"""What becomes of the pixels of image files."""

import numpy as np
import pytest
from PIL import Image

from scm_jax.datasets.preparation.readers.decode import decode_image
from scm_jax.datasets.preparation.readers.items import ItemError
from tests.preparation.raw_data import encode, picture


def test_lossless_formats_give_their_pixels():
    for image_format in ("PNG", "BMP", "PPM", "TIFF"):
        decoded = decode_image(encode(picture(1), image_format), "a")
        np.testing.assert_array_equal(decoded, picture(1))
        assert decoded.flags.writeable


def test_grey_is_repeated_and_colours_become_grey_by_their_luminance():
    grey = picture(0)[..., :1]
    three = decode_image(encode(grey), "a")
    np.testing.assert_array_equal(three, np.repeat(grey, 3, axis=-1))
    np.testing.assert_array_equal(decode_image(encode(grey), "a", channels=1), grey)
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    grey = decode_image(encode(colours), "a", channels=1)
    assert grey[0, :, 0].tolist() == [76, 150, 29]  # of 255: 0.299, 0.587, 0.114


def test_transparency_leaves_the_colour_below_also_in_palettes():
    expected = [[[40, 50, 60], [10, 20, 30]]]
    pixels = np.array([[[40, 50, 60, 0], [10, 20, 30, 128]]], np.uint8)
    assert decode_image(encode(pixels), "a").tolist() == expected
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([1, 0])
    for options in ({}, {"transparency": bytes([0, 255])}):
        assert decode_image(encode(image, **options), "a").tolist() == expected


def test_cmyk():
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert decode_image(encode(image, "TIFF"), "a")[0, 0].tolist() == [0, 255, 255]
    decoded = decode_image(encode(image, "JPEG"), "a")
    assert np.abs(decoded[0, 0].astype(int) - [0, 255, 255]).max() <= 2


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(image_format):
    levels = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    decoded = decode_image(encode(levels, image_format), "a")
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert decoded.shape == (1, 6, 3)


def test_the_orientation_does_not_count():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    content = encode(picture(0), "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(content, "a"), picture(0))


def test_the_first_frame_counts():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(content, "a")[0, 0].tolist() == [255, 0, 0]


BAD = {
    "empty": b"",
    "text": b"no image",
    "a PNG that is cut off": encode(picture(0))[:-30],
    "a JPEG that is cut off": encode(picture(0, 64, 64), "JPEG")[:-60],
    "floats": encode(np.zeros((2, 2), np.float32), "TIFF"),
    "32 bits": encode(np.array([[70000]], np.int32), "TIFF"),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_bad_images_name_their_file(content):
    with pytest.raises(ItemError, match="x.zip: a.png: the image does not decode"):
        decode_image(content, "x.zip: a.png")
