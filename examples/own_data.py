"""Write own_data.npz beside this file: chemical analyses of 178 wines from three growers.

Any .npz with x (one row a sample) and y (one label a row) will do; x_test and y_test are optional.

    python examples/own_data.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_wine


def main() -> None:
    """Standardise the 13 measurements by the training rows, keep every fifth row for testing, write."""
    x, y = load_wine(return_X_y=True)
    testing = np.arange(len(y)) % 5 == 4
    x = (x - x[~testing].mean(0)) / x[~testing].std(0)
    x, y = x.astype(np.float32), y.astype(np.int64)
    target = Path(__file__).with_suffix(".npz")
    np.savez_compressed(target, x=x[~testing], y=y[~testing], x_test=x[testing], y_test=y[testing])
    print(f"{target}: {int((~testing).sum())} samples to train on, {int(testing.sum())} to test on")


if __name__ == "__main__":
    main()
