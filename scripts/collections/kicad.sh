#!/usr/bin/env bash
# The electronic parts of KiCad as a collection: about 6,100 VRML files in 43 categories, with parts in their materials.
#
#   bash scripts/collections/kicad.sh DIR        379 MB of downloads, 1.3 GB on disk; needs apt-get, dpkg-deb, python3
#   gsmae build DIR --out BUILD --parts scripts/collections/kicad_parts.json
#
# Licence: CC BY-SA 4.0 with KiCad's exception for designs (/usr/share/doc/kicad-packages3d/copyright of the package).
# Splits are by family, which differ in more than their numbers; categories with one family are for training only.
# Versions 6 and 7 of the package have VRML files; later ones may not.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(realpath -m "${1:?usage: $0 DIR [--categories C ...] [--least N] [--most N]}")
mkdir -p "$out/.packages" && cd "$out/.packages"
ls kicad-packages3d_*.deb >/dev/null 2>&1 || apt-get download kicad-packages3d
rm -rf unpacked && mkdir unpacked
# only the VRML files: the STEP files beside them are 4 GB
dpkg-deb --fsys-tarfile kicad-packages3d_*.deb | tar x -C unpacked --wildcards --strip-components=5 '*.wrl'
python3 "$here/arrange.py" kicad unpacked "$out" "${@:2}"
rm -r unpacked
