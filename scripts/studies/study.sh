#!/usr/bin/env bash
# The study of docs/study.md from nothing: meshes, splats, packs, statistics, all runs, the tables and the figure.
#
#   bash scripts/studies/study.sh DIR        hours on two cores; give it again and it goes on where it stopped
#
# DIR/tables/{choices,input,labels,parts}/table.md are the tables, DIR/stats* the statistics of the centres.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$root/scripts/environment.sh"
out=${1:?usage: $0 DIR}
mkdir -p "$out"

gsmae() { # some objects or arms that failed (4) have been told
  local code=0
  command gsmae "$@" || code=$?
  [[ $code == 0 || $code == 4 ]] || exit "$code"
}

if [[ ! -f $out/meshes/sources.csv ]]; then
  bash "$root/scripts/collections/sweethome3d.sh" "$out/meshes" --least 15
fi
gsmae build "$out/meshes" --out "$out/build" --profile tiny --parts "$root/scripts/collections/sweethome3d_parts.json"
gsmae pack "$out/build" --out "$out/splats" --val 0.25
gsmae pack "$out/build" --out "$out/points" --val 0.25 --points mesh
gsmae stats "$out/build" --out "$out/stats" --compare 715
for table in choices input labels parts; do
  gsmae reproduce "$root/scripts/studies/$table.yaml" "$out/splats" --points "$out/points" --out "$out/tables" \
    --recipe tiny --config "$root/scripts/studies/sweethome3d.yaml" --seeds 0 1 2
done
python "$root/scripts/studies/figure.py" "$out"/tables/{choices,input}/table.json --out "$out/study.png"
