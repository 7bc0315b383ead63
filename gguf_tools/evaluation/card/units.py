"""Units of measurement as they stand beside numbers in an answer, with their factors."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """A unit: the value in the dimension's base unit is `factor` · value + `offset`."""

    name: str
    dimension: str
    factor: float
    offset: float = 0.0

    def to(self, other: Unit, value: float) -> float:
        """A value in this unit, in another unit of the same dimension."""
        return (self.factor * value + self.offset - other.offset) / other.factor


_TABLE: dict[str, dict[float, str]] = {
    # dimension → factor → the names, the first being the one that is shown
    "length": {
        1e-9: "nm|nanometer|nanometers|nanometre|nanometres",
        1e-6: "µm|μm|micrometer|micrometers|micrometre|micrometres|micron|microns",
        1e-3: "mm|millimeter|millimeters|millimetre|millimetres",
        1e-2: "cm|centimeter|centimeters|centimetre|centimetres",
        1.0: "m|meter|meters|metre|metres",
        1e3: "km|kms|kilometer|kilometers|kilometre|kilometres",
        0.0254: "inch|inches",
        0.3048: "ft|foot|feet",
        0.9144: "yd|yard|yards",
        1609.344: "mi|mile|miles",
        1852.0: "nautical mile|nautical miles",
        149597870700.0: "au|astronomical unit|astronomical units",
        9460730472580800.0: "ly|light year|light years|light-year|light-years|lightyear|lightyears",
    },
    "mass": {
        1e-6: "mg|milligram|milligrams",
        1e-3: "g|gram|grams|gramme|grammes",
        1.0: "kg|kgs|kilogram|kilograms|kilo|kilos",
        1e3: "t|tonne|tonnes|metric ton|metric tons",
        0.028349523125: "oz|ounce|ounces",
        0.45359237: "lb|lbs|pound|pounds",
    },
    "time": {
        1e-3: "ms|millisecond|milliseconds",
        1.0: "s|sec|secs|second|seconds",
        60.0: "min|mins|minute|minutes",
        3600.0: "h|hr|hrs|hour|hours",
        86400.0: "day|days",
        604800.0: "week|weeks",
    },
    # Months and years have no fixed number of days.
    "months": {1.0: "month|months"},
    "years": {
        1.0: "year|years|yr|yrs",
        10.0: "decade|decades",
        100.0: "century|centuries",
        1000.0: "millennium|millennia",
    },
    "speed": {
        1.0: "m/s|meters per second|metres per second|meter per second|metre per second",
        1000.0: "km/s|kilometers per second|kilometres per second",
        1 / 3.6: "km/h|kmh|kph|kilometers per hour|kilometres per hour|kilometers an hour|kilometres an hour",
        0.44704: "mph|miles per hour|miles an hour",
        1609.344: "miles per second",
    },
    "area": {
        1e-4: "cm²|cm2|cm^2|square centimeters|square centimetres",
        1.0: "m²|m2|m^2|square meter|square meters|square metre|square metres",
        1e4: "ha|hectare|hectares",
        1e6: "km²|km2|km^2|square kilometer|square kilometers|square kilometre|square kilometres",
        4046.8564224: "acre|acres",
        2589988.110336: "square mile|square miles",
    },
    "volume": {
        1e-3: "ml|milliliter|milliliters|millilitre|millilitres|cm3|cm^3|cubic centimeters|cubic centimetres",
        1.0: "l|liter|liters|litre|litres",
        1e3: "m³|m3|m^3|cubic meter|cubic meters|cubic metre|cubic metres",
        3.785411784: "gallon|gallons",
    },
    "share": {1.0: "%|percent|per cent"},
    "frequency": {1.0: "hz|hertz", 1e3: "khz|kilohertz", 1e6: "mhz|megahertz", 1e9: "ghz|gigahertz"},
    "power": {1.0: "w|watt|watts", 1e3: "kw|kilowatt|kilowatts"},
    "voltage": {1.0: "v|volt|volts"},
    "dollars": {1.0: "dollars|dollar|usd|$"},
    "euros": {1.0: "euros|euro|eur|€"},
}
_TEMPERATURES = (
    (Unit("K", "temperature", 1.0), "k|kelvin|kelvins"),
    (
        Unit("°C", "temperature", 1.0, 273.15),
        "°c|° c|c|celsius|centigrade|degree celsius|degrees celsius|degrees c|degrees centigrade",
    ),
    (
        Unit("°F", "temperature", 5 / 9, 459.67 * 5 / 9),
        "°f|° f|f|fahrenheit|degree fahrenheit|degrees fahrenheit|degrees f",
    ),
)


def _units() -> dict[str, Unit]:
    found = {}
    for dimension, rows in _TABLE.items():
        for factor, names in rows.items():
            first, *others = names.split("|")
            unit = Unit(first, dimension, factor)
            found.update(dict.fromkeys([first, *others], unit))
    for unit, names in _TEMPERATURES:
        found.update(dict.fromkeys(names.split("|"), unit))
    return found


UNITS = _units()
"""Name, in lower case → unit."""

_NAME = "|".join(re.escape(name).replace("\\ ", r"\s+") for name in sorted(UNITS, key=len, reverse=True))
AFTER = re.compile(rf"[\s-]?\s*({_NAME})(?![\w/^²³])")
"""A unit after a number, in text without capitals."""
BEFORE = re.compile(r"(€)\s*$")
"""A unit before a number."""


def unit_named(name: str) -> Unit | None:
    """The unit of a name, ignoring case and repeated blanks; None if it is not known."""
    return UNITS.get(" ".join(name.split()).casefold())
