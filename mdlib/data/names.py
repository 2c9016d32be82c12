"""Names that hold on every machine: ids of pictures, which may name files, and names in messages.

A file system may tell names apart that another takes for one (`Cat` and `cat`; an accent that is
one character or two), and each has names of its own that it refuses. An id holds on all of them.
"""

import os
import re
import unicodedata
from collections import Counter

from mdlib.core.files import digest_bytes

LONGEST = 150  # bytes of an id: file systems end at 255, and artifacts add to it
_MARK = 1 + 12  # "~" and twelve digits
# what Windows refuses in names, control characters, other ends of lines, bytes of no character
_REFUSED = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u2028\u2029\ud800-\udfff]')
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])[ ]*(\.|$)")


def make_ids(files: list[str], *, places: list[str] | None = None) -> list[str]:
    """Make an id of each path: no two are one file anywhere, and each may name a file.

    An id is the path without its ending, "/" as "__". Where two paths would share it, or where it
    cannot name a file everywhere (too long, `con`, `a:b`, a line break), it is mended and ends in
    "~" and a digest of the path.

    Args:
        files: paths with "/".
        places: what tells two files of one path apart; None where all paths differ.

    Returns:
        An id for each path, of at most LONGEST bytes; it depends on its own path, and on whether
        another claims it.
    """
    plain = [without_ending(file).replace("/", "__") for file in files]
    claims = Counter(same_everywhere(name) for name in plain)
    return [
        name if claims[same_everywhere(name)] == 1 and _is_portable(name) else _mended(name, place)
        for name, place in zip(plain, places or files, strict=True)
    ]


def without_ending(file: str) -> str:
    """A path without the ending of its file name."""
    return os.path.splitext(file)[0]


def same_everywhere(name: str) -> str:
    """What two names have in common that some file system takes for one: case, and accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def shown(name: object) -> str:
    """A name for a message: one line, and text that every UTF-8 stream can write.

    What is no character of text becomes an escape, as `ascii` writes it.
    """
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]",
        lambda found: ascii(found[0])[1:-1],
        str(name),
    )


def _is_portable(name: str) -> bool:
    """Whether a name may name a file anywhere; "~" is kept for the names that are mended."""
    return not (
        _REFUSED.search(name)
        or _DEVICE.match(name)
        or "~" in name
        or name.startswith(".")
        or name.endswith((".", " "))
        or not name.strip()
        or len(name.encode()) > LONGEST
    )


def _mended(name: str, place: str) -> str:
    """What may be kept of a name, and a digest of where its file lies."""
    kept = _REFUSED.sub("_", name)
    if _DEVICE.match(kept) or kept.startswith("."):
        kept = f"_{kept}"
    kept = kept.encode()[: LONGEST - _MARK].decode(errors="ignore")
    return f"{kept}~{digest_bytes(place.encode(errors='surrogatepass'))[:12]}"
