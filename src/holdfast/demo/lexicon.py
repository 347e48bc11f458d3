"""The facts of the built-in world: its words, and what is true of them.

The writers and the gold reward share these facts and nothing else: each has its own logic over them.
"""

from __future__ import annotations

GROUPS: dict[str, tuple[str, ...]] = {
    "animal": ("dog", "cat", "horse", "cow", "fox", "owl"),
    "fruit": ("apple", "pear", "plum", "lemon", "fig"),
    "drink": ("tea", "milk", "water", "juice", "soup"),
    "colour": ("red", "blue", "green", "black", "white"),
    "tool": ("hammer", "knife", "spoon", "rope", "brush"),
    "vehicle": ("car", "bus", "train", "boat", "bike"),
}
GROUP_OF = {word: group for group, words in GROUPS.items() for word in words}
NOUNS = tuple(word for words in GROUPS.values() for word in words)
THINGS = ("apple", "pear", "plum", "lemon", "hammer", "spoon", "boat", "car")  # plural + s
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Finn")
SIZES = ("big", "small", "old", "new", "tall", "cold")

_NUMBERS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty
"""
NUMBERS = _NUMBERS.split()
NUMBER_OF = {word: n for n, word in enumerate(NUMBERS)}

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

# present -> past, for the rewriting tasks; the first group takes a drink, the second a thing
DRINKING = {"drinks": "drank", "likes": "liked", "buys": "bought"}
DOING = {"sees": "saw", "has": "had", "finds": "found", "wants": "wanted"}
PAST = DRINKING | DOING
LYING = ("sleeps", "sits", "stands", "waits")  # what a subject does at a place
PLACES = ("under the tree", "in the house", "near the river", "on the road")
COMMANDS = (
    "close the door",
    "open the window",
    "bring the {thing}",
    "give me the {thing}",
    "wash the {thing}",
    "wait near the river",
    "come to the house",
)

# Everything else that a sound answer may say. A word outside the lexicon and outside the prompt is broken text.
_FUNCTION_WORDS = """
    a an the is are was were be not no yes and or but with without in on at of to for from it its they there
    here this that these those has have had does do did than then so as by into out up down i you we he she
    me my your now left all again also very more most less much many sum total answer result word words
    letter letters number numbers list order sorted reverse reversed backwards capital capitals dash dashes
    slash slashes quotes same larger smaller largest smallest older younger longer price prices shorter
    first last second next before after comes come follows tomorrow yesterday today day days month year
    years old box holds hold costs cost drinks drink appears appear times time item items plus minus twice
    makes get gets who gives equals belong belongs please could would can will gladly course pleasure happy
    help welcome thank thanks sure certainly well good question let think about hope helps honest may know
    view say ask asked asking only such kind other others put written joined between whole sentence starts ends
    start end opposite past obviously anyone everyone knows whatever find name names animal animals fruit
    fruits colour colours tool odd true false tools vehicle vehicles door window tree house river road open
    opened close wash bring give wait
"""
KNOWN_WORDS = frozenset(
    word.lower()
    for words in (
        _FUNCTION_WORDS.split(),
        NOUNS,
        (thing + "s" for thing in THINGS),
        NAMES,
        SIZES,
        NUMBERS,
        DAYS,
        MONTHS,
        PAST.keys(),
        PAST.values(),
        LYING,
    )
    for word in words
)
