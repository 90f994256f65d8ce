#!/usr/bin/env bash
# The study of docs/study.md from nothing: meshes, splats, packs, statistics, all runs, the tables and the figures.
#
#   bash scripts/studies/study.sh DIR            the short study: hours on two cores
#   bash scripts/studies/study.sh DIR --long     the long one, which is for a GPU: eight runs at a time, ten minutes there
#   bash scripts/studies/study.sh DIR --trial    both with 40 objects and a few steps, minutes on two cores; its numbers
#                                                mean nothing
#
# Give it again and it goes on where it stopped. DIR/tables/*/table.md are the tables of the short study,
# DIR/long/*/table.md those of the long one, DIR/stats* the statistics of the centres.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$root/scripts/environment.sh"
out=${1:?usage: $0 DIR [--long | --trial]}
here=$root/scripts/studies
short=() long=() which=(--least 15) compare=715 seeds=(0 1 2)
case ${2:-} in
  "") short=(--recipe tiny --config "$here/sweethome3d.yaml") ;;
  --long) long=(--recipe small --config "$here/long/base.yaml" --jobs 8) ;;
  --trial)
    which=(--most 10 --categories bed cabinet chair door) compare=40 seeds=(0 1)
    short=(--recipe tiny --config "$here/trial.yaml") long=(--recipe tiny --config "$here/trial.yaml" --jobs 2)
    ;;
  *) echo "usage: $0 DIR [--long | --trial]" >&2 && exit 2 ;;
esac
mkdir -p "$out"

gsmae() { # some objects or arms that failed (4) have been told
  local code=0
  command gsmae "$@" || code=$?
  [[ $code == 0 || $code == 4 ]] || exit "$code"
}

tables() { # FOLDER OUT TABLE ... -- OPTIONS
  local folder=$1 to=$2 names=()
  shift 2
  while [[ $1 != -- ]]; do names+=("$1") && shift; done
  for table in "${names[@]}"; do
    gsmae reproduce "$folder/$table.yaml" "$out/splats" --points "$out/points" --out "$to" --seeds "${seeds[@]}" "${@:2}"
  done
}

if [[ ! -f $out/meshes/sources.csv ]]; then
  bash "$root/scripts/collections/sweethome3d.sh" "$out/meshes" "${which[@]}"
fi
gsmae build "$out/meshes" --out "$out/build" --profile tiny --parts "$root/scripts/collections/sweethome3d_parts.json"
gsmae pack "$out/build" --out "$out/splats" --val 0.25
gsmae pack "$out/build" --out "$out/points" --val 0.25 --points mesh
gsmae stats "$out/build" --out "$out/stats" --compare $compare
if [[ ${#short[@]} -gt 0 ]]; then
  tables "$here" "$out/tables" choices input labels parts -- "${short[@]}"
  python "$here/figure.py" "$out"/tables/{choices,input}/table.json --out "$out/short.png"
fi
if [[ ${#long[@]} -gt 0 ]]; then
  tables "$here/long" "$out/long" length input labels choices parts -- "${long[@]}"
  python "$here/figure.py" "$out"/long/{choices,input}/table.json --out "$out/long.png"
  python "$here/curve.py" "$out/long/length/table.json" --out "$out/length.png"
fi
