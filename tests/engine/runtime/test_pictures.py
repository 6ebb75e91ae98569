"""Image files: the pixels that Pillow and transformers see, or one line, whatever the file has."""

from __future__ import annotations

import base64
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from engine.runtime import pictures
from engine.runtime.errors import BareloopError
from engine.runtime.pictures import data_url, parse_data_url, picture_bytes, picture_size, read_picture

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
ORIENTATION = 0x0112
QUICK = {"PNG": {"compress_level": 1}, "WEBP": {"lossless": True, "quality": 0, "method": 0}}  # ways to write


def noise(*shape: int, seed: int = 0, levels: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, levels, shape, dtype=np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, colour: int, depth: int, rows: bytes, chunks: bytes = b"") -> bytes:
    """A PNG file with these rows, of which each begins with the byte of its filter."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def transformers_rgb(data: bytes) -> np.ndarray:
    """What transformers makes of a file: turned as EXIF says, alpha on white."""
    from transformers.image_transforms import convert_to_rgb

    return convert_to_rgb(ImageOps.exif_transpose(Image.open(io.BytesIO(data))), return_numpy=True)


def palette_image() -> Image.Image:
    image = Image.fromarray(noise(30, 20, levels=8)).convert("P")
    image.putpalette(noise(24).tolist())
    return image


IMAGES = {
    "colours": Image.fromarray(noise(30, 20, 3)),
    "grey": Image.fromarray(noise(30, 20)),
    "black and white": Image.fromarray(noise(30, 20)).convert("1"),
    "palette": palette_image(),
    "alpha": Image.fromarray(noise(300, 20, 4), "RGBA"),  # more rows than are blended at once
    "grey with alpha": Image.fromarray(noise(30, 20, 2), "LA"),
    "CMYK": Image.fromarray(noise(30, 20, 4), "CMYK"),
}
FILES = {
    **{f"{name}, {kind}": (image, kind, {}) for name, image in IMAGES.items() for kind in FORMATS},
    "a transparent colour of a palette": (IMAGES["palette"], "PNG", {"transparency": 3}),
    "half transparent colours of a palette": (IMAGES["palette"], "PNG", {"transparency": bytes(range(0, 240, 30))}),
    "a transparent colour": (IMAGES["colours"], "PNG", {"transparency": tuple(noise(30, 20, 3)[0, 0].tolist())}),
    "a transparent grey": (IMAGES["grey"], "PNG", {"transparency": int(noise(30, 20)[0, 0])}),
    "a transparent GIF": (IMAGES["palette"], "GIF", {"transparency": 3}),
    "a progressive JPEG": (IMAGES["colours"], "JPEG", {"progressive": True}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_picture_has_the_pixels_that_transformers_sees(name):
    image, kind, options = FILES[name]
    try:
        data = saved(image, kind, **options)
    except (OSError, ValueError):
        pytest.skip(f"{kind} does not have {image.mode}")
    picture = read_picture(data)
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), transformers_rgb(data))
    assert picture_size(data) == picture.size == image.size


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_exif_says(kind, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = saved(IMAGES["colours"], kind, exif=exif)
    picture = read_picture(data)
    np.testing.assert_array_equal(np.asarray(picture), transformers_rgb(data))
    assert picture_size(data) == picture.size == ((20, 30) if orientation < 5 else (30, 20))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # pytest resets the filter that programs have
@pytest.mark.parametrize("tags", [b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\xff"])
def test_damaged_exif_does_not_matter(tags):
    data = saved(IMAGES["colours"], "JPEG", exif=b"Exif\0\0" + tags)
    plain = saved(IMAGES["colours"], "JPEG")
    assert read_picture(data).tobytes() == read_picture(plain).tobytes()
    assert picture_size(data) == (20, 30)


def test_the_first_frame_of_an_animation_is_the_picture():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        red, green, blue = read_picture(data).getpixel((0, 0))
        assert red > 240, kind
        assert max(green, blue) < 10, kind


def test_sixteen_bits_become_eight_by_their_upper_half():
    levels = np.random.default_rng(0).integers(0, 2**16, (30, 20)).astype(">u2")
    transparent = chunk(b"tRNS", struct.pack(">H", levels[0, 0]))
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    expected = (levels >> 8).astype(np.uint8)
    for chunks in b"", transparent:
        if chunks:
            expected[levels == levels[0, 0]] = 255
        picture = read_picture(png(20, 30, 0, 16, rows, chunks))
        np.testing.assert_array_equal(np.asarray(picture), np.repeat(expected[..., None], 3, axis=2))
    colours = np.random.default_rng(1).integers(0, 2**16, (30, 20, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in colours)
    np.testing.assert_array_equal(np.asarray(read_picture(png(20, 30, 2, 16, rows))), colours >> 8)


@pytest.mark.parametrize(("width", "height"), [(1, 100_000), (100_000, 1)])
def test_an_image_of_one_line_is_read(width, height):
    assert read_picture(saved(Image.new("L", (width, height), 7))).size == (width, height)


@pytest.mark.parametrize(
    ("width", "height", "limit"),
    [(1, 100_001, "a side"), (8_000, 7_000, "50,000,000 pixels"), (10**6, 10**6, "pixels"), (2**31 - 1, 1, "pixels")],
)
def test_a_bomb_is_refused_by_its_header(width, height, limit):
    for function in (read_picture, picture_size, data_url):
        with pytest.raises(BareloopError, match=limit) as caught:
            function(png(width, height, 2, 8, b"\0" * 1000))
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it tells a process's memory")
@pytest.mark.parametrize(
    ("mode", "kind"), [("RGB", "PNG"), ("LA", "PNG"), ("CMYK", "JPEG"), ("P", "GIF"), ("RGBA", "WEBP")]
)
def test_the_largest_image_takes_bounded_memory(tmp_path, mode, kind):
    """Its decoded pixels twice, 4 bytes each, and what Python, Pillow and the file take; WebP's decoder has 2 more."""
    program = """
import re, sys
from pathlib import Path
from engine.runtime.pictures import MAX_PIXELS, read_picture
read_picture(sys.argv[1])
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024, MAX_PIXELS)
"""
    path = tmp_path / "largest"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path.write_bytes(saved(Image.new(mode, (10_000, 5_000)), kind, exif=exif, **QUICK.get(kind, {})))
    output = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    peak, pixels = map(int, output.stdout.split())
    assert peak < (4 if kind == "WEBP" else 2) * 4 * pixels + 150e6


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded():
    """A scan has 10 bytes, and goes over all pixels: 20 MB of them would take hours."""
    data = saved(Image.new("L", (4_000, 4_000)), "JPEG", progressive=True)
    scan = data[data.rindex(pictures.SCAN) : -2]
    assert read_picture(data[:-2] + 3 * scan + data[-2:]).size == (4_000, 4_000)
    for function in (read_picture, picture_size, data_url):
        with pytest.raises(BareloopError, match=r"^the image is a JPEG file of 1,0\d\d scans, .*; save it anew$"):
            function(data[:-2] + 1_000 * scan + data[-2:])


def test_a_damaged_file_is_one_line_or_a_picture():
    """Cut anywhere, with bytes changed anywhere, with another format's beginning."""
    rng = np.random.default_rng(0)
    refused = 0
    for kind in FORMATS:
        data = saved(IMAGES["palette"] if kind == "GIF" else IMAGES["colours"], kind)
        damaged = [data[:length] for length in (0, 1, 4, 12, 30, len(data) // 2, len(data) - 20)]
        for _ in range(200):
            changed = bytearray(data)
            for place in rng.integers(0, min(len(data), 200), 3):
                changed[place] = rng.integers(256)
            damaged.append(bytes(changed))
        for content in damaged:
            try:
                picture = read_picture(content)
            except BareloopError as error:
                assert str(error).startswith("the image ")
                assert "\n" not in str(error)
                refused += 1
            else:
                assert picture.mode == "RGB"
    assert refused > 300


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "TGA", "PDF", "EPS"])
def test_other_formats_never_reach_their_parsers(kind):
    with pytest.raises(BareloopError, match="is not a PNG, JPEG, WebP, GIF or BMP file"):
        read_picture(saved(IMAGES["colours"].resize((16, 16)), kind))


@pytest.mark.parametrize("content", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\0" * 1000])
def test_what_is_no_image_is_refused(content):
    with pytest.raises(BareloopError, match="the image is not a PNG, JPEG, WebP, GIF or BMP file"):
        read_picture(content)


def test_files_are_read_by_path_and_refused_by_name(tmp_path, monkeypatch):
    data = saved(IMAGES["colours"])
    path = tmp_path / "cat.png"
    path.write_bytes(data)
    assert picture_bytes(path) == picture_bytes(str(path)) == picture_bytes(data) == data
    assert read_picture(path).tobytes() == read_picture(data).tobytes()
    with pytest.raises(BareloopError, match=r"cannot read the image '.*/dog.png': No such file"):
        read_picture(tmp_path / "dog.png")
    with pytest.raises(BareloopError, match=r"is not a file"):
        read_picture(tmp_path)
    with pytest.raises(BareloopError, match=r"cannot read the image 'a\\x00b'"):
        read_picture("a\0b")
    with pytest.raises(BareloopError, match=r"the image '.*text.txt' is not a PNG"):
        (tmp_path / "text.txt").write_text("hello")
        read_picture(tmp_path / "text.txt")
    monkeypatch.setattr(pictures, "MAX_BYTES", len(data) - 1)
    for source in path, data, f"data:image/png;base64,{base64.b64encode(data).decode()}":
        with pytest.raises(BareloopError, match=r"has more than .* MB"):
            picture_bytes(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names exist only on POSIX systems")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BareloopError, match="is not a file"):
        read_picture(tmp_path / "pipe.png")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_data_url_has_the_file_and_its_type(kind):
    data = saved(IMAGES["colours"], kind)
    url = data_url(data)
    assert url == f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
    assert parse_data_url(url) == picture_bytes(url) == data
    assert data_url(url) == url
    wrapped = url.replace(",", ",\n").replace("image/", "IMAGE/")
    assert parse_data_url(wrapped.replace(";base64", ";name=a.png;BASE64")) == data
    assert read_picture(url).size == picture_size(url) == (20, 30)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.org/cat.png", "no other is fetched, not 'https://example.org/cat.png'"),
        ("file:///etc/passwd", "no other is fetched"),
        ("/etc/passwd", "no other is fetched"),
        ("data:text/html;base64,aGk=", "no other is fetched"),
        ("data:image/png,hello", "no other is fetched"),
        ("data:image/png;base64", "no other is fetched"),
        ("data:image/png;" + "x=y;" * 1000 + "base64,aGk=", "no other is fetched"),
        ("data:image/png;base64,a", "is not base64"),
        ("data:image/png;base64,aG?=", "is not base64"),
        ("data:image/png;base64,aGk=é", "is not base64"),
        ("data:image/png;base64," + "a" * 31_000_000, "more than 20 MB"),
    ],
)
def test_other_urls_are_refused_and_never_fetched(url, message):
    with pytest.raises(BareloopError, match=message) as caught:
        parse_data_url(url)
    assert len(str(caught.value)) < 300


def test_a_photograph_of_several_pictures_is_jpeg():
    """MPO: what some cameras write, with a preview at the end."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert data_url(data).startswith("data:image/jpeg;base64,")
    assert read_picture(data).getpixel((0, 0))[0] > 240


def test_reading_pictures_loads_no_torch():
    program = "import sys, engine.runtime.pictures; print('torch' in sys.modules, 'PIL' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.split() == ["False", "False"]
