"""Units whose names an answer may carry, with what they measure and their size in a common unit.

Only units that word problems use and that have one meaning: an ambiguous name ("pounds" are money
or mass) is better missing than wrong, because an unknown word after a number is ignored.
"""

from __future__ import annotations

from fractions import Fraction as F  # noqa: N817 - a table of fractions

_TABLE: dict[str, dict[str, F | int]] = {
    "money, dollar": {"$": 1, "USD": 1, "dollar dollars": 1, "cent cents ¢": F(1, 100)},
    "money, euro": {"€": 1, "EUR": 1, "euro euros": 1},
    "money, pound": {"£": 1, "GBP": 1},
    "length": {
        "mm millimeter millimeters millimetre millimetres": F(1, 1000),
        "cm centimeter centimeters centimetre centimetres": F(1, 100),
        "m meter meters metre metres": 1,
        "km kilometer kilometers kilometre kilometres": 1000,
        "inch inches": F(254, 10000),
        "foot feet ft": F(3048, 10000),
        "yard yards": F(9144, 10000),
        "mile miles": F(1609344, 1000),
    },
    "area": {
        "mm2": F(1, 10**6), "cm2": F(1, 10**4), "m2": 1, "km2": 10**6, "ft2": F(3048, 10000) ** 2,
    },
    "volume": {
        "cm3": F(1, 1000), "m3": 1000, "ml milliliter milliliters millilitre millilitres": F(1, 1000),
        "l L liter liters litre litres": 1,
    },
    "mass": {
        "mg milligram milligrams": F(1, 1000), "g gram grams": 1, "kg kilogram kilograms": 1000,
        "ounce ounces oz": F(28349523125, 10**9), "lb lbs": F(45359237, 10**5),
        "ton tons tonne tonnes": 10**6,
    },
    "time": {
        "second seconds sec secs": 1, "minute minutes min mins": 60, "hour hours hr hrs h": 3600, "day days": 86400,
        "week weeks": 604800,
    },
    "speed": {
        "m/s": 1, "m/second": 1, "m/sec": 1, "meters/second": 1, "metres/second": 1,
        "km/h km/hr km/hour kilometers/hour kilometres/hour kph kmh": F(1000, 3600),
        "miles/hour miles/hr mile/hour mph": F(1609344, 3600 * 1000), "feet/second ft/s ft/sec": F(3048, 10000),
    },
    "calendar": {"month months": 1, "year years": 12, "decade decades": 120, "century centuries": 1200},
}  # fmt: skip

UNITS: dict[str, tuple[str, F]] = {
    name: (kind, F(size)) for kind, group in _TABLE.items() for names, size in group.items() for name in names.split()
}
