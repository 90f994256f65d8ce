#!/usr/bin/env bash
# The main job, from real meshes to a trained classifier and part segmenter, in one folder to look at.
#
#   bash scripts/quickstart.sh [OUT]      default OUT: quickstart
#
# Safe to interrupt and to run again: every step goes on where it stopped. Under ten minutes on two cores.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
out=${1:-quickstart}
mkdir -p "$out"
note="20 objects, of which 5 are for testing: accuracies say that every stage runs, not how well it would do."

run() { # a verb that finishes with some objects failed (4) has told so, and the rest goes on
  echo "— gsmae $1${2:+ $2}" >&2
  local code=0
  gsmae "$@" || code=$?
  [[ $code == 0 || $code == 4 ]] || exit "$code"
}

run build "$root/examples/meshes" --out "$out/build" --profile fast --parts "$root/examples/parts.json"
run pack "$out/build" --out "$out/pack"
run check "$out/build"
run check "$out/pack"
run pretrain "$out/pack" --out "$out/runs/pretrain" --recipe tiny
run finetune classify "$out/pack" --out "$out/runs/classify" --init "$out/runs/pretrain" --recipe tiny
run finetune segment "$out/pack" --out "$out/runs/segment" --init "$out/runs/pretrain" --recipe tiny
run evaluate "$out/runs/pretrain" "$out/pack"
run evaluate "$out/runs/classify" "$out/pack"
run evaluate "$out/runs/segment" "$out/pack"
run reconstruct "$out/runs/pretrain" "$out"/build/splats/{chair/deckChair,lamp/lantern,table/table}.ply \
  --out "$out/runs/pretrain/reconstructions"
run embed "$out/runs/pretrain" "$out/build/splats" --out "$out/embeddings.parquet"
run report "$out/build" "$out/pack" "$out"/runs/* --out "$out/report.html" --note "$note"

cat <<EOF

$out/build/splats      Gaussian splats (.ply), for SuperSplat, gsplat, ...
$out/pack              shards and index
$out/runs              checkpoints, metrics, results
$out/report.html       all of it on one page: open it in a browser
EOF
