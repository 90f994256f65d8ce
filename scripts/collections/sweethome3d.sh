#!/usr/bin/env bash
# The furniture of Sweet Home 3D as a collection: about 790 OBJ files in 31 everyday categories, half of them textured.
#
#   bash scripts/collections/sweethome3d.sh DIR        137 MB of downloads; needs apt-get, dpkg-deb, unzip, python3
#   gsmae build DIR --out BUILD --parts scripts/collections/sweethome3d_parts.json
#
# Licences differ by library and stand in DIR/sources.csv: CC0, CC BY 3.0, GPL-2+. Makers and texts:
# /usr/share/doc/sweethome3d-furniture/copyright of the package. No splits: `gsmae pack` makes some.
# The labels (sweethome3d_labels.csv) come from the makers' names and folders; expect some that are wrong.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(realpath -m "${1:?usage: $0 DIR [--categories C ...] [--least N] [--most N]}")
mkdir -p "$out/.packages" && cd "$out/.packages"
for package in sweethome3d-furniture sweethome3d; do
  ls "${package}"_*.deb >/dev/null 2>&1 || apt-get download "$package"
done
rm -rf unpacked && mkdir unpacked
for package in sweethome3d-furniture sweethome3d; do dpkg-deb -x "${package}"_*.deb unpacked/.deb; done
for library in unpacked/.deb/usr/share/sweethome3d/furniture/*.sh3f; do
  unzip -qo "$library" -d "unpacked/$(basename "$library" .sh3f)"
done
unzip -qo unpacked/.deb/usr/share/sweethome3d/sweethome3d.jar 'com/eteks/sweethome3d/io/*' -d unpacked/app
rm -r unpacked/.deb
python3 "$here/arrange.py" sweethome3d unpacked "$out" "${@:2}"
rm -r unpacked
