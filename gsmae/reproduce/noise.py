"""How much of a difference is noise: spread over seeds, and the luck of which objects are in the test split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """One arm minus another over the seeds that both have; in the units of the metric.

    seeds     how many pairs
    mean      of the paired differences
    interval  half width of the 95 % t interval of `mean` over the seeds, test objects held fixed; None for one seed
    objects   standard error of `mean` over the test objects, seeds held fixed; None where answers are not known
    """

    seeds: int
    mean: float
    interval: float | None
    objects: float | None

    @property
    def beyond_noise(self) -> bool:
        """Whether the difference is larger than both kinds of noise, each at 95 %; False where one is not known.

        Two seeds know nothing of their spread and never suffice. Two sources checked one by one, not a joint test; with
        several arms, one in twenty passes by luck.
        """
        if self.interval is None or self.objects is None or self.seeds < 3:
            return False
        return abs(self.mean) > self.interval and abs(self.mean) > 1.96 * self.objects


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the standard deviation with n - 1; None for a single value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def compare(
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    our_answers: Mapping[int, Mapping[str, float]] | None = None,
    their_answers: Mapping[int, Mapping[str, float]] | None = None,
) -> Comparison | None:
    """Paired by seed, and by object where each object's score is given; None without a common seed.

    ours, theirs                 seed -> metric
    our_answers, their_answers   seed -> uid -> score of one object, e.g. 1.0 where the answer is right
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    mean, std = mean_std([ours[s] - theirs[s] for s in seeds])
    interval = None if std is None else _t95(len(seeds) - 1) * std / math.sqrt(len(seeds))
    objects = None
    if our_answers and their_answers and all(s in our_answers and s in their_answers for s in seeds):
        uids = sorted(our_answers[seeds[0]])
        if all(our_answers[s].keys() == their_answers[s].keys() == set(uids) for s in seeds):
            each = [sum(our_answers[s][u] - their_answers[s][u] for s in seeds) / len(seeds) for u in uids]
            spread = mean_std(each)[1]
            objects = None if spread is None else spread / math.sqrt(len(each))
    return Comparison(len(seeds), mean, interval, objects)


def binomial(share: float, objects: int) -> float:
    """Standard error of a share that was counted over so many objects."""
    return math.sqrt(share * (1 - share) / objects)


def _t95(degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, degrees))
