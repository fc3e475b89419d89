"""Find images of a test set that also stand in the training set.

    python scripts/check_leaks.py TRAIN TEST
    python scripts/check_leaks.py words.parquet words.parquet --train-split train --test-split test --output leaks.csv

TRAIN and TEST are anything that `load_words` reads: parquet files, LMDBs, folders with a table. Every pair is printed
with its texts, for a human to judge: the same word of the same sign, photographed twice, looks like a leak and may be
none. The exit status is 0 without leaks, 1 with some, 2 where something could not be read.
"""

import argparse
import csv
import sys
from dataclasses import astuple, fields

from epigraph.data.leaks import MAX_DISTANCE, MIN_CORRELATION, Leak, find_leaks
from epigraph.data.words import load_words

SHOWN = 50


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", metavar="TRAIN", help="training images, as load_words reads them")
    parser.add_argument("test", metavar="TEST", help="test images")
    for kind in ("train", "test"):
        parser.add_argument(f"--{kind}-split", help=f"only this split of {kind.upper()}")
        parser.add_argument(f"--{kind}-source", help=f"only this source of {kind.upper()}")
    parser.add_argument(
        "--max-distance", type=int, default=MAX_DISTANCE, help="differing bits of the hashes, of 63 (%(default)s)"
    )
    parser.add_argument(
        "--min-correlation", type=float, default=MIN_CORRELATION, help="of small grey pictures (%(default)s)"
    )
    parser.add_argument("--output", help="CSV file for all pairs")
    given = parser.parse_args(args)
    train = load_words(given.train, given.train_split, given.train_source)
    test = load_words(given.test, given.test_split, given.test_source)
    leaks, unread = find_leaks(train, test, given.max_distance, given.min_correlation, progress=True)
    for leak in leaks[:SHOWN]:
        print(f"{leak.test} {leak.test_text!r} = {leak.train} {leak.train_text!r}: {leak.distance} bits of 63 differ, "
              f"correlation {leak.correlation:.3f}")  # fmt: skip
    if len(leaks) > SHOWN:
        print(f"... and {len(leaks) - SHOWN} more pairs")
    if given.output:
        with open(given.output, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([field.name for field in fields(Leak)])
            writer.writerows(astuple(leak) for leak in leaks)
    for name, reason in unread[:10]:
        print(f"not read: {name}: {reason}", file=sys.stderr)
    count = len({leak.test for leak in leaks})
    print(f"{count} of {len(test)} test images look like one of {len(train)} training images; {len(unread)} not read")
    return 1 if leaks else 2 if unread else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
