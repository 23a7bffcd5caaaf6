"""Numbers, durations and untrusted text as people read them."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

SHARES = ("accuracy", "acc", "error_rate", "precision", "recall", "f1", "top1", "top5", "hit_rate")


def format_number(value: Any, digits: int = 3) -> str:
    """Give a value as text: numbers with about three digits, whole numbers in full, None as "off".

    >>> [format_number(v) for v in (0.03123456, 1.2e-05, 12345, 1234.56, True, "adamw", None)]
    ['0.0312', '1.2e-05', '12,345', '1,235', 'yes', 'adamw', 'off']
    >>> format_number(math.nan), format_number(-math.inf), format_number(0.5), format_number(1e9)
    ('nan', '-inf', '0.5', '1e+09')
    """
    if value is None:
        return "off"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return printable(str(value))
    if math.isfinite(value) and 10**digits <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def typed_number(value: float) -> str:
    """Give a number as one types it in code: three digits, or all of a large whole part, and no comma.

    >>> typed_number(152.13), typed_number(77.1), typed_number(123456.7), typed_number(1e9)
    ('152', '77.1', '123457', '1e+09')
    """
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.3g}"


def format_tick(value: float) -> str:
    """Give a round number in few characters, for an axis.

    >>> [format_tick(v) for v in (0.0, 250.0, 20000.0, 1.5e6, 0.001, 1e-05, 3e12)]
    ['0', '250', '20k', '1.5M', '0.001', '1e-05', '3e+12']
    """
    for unit, sign in ((1e6, "M"), (1e3, "k")):
        if unit <= abs(value) < 1e9 and (unit == 1e6 or abs(value) >= 1e4):
            return f"{value / unit:.4g}{sign}"
    return f"{value:.6g}"


def format_share(share: float) -> str:
    """Give a share in per cent.

    >>> format_share(0.9777), format_share(0.5), format_share(1.0), format_share(0.0004)
    ('97.8 %', '50 %', '100 %', '0.04 %')
    """
    return f"{100 * share:.3g} %"


def is_share(name: str) -> bool:
    """Tell whether a metric of this name lies between 0 and 1, such as an accuracy.

    >>> is_share("accuracy"), is_share("top5_accuracy"), is_share("loss")
    (True, True, False)
    """
    word = name.lower().replace("-", "_").replace(" ", "_")
    return word in SHARES or word.endswith("accuracy")


def format_metric(name: str, value: float) -> str:
    """Give a metric's value as text: a share in per cent, anything else as a number.

    >>> format_metric("accuracy", 0.9777), format_metric("loss", 0.10383), format_metric("accuracy", 97.77)
    ('97.8 %', '0.104', '97.8')
    """
    return format_share(value) if is_share(name) and 0 <= value <= 1 else format_number(float(value))


def format_seconds(value: float) -> str:
    """Give a duration as text.

    >>> format_seconds(0.04), format_seconds(3.42), format_seconds(41.7), format_seconds(200), format_seconds(9000)
    ('0.04 s', '3.4 s', '42 s', '3 min 20 s', '2 h 30 min')
    """
    if value < 90:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 90:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def printable(text: str) -> str:
    r"""Drop control and format characters from untrusted text, and turn line breaks into spaces.

    >>> printable("a\x1b[31mb\nc")
    'a[31mb c'
    """
    return "".join(
        " " if c in "\n\r\t" else c for c in text if c in "\n\r\t" or unicodedata.category(c) not in ("Cc", "Cs", "Cf")
    )


def is_storable(text: str) -> bool:
    r"""Tell whether a text can be written anywhere: without null characters, and without halves of a surrogate pair.

    >>> is_storable("é"), is_storable("a\0b"), is_storable("\ud800")
    (True, False, False)
    """
    return not any(c == "\0" or unicodedata.category(c) == "Cs" for c in text)


def group_digits(text: str) -> str:
    """Group the digits of counts of steps, examples and updates in a sentence, as `format_count` does.

    >>> group_digits("constant over 3420 steps, the first 1000 in warm-up (arXiv:2310.07831)")
    'constant over 3,420 steps, the first 1,000 in warm-up (arXiv:2310.07831)'
    """
    counts = r"(?<=\bstep )\d{4,}\b|(?<=\bfirst )\d{4,}\b|(?<![\w.,:/-])\d{4,}(?= (?:steps?|examples?|updates)\b)"
    return re.sub(counts, lambda match: f"{int(match[0]):,}", text, flags=re.IGNORECASE)


def capitalized(text: str) -> str:
    """Give the text with a capital first letter.

    >>> capitalized("the loss is not finite."), capitalized("1 step"), capitalized("")
    ('The loss is not finite.', '1 step', '')
    """
    return text[:1].upper() + text[1:]


def format_fraction(factor: float) -> str:
    """Give a factor below one as words before a noun, such as a learning rate.

    >>> format_fraction(0.5), format_fraction(0.125), format_fraction(0.3)
    ('half', '1/8 of', '0.3 times')
    """
    if factor == 0.5:
        return "half"
    whole = round(1 / factor) if 1e-3 < factor < 1 else 0
    return f"1/{whole} of" if whole and math.isclose(whole * factor, 1) else f"{factor:.3g} times"


def format_count(count: int, word: str) -> str:
    """Give a count with its noun, in the plural unless it is one.

    >>> format_count(1, "step"), format_count(1200, "step"), format_count(2, "batch")
    ('1 step', '1,200 steps', '2 batches')
    """
    ending = "" if count == 1 else "es" if word.endswith(("ch", "s", "x")) else "s"
    return f"{count:,} {word}{ending}"
