"""Frozen features of pretrained runs, block by block: how well they tell classes apart, and how spread they are.

    python scripts/studies/features.py PACK RUN ... [--out FILE.json]

For each run, as it is and with the running statistics of the tokenizer's BatchNorm taken anew from all groups of the
training split ("fresh"), after the tokenizer (0), after each block and after the last (which is what `gsmae probe`
takes, for all are normed by the last norm but 0):

accuracy  of a linear SVM of [max, mean] over the tokens, on val, where C is chosen, too: optimistic, alike for all
rank      effective rank of the standardised vectors of train
within    share of the tokens' variance that is within objects: near 0, an object's tokens are all alike

Only train and val are read. Prints one JSON object a run.
"""

import argparse
import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.datasets import SplatDataset
from gsmae import zoo
from gsmae.cli.inputs import placed, stream_of
from gsmae.models import Encoder, effective_rank
from gsmae.probes import Features, feature, fit


@torch.no_grad()
def levels(encoder: Encoder, points: Tensor) -> list[Tensor]:
    """Tokens [B, G, D] after the tokenizer and after each block."""
    groups = encoder.group(points)
    tokens = encoder.tokenize(groups.points)
    depth = len(encoder.blocks)
    return [tokens, *encoder.taps(tokens, encoder.locate(groups.centers), range(1, depth + 1))]


@torch.no_grad()
def fresh(encoder: Encoder, stream) -> Encoder:
    """The encoder with BatchNorm's statistics averaged over a pass through all groups, each batch alike."""
    encoder = copy.deepcopy(encoder)
    for module in encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    for batch in stream.epoch(0):
        encoder.tokenize(encoder.group(batch.points).points)
    return encoder.eval()


def look(encoder: Encoder, streams: dict) -> list[dict]:
    """What is said of each level."""
    depth = len(encoder.blocks)
    vectors: dict[str, list[list[np.ndarray]]] = {split: [[] for _ in range(depth + 1)] for split in streams}
    labels: dict[str, list[np.ndarray]] = {split: [] for split in streams}
    inside, total = np.zeros(depth + 1), np.zeros(depth + 1)
    for split, stream in streams.items():
        for batch in stream.epoch(0):
            labels[split].append(batch.labels.numpy())
            for level, tokens in enumerate(levels(encoder, batch.points)):
                vectors[split][level].append(feature(tokens).numpy())
                inside[level] += float((tokens - tokens.mean(dim=1, keepdim=True)).square().mean()) * len(tokens)
                total[level] += float((tokens - tokens.mean(dim=(0, 1))).square().mean()) * len(tokens)
    found = []
    for level in range(depth + 1):
        train, val = (
            Features(np.concatenate(vectors[s][level]), np.concatenate(labels[s]), ()) for s in ("train", "val")
        )  # fmt: skip
        best = fit("svm", train, val)
        spread = torch.from_numpy((train.vectors - train.vectors.mean(0)) / (train.vectors.std(0) + 1e-9))
        found.append({
            "level": level, "accuracy": round(100 * best.tried[best.parameter], 1),
            "rank": round(effective_rank(spread), 1), "within": round(inside[level] / total[level], 3),
        })  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    sets = {split: SplatDataset(a.pack, split=split) for split in ("train", "val")}
    found = []
    for run in a.runs:
        trained = zoo.load_trained(run)
        config = trained.train.model_copy(update={"batch_size": 64})
        place = placed([*sets.values()], "cpu")
        streams = {split: stream_of(one, trained.spec, config, None, None, place) for split, one in sets.items()}
        encoder = trained.encoder.eval()
        rows = {"run": run.name, "as it is": look(encoder, streams)}
        rows["fresh"] = look(fresh(encoder, streams["train"]), streams)
        found.append(rows)
        json.dump(rows, sys.stdout)
        print(flush=True)
    if a.out:
        a.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
