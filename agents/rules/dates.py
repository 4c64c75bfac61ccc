"""Relative dates made absolute, and dates found again.

A memory is read long after it was said, so "yesterday" gets its date in brackets: "yesterday (7 May 2023)". The wording stays: where
the reading is a guess ("last Friday" said on a Saturday), the reader can see what it was guessed from.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, timedelta
from typing import Final

from memweave.agents.rules.text import NUMBER_WORDS

_MONTHS = "January February March April May June July August September October November December"
MONTHS: Final = tuple(_MONTHS.split())
MEMORY: Final = timedelta(days=120)
"""People name a past day without its year for about this long; an earlier day and month mean the coming one."""
WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_MONTH = "|".join(MONTHS)
_WEEKDAY = r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day|Mon|Tues?|Wed|Thurs?|Fri|Sat|Sun"
_COUNT = r"\d{1,3}|a couple of|a few|several|an?|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_MARKED = re.compile(r"\s\([^()]{0,60}\d{4}\)")

ABSOLUTE: Final = re.compile(
    r"(?:the (?:week|weekend|month) (?:before|of|after) |(?:late|early|mid|around) "
    r"|(?:a few|several|\d{1,2}) (?:days|weeks|weekends|months|years) (?:before|after) )?"
    rf"(?:(?:{_WEEKDAY}),? )?(?:\d{{1,2}} (?:{_MONTH}) \d{{4}}|(?:{_MONTH}) \d{{4}})|\b(?:19|20)\d\d-[01]\d-[0-3]\d\b"
    r"|(?<=\()(?:(?:spring|summer|autumn|fall|winter|late|early) )?(?:19|20)\d\d(?=\))",
)
"""An absolute date as these rules write it, or in ISO form."""

_RULES: Final[tuple[tuple[str, str], ...]] = (
    (
        "day",
        r"\b(?:the day before yesterday|the day after tomorrow"
        r"|yesterday|today|tonight|tomorrow|last night|this (?:morning|afternoon|evening))\b",
    ),
    ("ago", rf"\b(?P<n>{_COUNT}) (?P<unit>day|week|weekend|month|year)s? ago\b"),
    (
        "in",
        rf"\bin (?P<n2>{_COUNT}) (?P<unit2>day|week|month|year)s?(?: from now|' time)?(?! (?:a|per|each|row|total)\b)\b",
    ),
    ("weekday", rf"\b(?P<dir>last|next|this past|this coming|this) (?P<wd>{_WEEKDAY})\b(?! (?:of|in)\b)"),
    (
        "unit",
        r"\b(?P<dir2>last|next|this past|this coming|this) (?P<unit3>weekend|week|month|year|spring|summer|autumn|fall|winter)\b",
    ),
    ("month", rf"\b(?P<dir3>last|next|this) (?P<month>{_MONTH})\b"),
    (
        "dated",
        rf"\b(?:(?P<d1>{_DAY}) (?:of )?(?P<m1>{_MONTH})|(?P<m2>{_MONTH}) (?P<d2>{_DAY}))\b(?!,? \d{{4}}| (?:this|next|last) year)"
        rf"|\b(?P<d4>{_DAY}) (?P<m4>{_MONTH}) (?P<dir4>this|next|last) year\b",
    ),
    ("inmonth", rf"\b(?:in|since|until|till|by|before|during|early|late|mid) (?P<m3>{_MONTH})\b(?!,? (?:\d|of\b))"),
    ("onday", rf"\b(?:on|until|till|by) (?P<wd2>{_WEEKDAY})\b(?! (?:{_DAY}|evenings|mornings|afternoons|nights)\b)"),
    ("end", r"\bat the (?P<edge>end|beginning|start) of (?P<which>the|this|next|last) (?P<unit4>week|month|year)\b"),
)
_PATTERN = re.compile("|".join(f"(?P<r_{name}>{pattern})" for name, pattern in _RULES), re.IGNORECASE)
_FUTURE = re.compile(
    r"\b(?:will|'ll|going to|gonna|until|till|by|upcoming|planning|plan|deadline|due|looking forward|(?:'m|'re|is|are|am) \w+ing)\b"
    r"|\b(?:is|are|it's) (?:on|in)\b",
    re.IGNORECASE,
)
_RECURRING = re.compile(r"\b(?:every|each|birthday|born|anniversary|usually|always)\b", re.IGNORECASE)


def resolve(text: str, said: date | None) -> str:
    """Return `text` with the date of each relative expression after it, in brackets; unchanged without `said`.

    said: the day on which it was said, in UTC.  A day and month without a year get the likely one.
    """
    if said is None:
        return text
    future = _FUTURE.search(text) is not None
    recurring = _RECURRING.search(text) is not None

    def replace(match: re.Match[str]) -> str:
        if _MARKED.match(text, match.end()):
            return match.group()
        name = next(name for name, _ in _RULES if match[f"r_{name}"] is not None)
        try:
            found = _READERS[name](match, said, future)
        except (OverflowError, ValueError):  # 999 years ago, 31 June
            return match.group()
        if found is None or (recurring and name in ("dated", "inmonth", "onday", "weekday")):
            return match.group()
        return (
            f"{match.group()} {found}"
            if name in ("dated", "inmonth") and found.isdigit()
            else f"{match.group()} ({found})"
        )

    return _PATTERN.sub(replace, text)


def day(value: date) -> str:
    """Return `7 May 2023`."""
    return f"{value.day} {MONTHS[value.month - 1]} {value.year}"


def _month(value: date) -> str:
    return f"{MONTHS[value.month - 1]} {value.year}"


def _add_months(value: date, months: int) -> date:
    index = value.year * 12 + value.month - 1 + months
    return date(index // 12, index % 12 + 1, 1)


def _number(word: str) -> int | None:
    """Return the number a word stands for; `None` for "a few"."""
    word = word.lower()
    if word.isdigit():
        return int(word)
    if word in ("a", "an"):
        return 1
    return 2 if word == "a couple of" else NUMBER_WORDS.get(word)


def _day_rule(match: re.Match[str], said: date, future: bool) -> str:
    shift = {
        "the day before yesterday": -2, "the day after tomorrow": 2, "yesterday": -1, "last night": -1, "tomorrow": 1,
    }.get(match.group().lower(), 0)  # fmt: skip
    return day(said + timedelta(days=shift))


def _distance(word: str, unit: str, said: date, sign: int) -> str:
    number, unit = _number(word), unit.lower()
    if number is None:
        return f"{word.lower()} {unit}s {'before' if sign < 0 else 'after'} {day(said)}"
    number *= sign
    if unit == "day":
        return day(said + timedelta(days=number))
    if unit == "week":
        return (
            f"around {day(said + timedelta(weeks=number))}"
            if abs(number) > 1
            else f"the week {'before' if sign < 0 else 'after'} {day(said)}"
        )
    if unit == "weekend":
        return f"{abs(number)} weekends before {day(said)}"
    return _month(_add_months(said, number)) if unit == "month" else str(date(said.year + number, 1, 1).year)


def _ago(match: re.Match[str], said: date, future: bool) -> str:
    return _distance(match["n"], match["unit"], said, -1)


def _in(match: re.Match[str], said: date, future: bool) -> str:
    return _distance(match["n2"], match["unit2"], said, 1)


def _weekday_number(word: str) -> int:
    return next(i for i, name in enumerate(WEEKDAYS) if name.lower().startswith(word.lower()[:3]))


def _near_weekday(word: str, said: date, forward: bool, *, today: bool = False) -> date:
    """Return the nearest such weekday after (or before) `said`; `today` lets it be the same day."""
    shift = (_weekday_number(word) - said.weekday()) % 7
    if forward:
        return said + timedelta(days=shift if shift or today else 7)
    return said - timedelta(days=(7 - shift) % 7 or (0 if today else 7))


def _weekday_rule(match: re.Match[str], said: date, future: bool) -> str:
    direction = match["dir"].lower()
    back = direction in ("last", "this past")
    return day(_near_weekday(match["wd"], said, not back, today=direction == "this"))


def _unit(match: re.Match[str], said: date, future: bool) -> str | None:
    direction, unit = match["dir2"].lower(), match["unit3"].lower()
    shift = {"last": -1, "this past": -1, "next": 1}.get(direction, 0)
    if unit == "month":
        return _month(_add_months(said, shift))
    if unit == "year":
        return str(said.year + shift)
    if unit in ("week", "weekend"):
        return f"the {unit} {('of', 'after', 'before')[shift]} {day(said)}"
    year = said.year + (shift if direction in ("last", "next") else 0)
    return f"{unit} {year}"


def _month_rule(match: re.Match[str], said: date, future: bool) -> str:
    number = [m.lower() for m in MONTHS].index(match["month"].lower()) + 1
    year = said.year
    direction = match["dir3"].lower()
    if direction == "last" and number >= said.month:
        year -= 1
    if direction == "next" and number <= said.month:
        year += 1
    return f"{MONTHS[number - 1]} {year}"


def _likely_year(month: int, day_of_month: int, said: date) -> int:
    """Return the year of a day without one: the first that lies at most `MEMORY` before it was said."""
    options = (date(said.year + shift, month, day_of_month) for shift in (-1, 0, 1))
    return next(option.year for option in options if option >= said - MEMORY)


def _dated(match: re.Match[str], said: date, future: bool) -> str:
    name = match["m1"] or match["m2"] or match["m4"]
    number = [m.lower() for m in MONTHS].index(name.lower()) + 1
    digits = int(re.sub(r"\D", "", match["d1"] or match["d2"] or match["d4"]))
    if match["dir4"]:
        year = said.year + {"this": 0, "next": 1, "last": -1}[match["dir4"].lower()]
        return day(date(year, number, digits))
    year = _likely_year(number, digits, said)
    return day(date(year, number, digits)) if match["m2"] else str(year)


def _inmonth(match: re.Match[str], said: date, future: bool) -> str | None:
    if not match["m3"][0].isupper():
        return None  # "may", "march"
    number = MONTHS.index(match["m3"].capitalize()) + 1
    if future and not match.group().lower().startswith("since"):
        return str(said.year + (number < said.month))
    return str(said.year - (number > said.month))


def _onday(match: re.Match[str], said: date, future: bool) -> str | None:
    if match["wd2"].lower() in ("sun", "sat", "wed", "mon", "fri") and not match["wd2"][0].isupper():
        return None
    return day(_near_weekday(match["wd2"], said, future, today=True))


def _end(match: re.Match[str], said: date, future: bool) -> str:
    edge = "late" if match["edge"].lower() == "end" else "early"
    shift = {"next": 1, "last": -1}.get(match["which"].lower(), 0)
    unit = match["unit4"].lower()
    if unit == "week":
        return f"{edge} in the week of {day(said + timedelta(weeks=shift))}"
    return f"{edge} {_month(_add_months(said, shift)) if unit == 'month' else said.year + shift}"


_READERS: Final[dict[str, Callable[[re.Match[str], date, bool], str | None]]] = {
    "day": _day_rule, "ago": _ago, "in": _in, "weekday": _weekday_rule, "unit": _unit, "month": _month_rule,
    "dated": _dated, "inmonth": _inmonth, "onday": _onday, "end": _end,
}  # fmt: skip


def dates_in(text: str) -> frozenset[str]:
    """Return the absolute dates that `text` states."""
    return frozenset(match.group() for match in ABSOLUTE.finditer(text))
