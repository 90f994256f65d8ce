"""The picture in the README: meshes above, the splats that were made of them below.

python scripts/picture.py BUILD docs/images/splats.png
"""

import sys
from pathlib import Path

from PIL import Image

SHOWN = (
    "chair/deckChair", "table/tableWithTablecloth", "lamp/outdoorLamp", "cabinet/glassDoorCabinet",
    "container/crate", "chair/chair2", "lamp/stoneLantern", "table/bedsideTable2",
)  # fmt: skip


def main(build: Path, out: Path) -> None:
    pictures = [Image.open(build / "views" / f"{uid}.png") for uid in SHOWN]
    size = pictures[0].height
    sheet = Image.new("RGB", (size * len(pictures), 2 * size), "white")
    for column, picture in enumerate(pictures):
        for row in range(2):
            sheet.paste(picture.crop((row * size, 0, (row + 1) * size, size)), (column * size, row * size))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
