"""The fonts inside a PDF: Noto Sans, cut down to what the document shows before its weights are made.

The font varies in weight; making a weight of all its glyphs takes seconds, of a hundred of them milliseconds.
"""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import fontpkg_noto_sans
from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from fontTools.varLib.instancer import instantiateVariableFont

_FILE = Path(fontpkg_noto_sans.ROOT) / "files" / "NotoSans[wdth,wght].ttf"
WEIGHTS = {"": 400, "B": 700}
"""By style, as PDF knows them."""


def write_fonts(folder: Path, characters: Iterable[str]) -> dict[str, Path]:
    """Write one file for each style, with the glyphs of these characters; returns them by style."""
    options = Options(
        layout_features=[], drop_tables=["GSUB", "GPOS", "GDEF"], notdef_outline=True, recalc_timestamp=False
    )
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=sorted({ord(character) for character in characters}))
    small = BytesIO()
    with TTFont(_FILE, lazy=True, recalcTimestamp=False) as font:
        subsetter.subset(font)
        font.save(small)
    found = {}
    for style, weight in WEIGHTS.items():
        own = TTFont(BytesIO(small.getvalue()), recalcTimestamp=False)
        instantiateVariableFont(own, {"wght": weight, "wdth": 100}, inplace=True)
        found[style] = folder / f"noto-sans-{weight}.ttf"
        own.save(found[style])
    return found


def lacking(text: str) -> list[str]:
    """Characters that the font does not have, as code points."""
    with TTFont(_FILE, lazy=True) as font:
        has = set(font.getBestCmap() or {})
    return [f"U+{ord(one):04X}" for one in sorted(set(text)) if ord(one) not in has and one >= " "]
