"""What a run must take from its contract: the formulas again, from their papers and documents, one number at a time.

Nothing here is shared with contract/: the gate holds the contract against it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

LOW_32, LOW_64 = 2**32 - 1, 2**64 - 1


def philox_4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4.3)."""
    return _philox(counter, key, bits=32, multipliers=(0xD2511F53, 0xCD9E8D57), weyl=(0x9E3779B9, 0xBB67AE85))


def philox_4x64(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x64-10, likewise."""
    multipliers, weyl = (0xD2E7470EE14C6C93, 0xCA5A826395121157), (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
    return _philox(counter, key, bits=64, multipliers=multipliers, weyl=weyl)


def _philox(counter: Sequence[int], key: Sequence[int], *, bits: int, multipliers: tuple[int, int], weyl: tuple[int, int]) -> list[int]:
    words, keys, modulus = list(counter), list(key), 2**bits
    for _ in range(10):
        high_0, low_0 = divmod(multipliers[0] * words[0], modulus)
        high_1, low_1 = divmod(multipliers[1] * words[2], modulus)
        words = [high_1 ^ words[1] ^ keys[0], low_1, high_0 ^ words[3] ^ keys[1], low_0]
        keys = [(part + step) % modulus for part, step in zip(keys, weyl, strict=True)]
    return words


def key_of(*parts: object) -> tuple[int, int]:
    """Two words of 32 bits from SHA-256 of the parts with spaces between them (contract/data/dropout.py's documented key)."""
    digest = hashlib.sha256(" ".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[0:4], "little"), int.from_bytes(digest[4:8], "little")


def learning_rate(step: int, base: float, warmup: int, total: int) -> float:
    """Linear warm-up, then half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5, with one period; transformers'
    `get_cosine_schedule_with_warmup`): the first step of a warm-up has 0, the first after it `base`."""
    if step < warmup:
        return base * step / warmup
    return base * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


RATE_ERRORS = 2 * math.pi + 6
"""Rounding errors, in units of the base, that two ways to write `learning_rate` may be apart: the share of the way that is done has two,
which the cosine takes times pi at most; the cosine itself, the sum, the halving and the product have one each, and so has the other way."""


def learning_rates(base: float, warmup: int, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every step of a run, float64 [total]; and how far another way to write the formula may be from that, likewise."""
    rates = np.array([learning_rate(step, base, warmup, total) for step in range(total)], np.float64)
    return rates, np.full(total, RATE_ERRORS * 2.0**-53 * base)


def lora_a(name: str, shape: tuple[int, int], seed: int) -> np.ndarray:
    """A as docs/protocol.md (The shared policy) has it: uniform in (-1 / sqrt(in), 1 / sqrt(in)), float32.

    That is PEFT's `kaiming_uniform_(a=sqrt(5))`: bound sqrt(6 / ((1 + 5) in)) (He et al. 2015, arXiv:1502.01852).
    """
    rows, width = shape
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    key = int.from_bytes(digest[0:8], "little"), int.from_bytes(digest[8:16], "little")
    blocks = -(-rows * width // 4)
    words = [word for number in range(blocks) for word in philox_4x64((number + 1, 0, 0, 0), key)]
    odd = np.array([2 * (word >> 40) + 1 - 2**24 for word in words[: rows * width]], np.float32)
    matrix: np.ndarray = (np.float32(1 / math.sqrt(width)) * (odd / np.float32(2**24))).reshape(rows, width)
    return matrix


def kept(
    samples: Iterable[int], positions: Iterable[int], *, seed: int, step: int, layer: int, site: str, width: int, probability: float
) -> np.ndarray:
    """Dropout's decisions for tokens, bool [tokens, width]: one Philox word each, dropped where it is below probability 2^32."""
    key, threshold = key_of("dropout", seed, step, layer, site), math.ceil(probability * 2**32)
    rows = []
    for sample, position in zip(samples, positions, strict=True):
        row = sample % 2**64
        words = [word for block in range(-(-width // 4)) for word in philox_4x32((row & LOW_32, row >> 32, position, block), key)]
        rows.append([word >= threshold for word in words[:width]])
    return np.array(rows, np.bool_).reshape(-1, width)


def draws(sequences: Iterable[int], positions: Iterable[int], *, seed: int) -> np.ndarray:
    """The numbers in [0, 1) that tokens are drawn with, float64: 53 bits of a Philox counter each."""
    key = key_of("sampling", seed)
    found = []
    for sequence, position in zip(sequences, positions, strict=True):
        words = philox_4x32((sequence & LOW_32, sequence >> 32, position, 0), key)
        found.append((words[0] * 2**21 + words[1] // 2**11) / 2**53)
    return np.array(found, np.float64)


def first_fit(order: Sequence[int], lengths: Mapping[int, int], seq_len: int, window: int) -> list[tuple[int, ...]]:
    """Rows in sequences: each goes into the oldest of at most `window` open ones that has room; where none has, the oldest makes way.

    First fit (Johnson 1973, "Near-optimal bin packing algorithms"), bounded as docs/contract.md says.
    """
    done: list[tuple[int, ...]] = []
    bins: list[list[int]] = []
    for row in order:
        fitting = [one for one in bins if sum(lengths[other] for other in one) + lengths[row] <= seq_len]
        if fitting:
            fitting[0].append(row)
            continue
        if len(bins) == window:
            done.append(tuple(bins.pop(0)))
        bins.append([row])
    return done + [tuple(one) for one in bins]


def dvoretzky_kiefer_wolfowitz(count: int, false_alarm: float) -> float:
    """How far an empirical distribution of `count` independent values may be off anywhere.

    P(sup |F_n - F| > t) <= 2 exp(-2 n t^2)        (Massart 1990, "The tight constant in the Dvoretzky-Kiefer-Wolfowitz inequality")
    """
    return math.sqrt(math.log(2 / false_alarm) / (2 * count))


hoeffding = dvoretzky_kiefer_wolfowitz
"""How far the mean of `count` independent values in [0, 1] may be off: the same bound (Hoeffding 1963, theorem 2, on both sides)."""


def most_matches(permutations: int, false_alarm: float) -> int:
    """How many points that many independent random permutations leave in place, all together, at most.

    The factorial moments of one permutation's fixed points are 1 up to its size and 0 beyond, so that E exp(t X) <= exp(e^t - 1), as of a
    Poisson variable of mean 1; of n permutations P(X >= k) <= exp(k - n) (n / k)^k (Chernoff), for k > n.
    """
    most = permutations + 1
    while most - permutations + most * math.log(permutations / most) > math.log(false_alarm):
        most += 1
    return most
