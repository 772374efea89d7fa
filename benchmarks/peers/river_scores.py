"""Scores of river's GaussianScorer, hour by hour. Runs in the peers' environment: python river_scores.py FOLDER HOURS.

Reads FOLDER/series.npy, float64 (item, hour); writes FOLDER/scores.npy of the same shape, 0 in the first HOURS.
"""

import sys
from pathlib import Path

import numpy as np
from river import anomaly


def main(folder: Path, hours: int) -> None:
    series = np.load(folder / "series.npy")
    scores = np.zeros(series.shape)
    for item, own in enumerate(series.tolist()):
        detector = anomaly.GaussianScorer(window_size=hours, grace_period=hours)
        for hour, value in enumerate(own):
            if hour >= hours:
                # Its score is 2 |F(value) - 1/2|, whatever side: only what is above counts here.
                mean = detector.gaussian.mu
                try:
                    score = detector.score_one(None, value)
                except TypeError:  # its rolling variance has fallen below 0 by rounding: every hour was the same
                    score = 1.0
                scores[item, hour] = score if value > mean else 0.0
            detector.learn_one(None, value)
    np.save(folder / "scores.npy", scores)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
