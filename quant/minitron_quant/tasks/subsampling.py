"""Which questions a limit takes: the ones that llama-perplexity takes, in its order.

Source: tools/perplexity of llama.cpp 0c1e57098, which draws with mt19937, seed 1.
"""

from collections.abc import Iterator


def _draws() -> Iterator[int]:
    import numpy as np

    # the whole range of uint32 is the generator's own output, as std::mt19937(1) gives it
    generator = np.random.RandomState(1)
    while True:
        yield from map(int, generator.randint(0, 1 << 32, 1024, dtype=np.uint32))


def _below(draws: Iterator[int], count: int) -> int:
    """std::uniform_int_distribution(0, count − 1) of libstdc++: the high half of a product.

    Source: Lemire, "Fast Random Integer Generation in an Interval", 2019.
    """
    product = next(draws) * count
    if product & 0xFFFFFFFF < count:
        least = ((1 << 32) - count) % count
        while product & 0xFFFFFFFF < least:
            product = next(draws) * count
    return product >> 32


def sample_shuffled(count: int, limit: int | None) -> list[int]:
    """--hellaswag-tasks: indices of `limit` questions of `count`, or of all; always shuffled."""
    draws, left = _draws(), list(range(count))
    return [left.pop(_below(draws, len(left))) for _ in range(min(limit or count, count))]


def sample(count: int, limit: int | None) -> list[int]:
    """--winogrande-tasks, --multiple-choice-tasks: without a limit below `count` all in order."""
    if limit is None or limit >= count:
        return list(range(count))
    import numpy as np

    draws, left = _draws(), list(range(count))
    chosen = []
    for _ in range(limit):
        share = np.float32(next(draws)) * np.float32(2**-32)
        # float32 may round the share up to 1, where llama-perplexity reads past the end
        place = min(int(share * np.float32(len(left))), len(left) - 1)
        chosen.append(left[place])
        left[place] = left[-1]
        left.pop()
    return chosen


def sample_sorted(count: int, limit: int | None) -> list[int]:
    """The questions of `sample` in the order of the data: neighbours share their examples."""
    return sorted(sample(count, limit))
