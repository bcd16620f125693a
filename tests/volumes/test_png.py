import io

import numpy as np
import pytest
from PIL import Image

from volumes.sources import png
from volumes.sources.headers import Header, ImageError


def _encoded(pixels, **options):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", **options)
    return data.getvalue()


def _pixels(dtype=np.uint8, shape=(31, 47)):
    # Blocks with noise: neither incompressible nor trivial.
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 9, shape)
    return (noise + np.arange(shape[1]) // 5 * 7).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_come_back_as_they_were(dtype):
    pixels = _pixels(dtype) * dtype(3)
    data = _encoded(pixels)
    found = png.decode(data)
    np.testing.assert_array_equal(found, pixels)
    assert found.dtype == dtype
    assert png.parse_header(data[: png.HEADER_BYTES]) == Header(
        "PNG", 47, 31, "grey", 8 * np.dtype(dtype).itemsize, np.dtype(dtype).name
    )


def test_no_flipped_bit_goes_unnoticed():
    data = _encoded(_pixels())
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(data), 300):
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(ImageError):
            png.decode(bytes(damaged))


def test_every_cut_is_noticed():
    data = _encoded(_pixels())
    for keep in [*range(60), *range(60, len(data), 37), len(data) - 1]:
        with pytest.raises(ImageError, match="ends within|cut short|is not a PNG|empty"):
            png.decode(data[:keep])


def test_a_section_larger_than_pillows_limit_is_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    pixels = _pixels()
    np.testing.assert_array_equal(png.decode(_encoded(pixels)), pixels)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("RGB", "is RGB with 8 bits"),
        ("P", "is palette with 8 bits"),
        ("LA", "is grey with alpha with 8 bits"),
        ("RGBA", "is RGBA with 8 bits"),
        ("1", "is grey with 1 bits"),
    ],
)
def test_other_modes_are_named(mode, message):
    data = io.BytesIO()
    Image.fromarray(_pixels()).convert(mode).save(data, "PNG")
    with pytest.raises(ImageError, match=message):
        png.decode(data.getvalue())


def test_an_inconsistent_header_is_refused():
    data = bytearray(_encoded(_pixels()))
    data[19] += 1
    with pytest.raises(ImageError, match="has a damaged header"):
        png.parse_header(bytes(data))
    with pytest.raises(ImageError, match=r"is not a PNG file \(it begins with b'II"):
        png.parse_header(b"II*\0" + bytes(40))
