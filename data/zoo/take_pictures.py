"""How the pictures of data/zoo were taken from two packages of Debian, once.

The tables `cutouts.csv`, `subjects.csv` and `backgrounds.csv` name the source of each file. Unpack
`tuxpaint-stamps-default` and `tuxpaint-data` (`apt-get download`, `dpkg -x`) into one folder; then

    python data/zoo/take_pictures.py FOLDER

writes every file that is missing. Files that are there stay as they are.
"""

import csv
import sys
from pathlib import Path

from PIL import Image

ZOO = Path(__file__).parent
LARGEST = {"cutouts": 192, "subjects": 144, "backgrounds": 720}  # pixels of the longer side


def take(folder: str, source: Path, target: Path) -> None:
    """Crop a picture to what is not transparent or framed, make it smaller, and store it."""
    image = Image.open(source)
    if folder == "backgrounds":
        image = image.convert("RGB")
        bright = image.convert("L").point(lambda level: 255 if level > 64 else 0)
        image = image.crop(bright.getbbox())  # one has a black frame
    else:
        image = image.convert("RGBA")
        image = image.crop(image.getchannel("A").getbbox())
    image.thumbnail((LARGEST[folder], LARGEST[folder]), Image.Resampling.LANCZOS)
    target.parent.mkdir(exist_ok=True)
    image.save(target, quality=82)  # of JPEG and WebP; PNG has none


def main(packages: Path) -> None:
    """Write all files of the three tables that are missing."""
    for folder in LARGEST:
        with open(ZOO / f"{folder}.csv", newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                target = ZOO / folder / row["file"]
                if not target.is_file():
                    take(folder, packages / "usr/share/tuxpaint" / row["source"], target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
