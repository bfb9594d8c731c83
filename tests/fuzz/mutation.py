"""Bytes that are almost what was meant.

Thread-safety: functions over the caller's dice.
"""

import random
from collections.abc import Sequence

_EDGES = (0, 1, 0x7F, 0x80, 0xFF)


def mutated(dice: random.Random, line: bytes, *, most: int, pieces: Sequence[bytes] = ()) -> bytes:
    """A line with bytes changed, left out, put in or repeated, or with one of `pieces` put in.

    One to `most` times.
    """
    data = bytearray(line)
    for _ in range(dice.randint(1, most)):
        place = dice.randrange(len(data) + 1)
        change = dice.randrange(5 if pieces else 4)
        if change == 0 and place < len(data):
            data[place] = dice.choice((*_EDGES, data[place] ^ 1 << dice.randrange(8)))
        elif change == 1:
            del data[place : place + dice.randrange(1, 9)]
        elif change == 2:
            data[place:place] = dice.randbytes(dice.randrange(1, 9))
        elif change == 4:
            data[place:place] = dice.choice(pieces)
        else:
            data[place:place] = data[: dice.randrange(len(data) + 1)]
    return bytes(data)
