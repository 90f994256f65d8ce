"""What a fit on the CPU, the same with another seed, and fits on a GPU make of the same objects. Prints two tables.

    gsmae build MESHES --out CPU --device cpu
    gsmae build MESHES --out SEED --device cpu --seed 1
    gsmae build MESHES --out GPU --device cuda
    python scripts/bench/agreement.py CPU SEED GPU

Differences from the first build, object by object: how far apart two builds of the same kind are anyway is seen from
the second, which differs by its draws alone.
"""

import argparse
import json
import statistics
from pathlib import Path


def rows(build: Path) -> dict[str, dict[str, float]]:
    """Test PSNR and Gaussians by uid, from the ledgers of a build."""
    found = {}
    for ledger in sorted((build / "ledgers").iterdir()):
        for line in ledger.read_text().splitlines():
            row = json.loads(line)
            if row["status"] == "done":
                found[row["uid"]] = {"psnr": row["psnr"], "gaussians": row["gaussians"]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", type=Path, nargs="+")
    builds = {path.name: rows(path) for path in parser.parse_args().builds}
    first, *others = builds
    uids = sorted(set.intersection(*(set(found) for found in builds.values())))
    print(f"| object | {' | '.join(f'{name} dB, Gaussians' for name in builds)} |\n|{' --- |' * (len(builds) + 1)}")
    for uid in uids:
        cells = [f"{found[uid]['psnr']:.2f}, {found[uid]['gaussians']:.0f}" for found in builds.values()]
        print(f"| {uid} | {' | '.join(cells)} |")
    heads = (
        f"against {first}, {len(uids)} objects",
        "mean dB",
        "largest dB",
        "over 0.1 dB",
        "mean Gaussians %",
        "largest %",
    )
    print(f"\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for name in others:
        decibels = [builds[name][uid]["psnr"] - builds[first][uid]["psnr"] for uid in uids]
        share = [100 * (builds[name][uid]["gaussians"] / builds[first][uid]["gaussians"] - 1) for uid in uids]
        print(f"| {name} | {statistics.fmean(decibels):+.3f} | {max(map(abs, decibels)):.2f} | "
              f"{sum(abs(d) > 0.1 for d in decibels)} | {statistics.fmean(share):+.2f} | "
              f"{max(map(abs, share)):.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
