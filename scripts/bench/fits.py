"""Quality and cost of a build, from its records: percentiles over the objects, and the worst of them.

python scripts/bench/fits.py BUILD [--worst 10]
"""

import argparse
import statistics
from pathlib import Path

import numpy as np

from gsmae.files import read_json

COLUMNS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "gaussians": "Gaussians", "iterations": "iterations", "seconds": "s"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--worst", type=int, default=10)
    a = parser.parse_args()
    records = [read_json(path) for path in sorted((a.build / "records").rglob("*.json"))]
    done = [r for r in records if r["status"] == "done"]
    print(
        f"{len(done)} of {len(records)} objects\n\n| | 10 % | median | 90 % | mean |\n| --- | --- | --- | --- | --- |"
    )
    for key, name in COLUMNS.items():
        values = [r[key] for r in done]
        low, middle, high = np.percentile(values, (10, 50, 90))
        digits = 4 if key == "ssim" else 0 if key in ("gaussians", "iterations") else 2
        print(f"| {name} | {low:.{digits}f} | {middle:.{digits}f} | {high:.{digits}f} "
              f"| {statistics.fmean(values):.{digits}f} |")  # fmt: skip
    print("\n| worst | PSNR (dB) | Gaussians |\n| --- | --- | --- |")
    for r in sorted(done, key=lambda r: r["psnr"])[: a.worst]:
        print(f"| {r['uid']} | {r['psnr']:.2f} | {r['gaussians']} |")
    for r in records:
        if r["status"] != "done":
            print(f"\nfailed: {r['uid']}, {r['stage']}: {r['reason']}")


if __name__ == "__main__":
    main()
