"""What a file is: by its name, and by its first bytes where the name does not say."""

import importlib.util
import re
import struct
from typing import NamedTuple

HEAD_BYTES = 512
"""How much of a file's beginning `kind_of_bytes` looks at."""

HAS_HEIF = importlib.util.find_spec("pi_heif") is not None
"""Whether HEIC is read: the extra `heif` is installed."""


def _suffixes(text: str) -> frozenset[str]:
    return frozenset(f".{name}" for name in text.split())


IMAGE_SUFFIXES = _suffixes(
    "jpg jpeg jpe jif jfif jfi png apng webp avif tif tiff bmp pgm ppm pbm pnm gif jp2 j2k j2c jpc jpf jpx tga"
    + (" heic heif hif" if HAS_HEIF else "")
)
"""Names of images that are read, in small letters; what is called so is not opened to see whether it is one."""

_OTHER_SUFFIXES = _suffixes(
    # texts, tables, code, labels
    "txt md rst rtf log csv tsv json jsonl ndjson xml xmp yaml yml toml ini cfg conf html htm css js py pyc ipynb m r "
    "c h cpp java sh bat cmd tex bib url lnk webloc cls names lst idx aae thm "
    # documents, archives, programs
    "pdf ps eps doc docx odt xls xlsx ods ppt pptx pages zip tar gz tgz bz2 xz 7z rar zst iso exe dll so dmg msi apk "
    "jar torrent md5 sha1 sha256 sfv "
    # data and networks
    "npy npz mat pkl pickle pt pth ckpt safetensors onnx h5 hdf5 parquet arrow feather tfrecord tfrecords rec lmdb mdb "
    "db sqlite sqlite3 bin dat prototxt caffemodel "
    # films and sound
    "mp4 m4v mov avi mkv webm wmv flv mpg mpeg mts 3gp mp3 wav flac ogg opus m4a aac wma srt vtt"
)
# Raw photographs and slides are TIFF by their first bytes: what would be read of them is a preview, or all of a slide.
_RAW_SUFFIXES = _suffixes(
    "dng nef nrw cr2 cr3 crw arw srf sr2 raf orf rw2 raw pef srw x3f 3fr iiq erf kdc dcr mrw mos rwl"
)
_SLIDE_SUFFIXES = _suffixes("svs ndpi scn vms mrxs bif")

# Folders and files that other software leaves among images, besides those whose names begin with a dot.
_SYSTEM_NAMES = frozenset(
    {
        "@eadir",  # Synology's thumbnails
        "@__thumb",  # QNAP's
        "@recycle",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "lost.dir",
        "__macosx",
        "__pycache__",
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "icon\r",
    }
)

CONVERT = "convert it to JPEG or PNG"
"""The way out for most."""
_HEIF = f"pip install 'lit-cnn[heif]' to have it read, or {CONVERT}"


class Kind(NamedTuple):
    """What a file is.

    Attributes:
        name: In words, such as `JPEG` or `a ZIP archive`.
        family: `read`: an image of a format that is read. `unread`: an image of another. `pointer`: what stands for an
            image that is kept elsewhere. `other`: no image.
        way_out: What is to be done about an image that is not read, or a pointer.
    """

    name: str
    family: str
    way_out: str = ""


UNKNOWN = Kind("something else", "other")
TIFF = Kind("TIFF", "read")
_IMAGE = Kind("an image", "read")
_OTHER = Kind("no image", "other")
_HEIC = Kind("HEIC", "read" if HAS_HEIF else "unread", "" if HAS_HEIF else _HEIF)
_VIDEO = Kind("a video", "other")
_RAW = Kind("a raw photograph", "unread", CONVERT)
_SLIDE = Kind("a slide of many gigapixels", "unread", "cut it into tiles")

# (where, first bytes, what it is).
_MARKS = (
    (0, b"\xff\xd8\xff", Kind("JPEG", "read")),
    (0, b"\x89PNG\r\n\x1a\n", Kind("PNG", "read")),
    (0, b"GIF8", Kind("GIF", "read")),
    (8, b"CR\x02", _RAW),
    (0, b"II*\x00", TIFF),
    (0, b"MM\x00*", TIFF),
    (0, b"II+\x00", TIFF),
    (0, b"MM\x00+", TIFF),
    (0, b"\x00\x00\x00\x0cjP  \r\n\x87\n", Kind("JPEG 2000", "read")),
    (0, b"\xff\x4f\xff\x51", Kind("JPEG 2000", "read")),
    (0, b"\xff\x0a", Kind("JPEG XL", "unread", CONVERT)),
    (0, b"\x00\x00\x00\x0cJXL \r\n\x87\n", Kind("JPEG XL", "unread", CONVERT)),
    (0, b"II\xbc", Kind("JPEG XR", "unread", CONVERT)),
    (0, b"8BPS", Kind("Photoshop's PSD", "unread", CONVERT)),
    (128, b"DICM", Kind("DICOM", "unread", "convert it to PNG, with the window that shows what matters")),
    (0, b"FUJIFILMCCD-RAW", _RAW),
    (0, b"IIRO", _RAW),
    (0, b"IIU\x00", _RAW),
    (0, b"v/1\x01", Kind("OpenEXR", "unread", CONVERT)),
    (0, b"#?RADIANCE", Kind("Radiance HDR", "unread", CONVERT)),
    (0, b"SIMPLE  =", Kind("FITS", "unread", CONVERT)),
    (0, b"qoif", Kind("QOI", "unread", CONVERT)),
    (0, b"DDS ", Kind("DDS, a texture", "unread", CONVERT)),
    (0, b"\x00\x00\x01\x00", Kind("an icon", "unread", CONVERT)),
    (0, b"gimp xcf", Kind("GIMP's XCF", "unread", CONVERT)),
    (0, b"AT&TFORM", Kind("DjVu", "unread", CONVERT)),
    (0, b"version https://git-lfs", Kind("a pointer of Git LFS", "pointer", "run git lfs pull in its folder")),
    (0, b"/annex/objects/", Kind("a pointer of git-annex", "pointer", "run git annex get in its folder")),
    (0, b"%PDF", Kind("a PDF", "other")),
    (0, b"%!PS", Kind("PostScript", "other")),
    (0, b"PK\x03\x04", Kind("a ZIP archive", "other")),
    (0, b"\x1f\x8b", Kind("a gzip archive", "other")),
    (0, b"\x7fELF", Kind("a program", "other")),
    (0, b"\x93NUMPY", Kind("a NumPy array", "other")),
    (0, b"\x89HDF\r\n", Kind("HDF5", "other")),
    (257, b"ustar", Kind("a tar archive", "other")),
)
_PNM = re.compile(rb"P[1-6]\s(?:#[^\n]*\n|\s)*\d+\s")
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2"}


def suffix_of(name: str) -> str:
    """Returns what follows the last dot of a file's name, with it, in small letters; nothing if there is none."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot >= 0 else ""


def is_system_name(name: str) -> bool:
    """Whether a file or folder is hidden, or what other software leaves among images: thumbnails, caches."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def kind_of_name(name: str) -> Kind | None:
    """Returns what a file is whose name says it all, without a look into it; None where its first bytes must say."""
    suffix = suffix_of(name)
    if suffix in IMAGE_SUFFIXES:
        return _IMAGE
    if suffix in _OTHER_SUFFIXES:
        return _OTHER
    if suffix in _RAW_SUFFIXES:
        return _RAW
    return _SLIDE if suffix in _SLIDE_SUFFIXES else None


def kind_of_bytes(start: bytes) -> Kind:
    """Returns what a file is.

    Args:
        start: Its first `HEAD_BYTES` bytes, or all of them.
    """
    for place, mark, kind in _MARKS:
        if start.startswith(mark, place):
            return kind
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return Kind("WebP", "read")
    if start[4:8] == b"ftyp":
        return _of_iso_media(start)
    if start[:2] == b"BM" and start[6:10] == bytes(4):
        return Kind("BMP", "read")
    if _PNM.match(start):
        return Kind("PNM", "read")
    if looks_like_tga(start):
        return Kind("TGA", "read")
    return _of_text(start)


def looks_like_tga(start: bytes) -> bool:
    """Whether first bytes are a TGA's header, which has no mark: whether all its fields make sense.

    No text does, as its second byte is 0 or 1.
    """
    if len(start) < 18:
        return False
    has_map, image_type, first, length, map_bits, _, _, width, height, bits, flags = struct.unpack_from(
        "<xBBHHBHHHHBB", start
    )
    if not width or not height or flags & 0xC0:
        return False
    if has_map == 1:
        return image_type in (1, 9) and bits == 8 and map_bits in (15, 16, 24, 32) and 0 < length <= 256 - first
    depths = {2: (16, 24, 32), 10: (16, 24, 32), 3: (8, 16), 11: (8, 16)}.get(image_type, ())
    return has_map == 0 and not (first or length or map_bits) and bits in depths


def _of_iso_media(start: bytes) -> Kind:
    """Returns what a file of boxes is: HEIC, AVIF and films begin alike."""
    end = min(len(start), max(16, int.from_bytes(start[:4], "big")))
    brands = {start[8:12], *(start[place : place + 4] for place in range(16, end, 4))}
    if brands & {b"avif", b"avis"}:
        return Kind("AVIF", "read")
    if start[8:12] == b"crx ":
        return _RAW
    return _HEIC if brands & _HEIF_BRANDS else _VIDEO


def _of_text(start: bytes) -> Kind:
    try:
        # The last character may be cut.
        text = start.decode("utf-8", "ignore" if len(start) >= HEAD_BYTES else "strict").lstrip("\ufeff \r\n\t").lower()
    except UnicodeDecodeError:
        return UNKNOWN
    if "\x00" in text:
        return UNKNOWN
    if text.startswith(("<svg", "<?xml")) and "<svg" in text:
        return Kind("SVG", "unread", CONVERT)
    return Kind("a web page" if text.startswith(("<!doctype html", "<html")) else "text", "other")
