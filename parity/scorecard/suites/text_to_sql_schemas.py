"""The small databases of the text-to-SQL suite: eight schemas of two tables, filled by hashing, the same everywhere.

Each main table has a name, two columns of few texts and two of numbers; one of the texts links it to the second table. The ranges of
numbers are apart, so that a query that takes the wrong column gets other rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

ROWS = 30
"""Of each main table: so many that counts differ from family to family, and few enough for a task to carry them."""

Value = str | int
Rows = tuple[tuple[Value, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Linked:
    """The second table: its key is the linking column, under the same name. texts: the values of its text column, a row each."""

    table: str
    text: str
    texts: tuple[str, ...]
    number: str
    numbers: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Schema:
    """A main table and its linked one.

    name: the column that names a row; made of one of `firsts` and one of `seconds`. texts: column -> its values; the first of them links.
    numbers: column -> lowest and highest.
    """

    table: str
    name: str
    firsts: tuple[str, ...]
    seconds: tuple[str, ...]
    texts: Mapping[str, tuple[str, ...]]
    numbers: Mapping[str, tuple[int, int]]
    linked: Linked

    @property
    def link(self) -> str:
        """The column that both tables have."""
        return next(iter(self.texts))

    def columns(self) -> tuple[str, ...]:
        """Of the main table."""
        return (self.name, *self.texts, *self.numbers)

    def rows(self) -> Rows:
        """Of the main table. A name and a number come once in their columns: an order by them is one order."""
        return _rows(self)

    def script(self) -> str:
        """SQL that makes both tables and fills them."""
        linked = self.linked
        others = tuple(zip(self.texts[self.link], linked.texts, linked.numbers, strict=True))
        made = [f"{self.name} TEXT", *(f"{text} TEXT" for text in self.texts), *(f"{number} INTEGER" for number in self.numbers)]
        return "\n".join(
            [
                f"CREATE TABLE {self.table} ({', '.join(made)});",
                f"CREATE TABLE {linked.table} ({self.link} TEXT, {linked.text} TEXT, {linked.number} INTEGER);",
                _insert(self.table, self.rows()),
                _insert(linked.table, others),
            ]
        )

    def described(self) -> str:
        """Both tables, as a prompt names them."""
        linked = self.linked
        return f"{self.table}({', '.join(self.columns())}) {linked.table}({self.link}, {linked.text}, {linked.number})"


@cache
def _rows(schema: Schema) -> Rows:
    names = sorted((f"{one} {two}" for one in schema.firsts for two in schema.seconds), key=lambda name: drawn(schema.table, name))
    columns: list[list[Value]] = [list(names[:ROWS])]
    for column, values in schema.texts.items():
        columns.append([values[drawn(schema.table, column, row) % len(values)] for row in range(ROWS)])
    for column, (low, high) in schema.numbers.items():
        keys = {number: drawn(schema.table, column, number) for number in range(low, high + 1)}
        columns.append(list(sorted(keys, key=keys.__getitem__)[:ROWS]))
    return tuple(zip(*columns, strict=True))


def drawn(*parts: object) -> int:
    """A number that looks random and depends on nothing but the parts: the first 8 bytes of their SHA-256."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big")


def _insert(table: str, rows: Rows) -> str:
    values = ",".join(f"({','.join(_literal(value) for value in row)})" for row in rows)
    return f"INSERT INTO {table} VALUES {values};"


def _literal(value: Value) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


_PEOPLE = ("Ana", "Ben", "Cleo", "Dana", "Emil", "Fay", "Gus", "Hana", "Ivo", "June")
_SURNAMES = ("Abel", "Bond", "Cruz", "Dale", "Ekman", "Ford", "Gray")
_ADJECTIVES = ("Amber", "Blue", "Cold", "Dark", "Empty", "Final", "Golden", "Hidden", "Iron", "Lost")
_NOUNS = ("River", "Moon", "Garden", "Road", "Winter", "Island", "Mirror")
_SYLLABLES = ("Al", "Bor", "Cal", "Dun", "El", "Fal", "Gar", "Hol", "Ir", "Kel")
_ENDINGS = ("ton", "burg", "ford", "mouth", "stad", "haven", "field")

SCHEMAS = (
    Schema(
        table="books", name="title", firsts=_ADJECTIVES, seconds=_NOUNS,
        texts={"author": ("Moreno", "Okafor", "Lind", "Tanaka", "Weber", "Rossi"),
               "genre": ("poetry", "crime", "history", "fantasy", "travel")},
        numbers={"year": (1950, 2020), "pages": (90, 900)},
        linked=Linked(table="authors", text="country", texts=("Spain", "Nigeria", "Sweden", "Japan", "Germany", "Spain"),
                      number="born", numbers=(1921, 1934, 1902, 1945, 1917, 1939)),
    ),
    Schema(
        table="films", name="title", firsts=_ADJECTIVES[::-1], seconds=_NOUNS[::-1],
        texts={"director": ("Varga", "Holm", "Silva", "Nolte", "Ito", "Marsh"),
               "style": ("drama", "comedy", "western", "horror", "musical")},
        numbers={"year": (1960, 2022), "minutes": (70, 240)},
        linked=Linked(table="directors", text="school", texts=("Prague", "Oslo", "Lisbon", "Berlin", "Oslo", "London"),
                      number="awards", numbers=(3, 11, 7, 2, 14, 5)),
    ),
    Schema(
        table="cities", name="city", firsts=_SYLLABLES, seconds=_ENDINGS,
        texts={"country": ("Arvia", "Belmar", "Cosmia", "Doria", "Esland", "Farland"),
               "climate": ("dry", "humid", "mild", "polar", "tropical")},
        numbers={"founded": (1100, 1890), "population": (2000, 9000)},
        linked=Linked(table="countries", text="continent", texts=("Asia", "Europe", "Africa", "Europe", "America", "Asia"),
                      number="area", numbers=(520, 310, 880, 140, 960, 275)),
    ),
    Schema(
        table="players", name="player", firsts=_PEOPLE, seconds=_SURNAMES,
        texts={"team": ("Lions", "Hawks", "Bears", "Sharks", "Wolves", "Eagles"),
               "position": ("goalkeeper", "defender", "midfielder", "striker", "winger")},
        numbers={"goals": (20, 95), "salary": (1000, 8000)},
        linked=Linked(table="teams", text="town", texts=("Leeds", "Porto", "Turin", "Leeds", "Ghent", "Basel"),
                      number="titles", numbers=(4, 9, 17, 1, 6, 12)),
    ),
    Schema(
        table="products", name="product", firsts=("Alpha", "Beta", "Crown", "Delta", "Echo", "Flex", "Grand", "Halo", "Ion", "Jade"),
        seconds=("Lamp", "Desk", "Chair", "Clock", "Radio", "Stove", "Kettle"),
        texts={"maker": ("Acme", "Brio", "Corvo", "Dynex", "Elva", "Fenix"),
               "color": ("red", "blue", "green", "black", "white")},
        numbers={"price": (15, 480), "stock": (500, 2000)},
        linked=Linked(table="makers", text="region", texts=("north", "south", "east", "west", "south", "east"),
                      number="workers", numbers=(120, 45, 300, 75, 210, 90)),
    ),
    Schema(
        table="employees", name="employee", firsts=_PEOPLE[::-1], seconds=_SURNAMES[::-1],
        texts={"department": ("sales", "research", "legal", "finance", "support", "design"),
               "role": ("manager", "analyst", "assistant", "engineer", "trainee")},
        numbers={"age": (21, 66), "wage": (1800, 9500)},
        linked=Linked(table="departments", text="floor", texts=("ground", "first", "second", "third", "first", "ground"),
                      number="budget", numbers=(700, 1500, 400, 950, 300, 820)),
    ),
    Schema(
        table="flights", name="flight", firsts=("AX", "BQ", "CN", "DK", "EW", "FL", "GT", "HV", "IB", "JR"),
        seconds=("101", "204", "317", "420", "533", "646", "759"),
        texts={"airline": ("Aero", "Bluejet", "Cirrus", "Delfin", "Euroair", "Falcon"),
               "destination": ("Rome", "Paris", "Cairo", "Tokyo", "Lima")},
        numbers={"seats": (40, 320), "distance": (600, 9800)},
        linked=Linked(table="airlines", text="hub", texts=("Madrid", "Dublin", "Vienna", "Madrid", "Athens", "Dublin"),
                      number="planes", numbers=(34, 18, 52, 11, 27, 40)),
    ),
    Schema(
        table="songs", name="song", firsts=("Bright", "Crazy", "Distant", "Early", "Faded", "Gentle", "Happy", "Inner", "Jolly", "Kind"),
        seconds=("Heart", "Night", "Rain", "Fire", "Dream", "Summer", "Shadow"),
        texts={"singer": ("Nova", "Orla", "Pike", "Quill", "Rhea", "Stone"),
               "album": ("Dawn", "Harbor", "Jungle", "Neon", "Vinyl")},
        numbers={"seconds": (120, 400), "plays": (1000, 9900)},
        linked=Linked(table="singers", text="language", texts=("French", "Irish", "English", "Dutch", "French", "English"),
                      number="concerts", numbers=(61, 22, 95, 37, 48, 80)),
    ),
)  # fmt: skip
