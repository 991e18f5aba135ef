r"""Numbers as people write them: one grammar, exact rationals.

Read: thousands separators (`1,234`, `1 234` with a no-break or thin space, `1_234`, `1'234`), currencies, percent,
scale words (`2.5 million`, `5k`, `3万`), fractions (`3/4`, `\frac{3}{4}`, ½), mixed numbers (`1 3/4`), scientific
notation (`1.2e5`, `1.2 x 10^5`, `10^{-3}`), recurring decimals, times of day and ratios (`3:45 PM`, `3:4`), and units
of length, mass, time, speed, volume and money, also composed (`2 hours and 30 minutes`). Values are `Fraction`s, and
0.1 + 0.2 problems do not exist; how far two may differ is said in one place, `same`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Literal

from evaluation.judges.units import UNITS

_GROUP = "[,_' \u2019\u00a0\u202f\u2009]"
_PLAIN = (
    r"\d{1,3}(?:[. ]\d{3})+,\d{1,2}(?![\d,])|\d+,\d{1,2}(?![\d,])"  # decimal comma: 1.234,56, 1 234,56, 12,50
    rf"|(?:\d{{1,3}}(?:{_GROUP}\d{{3}})+(?!\d)|\d{{1,2}}(?:,\d{{2}})+,\d{{3}}(?!\d)|\d+)(?:\.\d+)?|\.\d+"
)
_FRAC = (
    r"\\[dt]?frac\s*(?:\{\s*(?P<over>[-+]?\d[\d.,]*)\s*\}\s*\{\s*(?P<under>\d[\d.,]*)\s*\}"
    r"|(?P<over1>\d)(?P<under1>\d))"
)
NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}])[-+–])?"
    r"(?P<money>US\$|\\?\$|[€£¥₹]|(?:USD|EUR|GBP)\s)?\s?"
    r"(?P<sign2>[-+–])?"
    r"(?:(?P<mixed>\d+)(?:\s+|\s*(?=\\))(?=\d+\s*/\s*\d|\\[dt]?frac))?"
    rf"(?:{_FRAC}|(?P<top>\d[\d,]*)\s*/\s*(?P<bottom>\d[\d,]*)(?![\d/])|(?P<plain>{_PLAIN}))"
    r"(?:[eE](?P<exp>[-+]?\d{1,4})(?!\w)|\s*(?:[x×*·]|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*\{?(?P<ten>[-+]?\d{1,4})\}?)?"
    r"(?:\s?(?P<percent>\\?%|percent\b|per cent\b)"
    r"|\s*-?(?P<scale>(?:thousand|million|billion|trillion)\b|[万萬亿億])|(?P<suffix>k|K|M|B|bn)\b)?",
)
# Where a number may start, so that the large expression is tried at few places.
_START = re.compile(r"(?<![\w)\]}])[-+–](?=[\d.$\\€£¥₹])|US\$|\\?\$|[€£¥₹]|(?:USD|EUR|GBP)\s|\\[dt]?frac|\.?\d")
_COMMA = re.compile(r",\d{1,2}$")
_POWER = re.compile(r"(?<![\d.])10\s*(?:\^|\*\*)\s*\{?([-+]?\d{1,4})\}?")
_UNIT = re.compile(r"\s*[-\s]?\\?(?:text|mathrm|mbox)?\{?\s*([A-Za-zµ°$€£¢]+)(?:\s*(\^\{?[23]\}?|[²³]))?\}?")
_PER = re.compile(r"(\s?/\s?| per )([A-Za-z]{1,12}(?:\^\{?[23]\}?|[²³])?)(?![\w(^])")
_HALF = frozenset("AaPp")
_COLON = re.compile(r"(\d+):(\d+)(?::(\d+))?(?![\d:])(?:\s?([AaPp])\.?[Mm]\b\.?)?")
_CLOCK = re.compile(r"\s?([AaPp])\.?[Mm]\b\.?")
_AND = re.compile(r"\s*,?\s*(?:and\s+)?")
_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12, "k": 3, "m": 6, "b": 9, "bn": 9}
_SCALES |= {"万": 4, "萬": 4, "亿": 8, "億": 8}
_VULGAR = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5",
    "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8",
}  # fmt: skip
_VULGAR_SIGN = re.compile(r"((?<=\d)\s?)?([½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])")
_TEN_TO = re.compile("(?<=10)([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_FOLD = {ord(wide): narrow for wide, narrow in zip("０１２３４５６７８９．，－％", "0123456789.,-%", strict=True)}
_FOLD |= {0x2212: "-", 0x2010: "-", 0x2011: "-", 0xFE63: "-", 0x066B: ".", 0x066C: ",", 0xFF04: "$", 0x2044: "/"}
_DEGREE = re.compile(r"\s*\^\s*\{?\s*\\circ\s*\}?")
_LATEX_GROUP = re.compile(r"(?<=\d)(?:\\[,;!: ]|\{,\})(?=\d{3}(?!\d))")
_RECURRING = re.compile(r"(?<![\d.])(\d*)\.(\d*)\\overline\s*\{(\d+)\}")
_FOLDED = re.compile(rf"[{re.escape(''.join([*map(chr, _FOLD), *_VULGAR]))}⁰¹²³⁴⁵⁶⁷⁸⁹⁻]|(?![0-9])\d")


@dataclass(frozen=True, slots=True)
class Number:
    """`decimals`: digits shown after the point (None for fractions), `digits`: significant digits shown.

    `percent`: a percent sign stood there, and `value` is what was written before it. `unit` is a key of `UNITS`.
    `clock`: it is a time of day, in hours: `half` of the day told (am or pm), or `whole`.
    """

    value: Fraction
    decimals: int | None = 0
    digits: int = 0
    percent: bool = False
    unit: str = ""
    clock: Literal["", "half", "whole"] = ""


def fold(text: str) -> str:
    """Full-width and other forms of digits, signs and fractions as ASCII; LaTeX's degrees, groups, recurring digits."""
    if "\\" in text or "{,}" in text:
        text = _LATEX_GROUP.sub(",", _DEGREE.sub("°", text))
        text = _RECURRING.sub(_recurring, text)
    if text.isascii() or not _FOLDED.search(text):
        return text
    text = text.translate(_FOLD)
    if _VULGAR_SIGN.search(text):
        text = _VULGAR_SIGN.sub(lambda m: ("" if m[1] is None else " ") + _VULGAR[m[2]], text)
    text = _TEN_TO.sub(lambda m: "^" + m[1].translate(_SUPERSCRIPT), text)
    # Digits of other scripts (Arabic-Indic, Devanagari) are digits to `re` and `int` too, but 3 must equal ٣ as text.
    return _OTHER_DIGIT.sub(lambda m: str(int(m[0])), text)


def _recurring(match: re.Match[str]) -> str:
    r"""`0.1\overline{6}` as the fraction that it is, `15/90`."""
    whole, fixed, period = match[1], match[2], match[3]
    if len(fixed) + len(period) > 30:
        return match[0]
    top = int(whole + fixed + period) - int((whole + fixed) or "0")
    return f"{top}/{10 ** len(fixed) * (10 ** len(period) - 1)}"


def find(text: str) -> list[tuple[Number, int, int]]:
    """All numbers in folded text, with start and end."""
    found: list[tuple[Number, int, int]] = []
    position = 0
    while start := _START.search(text, position):
        match = NUMBER.match(text, start.start())
        if match is None:
            position = start.end()
            continue
        if text[match.end() : match.end() + 1] == ":" and (colon := _COLON.match(text, match.start())):
            number, end = _colon(colon), colon.end()
        elif match["plain"] == "10" and (power := _POWER.match(text, match.start("plain"))):
            number, end = _power(match, power), power.end()
            unit, end = _unit(text, match, end)
            number = replace(number, unit=unit) if unit else number
        else:
            number, end = _number(match), match.end()
            if text[end : end + 2].strip()[:1] in _HALF and (half := _CLOCK.match(text, end)) and match["plain"]:
                number, end = _clock(number, half[1]), half.end()
                unit = ""
            else:
                unit, end = _unit(text, match, end)
            if unit and number is not None:
                number = Number(number.value, number.decimals, number.digits, number.percent, unit)
        if number is not None:
            found.append((number, match.start(), end))
        position = max(end, match.start() + 1)
    return _composed(text, found) if len(found) > 1 else found


def _colon(match: re.Match[str]) -> Number | None:
    """A time of day in hours, or a ratio as a fraction; None for a ratio of more than two parts."""
    left, right, seconds, half = int(match[1]), int(match[2]), match[3], match[4]
    if len(match[2]) == 2 and right < 60 and left <= 24 and (seconds is None or len(seconds) == 2):
        value = Number(left + Fraction(right, 60) + Fraction(int(seconds or 0), 3600), None, 99, unit="hours")
        return _clock(value, half) if half else replace(value, clock="whole")
    return None if seconds is not None or right == 0 else Number(Fraction(left, right), None, 99)


def _clock(number: Number | None, half: str) -> Number | None:
    """A time of day from its hours and the half of the day; None where no clock shows them."""
    if number is None or not 0 <= number.value < 25:
        return None
    hours = number.value % 12 + (12 if half in "pP" else 0) if number.value < 13 else number.value
    return Number(hours, None, 99, unit="hours", clock="half")


def _composed(text: str, found: list[tuple[Number, int, int]]) -> list[tuple[Number, int, int]]:
    """Numbers that stand together in falling units of one kind are one number: 2 hours and 30 minutes."""
    whole = found[:1]
    for number, start, end in found[1:]:
        last, begin, stop = whole[-1]
        kind, size = UNITS.get(last.unit, ("", Fraction(1)))
        other, small = UNITS.get(number.unit, ("", Fraction(1)))
        joined = kind and kind == other and small < size and not (last.clock or number.clock)
        if joined and 0 <= number.value * small < size and last.value >= 0 and _AND.fullmatch(text, stop, start):
            value = last.value + number.value * small / size
            whole[-1] = (Number(value, None, 99, unit=last.unit), begin, end)
        else:
            whole.append((number, start, end))
    return whole


def _sign(match: re.Match[str]) -> int:
    return -1 if (match["sign"] or match["sign2"] or "+") in "-–" else 1


def _power(match: re.Match[str], power: re.Match[str]) -> Number:
    sign = _sign(match)
    return Number(sign * Fraction(10) ** int(power[1]), None, 1)


def _number(match: re.Match[str]) -> Number | None:
    sign = _sign(match)
    decimals: int | None = 0
    if match["plain"]:
        text = match["plain"]
        if text.isdigit() and not (match["exp"] or match["ten"] or match["scale"] or match["suffix"] or match["mixed"]):
            return Number(Fraction(sign * int(text)), 0, len(text.lstrip("0")) or 1, bool(match["percent"]))
        if _COMMA.search(text):
            text = text.replace(".", "").replace(",", ".")
        text = re.sub(r"[^\d.]", "", text)
        value = Fraction(text)
        whole, _, part = text.partition(".")
        decimals, digits = len(part), len((whole + part).lstrip("0")) or 1
    else:
        top = match["top"] or match["over"] or match["over1"]
        bottom = match["bottom"] or match["under"] or match["under1"]
        top, bottom = top.replace(",", ""), bottom.replace(",", "")
        try:
            value, decimals, digits = Fraction(top) / Fraction(bottom), None, 99
        except (ZeroDivisionError, ValueError):
            return None
    if match["mixed"]:
        value += int(match["mixed"])
    shift = int(match["exp"] or match["ten"] or 0)
    shift += _SCALES.get((match["scale"] or match["suffix"] or "").lower(), 0)
    if shift:
        value *= Fraction(10) ** shift
        decimals = None if decimals is None else decimals - shift
    return Number(sign * value, decimals, digits, bool(match["percent"]))


def _unit(text: str, match: re.Match[str], end: int) -> tuple[str, int]:
    """The unit after the number, or the currency before it."""
    if match["percent"]:
        return "", end
    after = _UNIT.match(text, end)
    if after:
        name = after[1] + (after[2] or "").strip("^{}").translate(_SUPERSCRIPT)
        for candidate in (name, name.lower()):
            if candidate in UNITS:
                return _rate(text, candidate, after.end())
    money = (match["money"] or "").strip().lstrip("\\").upper().removeprefix("US$") or ("$" if match["money"] else "")
    return _rate(text, money if money in UNITS else "", end)


def _rate(text: str, unit: str, end: int) -> tuple[str, int]:
    """With what it is per: `km/h`, and `/day` where no table knows the rate; after a bare number a whole word only."""
    if text[end : end + 1] not in ("/", " ") or (per := _PER.match(text, end)) is None:
        return unit, end
    both = f"{unit}/{per[2].lower()}"
    if both in UNITS:
        return both, per.end()
    return unit, (per.end() if "/" in per[1] and (unit or len(per[2]) > 2) else end)


def same(a: Number, b: Number, *, relative: float, rounded: bool) -> tuple[bool, str]:
    """Whether two numbers say the same, and why, with `relative` tolerance for decimals.

    Whole numbers must be equal. A decimal may be the other one rounded, when it shows at least two places and three
    significant digits: 33.33 is 33.333, and 0.67 is two thirds to nobody who marks exams. A percent sign is read both
    as a unit (50% is 50) and as a hundredth (50% is 0.5).
    """
    if (a.percent and b.unit) or (b.percent and a.unit):
        return False, "a percentage and a quantity"
    left, right = _convert(a, b)
    told, other = (a, b) if a.clock == "half" else (b, a)
    if told.clock == "half" != other.clock and other.value < 13 and (other.clock or not other.unit):
        left, right = a.value % 12, b.value % 12  # the other one does not say which half of the day
    if left is None or right is None:
        return False, f"units differ: {a.unit} and {b.unit}"
    pairs = [(left, right)]
    if a.percent != b.percent:
        pairs.append((left / 100, right) if a.percent else (left, right / 100))
    for index, (x, y) in enumerate(pairs):
        if x == y:
            return True, "equal"
        if x.denominator == y.denominator == 1:
            continue
        if abs(x - y) <= _share(relative) * max(abs(x), abs(y)):
            return True, f"equal within {relative:g}"
        if rounded and _rounds(x, y, a, b, shift=2 if index else 0):
            return True, "equal after rounding to the places shown"
    return False, "not equal"


@cache
def _share(relative: float) -> Fraction:
    """As it is written: the binary fraction behind 1e-6 is exact, and slow to compute with."""
    return Fraction(str(relative))


def _convert(a: Number, b: Number) -> tuple[Fraction | None, Fraction | None]:
    """Both values in one unit; None where the units cannot be compared. A missing unit means the other's."""
    if not a.unit or not b.unit or a.unit == b.unit:
        return a.value, b.value
    (kind_a, scale_a), (kind_b, scale_b) = UNITS[a.unit], UNITS[b.unit]
    if kind_a != kind_b:
        return None, None
    return a.value * scale_a, b.value * scale_b


def _rounds(x: Fraction, y: Fraction, a: Number, b: Number, *, shift: int) -> bool:
    """`shift`: places to add for the number that carries the percent sign, since it was divided by 100."""
    places = []
    for number in (a, b):
        if number.decimals is not None:
            moved = number.decimals + (shift if number.percent else 0)
            places.append((moved, number.digits, number.decimals))
    if not places or (a.unit and b.unit and a.unit != b.unit):
        return False
    moved, digits, shown = min(places)
    if shown < 2 or digits < 3 or moved > 30:
        return False
    unit = Fraction(10) ** -moved
    return abs(x - y) <= unit / 2 and (x % unit == 0 or y % unit == 0)
