"""How object names inflect, and by which other words captions mention the same thing.

The irregular forms and the synonyms cover COCO's 80 categories; any other name follows the
regular rules ("red star" -> "a red star", "red stars").
"""

import re
from dataclasses import dataclass
from functools import cache

from negclip_jax.language.word_classes import word_set

PLURALS = {
    "person": "people",
    "mouse": "mice",
    "knife": "knives",
    "sheep": "sheep",
    "scissors": "scissors",
    "skis": "skis",
    "broccoli": "broccoli",
    "man": "men",
    "woman": "women",
    "child": "children",
    "tooth": "teeth",
    "foot": "feet",
    "leaf": "leaves",
    "shelf": "shelves",
    "loaf": "loaves",
    "scarf": "scarves",
    "calf": "calves",
    "half": "halves",
    "wolf": "wolves",
    "wife": "wives",
    "goose": "geese",
    "ox": "oxen",
    "cactus": "cacti",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "mango": "mangoes",
    "hero": "heroes",
    "bookshelf": "bookshelves",
    "fish": "fish",
    "deer": "deer",
    "bison": "bison",
    "aircraft": "aircraft",
    "cattle": "cattle",
}
# Words without a plural: "no snow", "without any snow".
MASS = word_set("""
broccoli bread butter cheese water snow ice grass sand furniture luggage baggage silverware
cutlery clothing food rice pasta milk beer wine juice jewelry traffic equipment fruit sauce
lettuce spinach corn garlic bacon ham meat beef pork graffiti smoke fog rain soup soap
toothpaste chocolate ketchup mustard mayonnaise syrup honey sugar salt hay straw mud dirt trash
garbage litter paper toast sunlight electricity glassware machinery merchandise cream
""")
PLURAL_ONLY = word_set("""
scissors skis sunglasses glasses eyeglasses goggles shorts pants trousers jeans headphones
earphones binoculars tongs pliers pajamas fries clothes
""")
HUMANS = {"person", "people", "human"}
_MEN = re.compile(r"(?!german|human|roman|caiman|talisman|shaman)\w*man$")
# Written with a vowel and spoken with a consonant, and the other way round.
CONSONANT_SOUND = re.compile(r"(uni(?!n)|use|eu|one\b|ut)", re.IGNORECASE)
VOWEL_SOUND = re.compile(r"(hour|honest|heir|x-|mri\b|lcd\b|suv\b)", re.IGNORECASE)

# Other words for a category, singular. A caption with one of them mentions the category.
SYNONYMS = {
    "person": (
        "man woman child boy girl kid guy lady gentleman baby toddler infant adult teenager "
        "human player skier surfer snowboarder skateboarder rider cyclist biker batter catcher "
        "pitcher umpire referee driver pedestrian passenger chef cook worker officer policeman "
        "soldier student teacher couple crowd family friend team audience spectator bride groom "
        "male female someone somebody everyone anyone pilot waiter waitress vendor performer "
        "businessman fisherman cowboy jockey athlete tourist shopper customer individual "
        "swimmer golfer skater"
    ),
    "bicycle": "bike cycle bmx",
    "car": "automobile vehicle suv sedan van taxi cab minivan hatchback",
    "motorcycle": "motorbike bike scooter moped motorcyle",
    "airplane": "plane aeroplane aircraft jet jetliner airliner biplane",
    "bus": "minibus coach trolley",
    "train": "locomotive subway tram railcar",
    "truck": "lorry pickup semi trailer firetruck van vehicle",
    "boat": "ship canoe kayak sailboat ferry yacht raft vessel barge gondola",
    "traffic light": "traffic-light stoplight signal",
    "fire hydrant": "hydrant",
    "parking meter": "meter",
    "bench": "pew seat",
    "bird": (
        "duck goose swan pigeon seagull gull parrot owl chicken rooster hen eagle hawk crow "
        "ostrich penguin flamingo peacock geese crane heron"
    ),
    "cat": "kitten kitty feline tabby",
    "dog": "puppy pup hound canine dachshund poodle terrier bulldog retriever",
    "horse": "pony stallion mare foal colt",
    "sheep": "lamb ram ewe",
    "cow": "cattle bull calf ox steer bovine longhorn livestock",
    "bear": "cub grizzly panda",
    "backpack": "rucksack bag knapsack",
    "umbrella": "parasol",
    "handbag": "purse bag tote",
    "tie": "necktie bowtie",
    "suitcase": "luggage baggage bag briefcase trunk",
    "frisbee": "disc disk",
    "skis": "ski",
    "snowboard": "board",
    "sports ball": "ball baseball basketball football volleyball soccer tennis",
    "baseball bat": "bat",
    "baseball glove": "glove mitt",
    "skateboard": "board longboard",
    "surfboard": "board",
    "tennis racket": "racket racquet",
    "bottle": "flask",
    "wine glass": "glass wineglass goblet glassware",
    "cup": "mug glass teacup beverage coffee tea drink",
    "knife": "cutlery silverware utensil blade",
    "fork": "cutlery silverware utensil",
    "spoon": "cutlery silverware utensil ladle spatula",
    "bowl": "dish container",
    "apple": "fruit",
    "banana": "fruit plantain",
    "orange": "fruit tangerine mandarin citrus",
    "sandwich": "burger hamburger sub panini wrap hoagie",
    "broccoli": "vegetable veggie",
    "carrot": "vegetable veggie",
    "hot dog": "hotdog sausage frank frankfurter",
    "donut": "doughnut pastry",
    "cake": "cupcake dessert cheesecake pastry",
    "chair": "armchair stool seat recliner",
    "couch": "sofa loveseat settee futon",
    "potted plant": "plant houseplant flower",
    "bed": "mattress bunk bedroom",
    "dining table": "table desk counter",
    "toilet": "urinal commode bathroom restroom",
    "tv": "television monitor screen television set",
    "laptop": "computer notebook macbook",
    "mouse": "computer",
    "remote": "controller wii wiimote",
    "keyboard": "computer",
    "cell phone": "phone cellphone smartphone iphone mobile telephone",
    "microwave": "appliance",
    "oven": "stove appliance range",
    "toaster": "appliance",
    "sink": "basin washbasin",
    "refrigerator": "fridge freezer appliance",
    "book": "novel magazine textbook bookshelf bookcase",
    "clock": "watch",
    "vase": "pot",
    "scissors": "shears",
    "teddy bear": "teddy stuffed bear plush toy",
    "hair drier": "dryer hairdryer blow-dryer",
    "toothbrush": "brush",
}


@dataclass(frozen=True)
class Noun:
    """An object name with its forms.

    `one` and `many` are what follows "no"; `a` what follows "without"; `is_` and `are` the
    verbs that agree with `one` and with `many`.
    """

    one: str
    many: str
    a: str
    is_: str = "is"
    are: str = "are"
    human: bool = False

    @property
    def some(self) -> str:
        """How a caption names the object: "a dog", but "broccoli" and "scissors"."""
        return self.one if self.a.startswith("any ") else self.a

    @property
    def slots(self) -> dict[str, str]:
        """The noun's words under the names that templates use."""
        return {
            "x": self.one,
            "xs": self.many,
            "a": self.a,
            "some": self.some,
            "is": self.is_,
            "are": self.are,
            "isnt": f"{self.is_}n't",
            "arent": f"{self.are}n't",
            "lack": "is" if self.are == "is" else "are",
        }


def plural(name: str) -> str:
    """Plural of a name by its last word: 'wine glass' -> 'wine glasses'."""
    head, _, last = name.rpartition(" ")
    if last in PLURALS or last in PLURAL_ONLY:
        many = PLURALS.get(last, last)
    elif _MEN.match(last):
        many = f"{last[:-2]}en"
    elif re.search(r"(s|x|z|ch|sh)$", last):
        many = f"{last}es"
    elif re.search(r"[^aeiou]y$", last):
        many = f"{last[:-1]}ies"
    else:
        many = f"{last}s"
    return f"{head} {many}".strip()


# Words in -s that are singular, and those in -ies that only lose an s.
_SINGULAR = re.compile(
    r"\w*(ss|us|is)|gas|lens|canvas|christmas|always|news|series|dais|as|was|has"
)
_BY_PLURAL = {many: one for one, many in PLURALS.items()}
_IE = re.compile(r"(^|.*[^a-z])(movie|cookie|brownie|pie|tie|necktie|bowtie|hoodie|smoothie)s$")


@cache
def singular(name: str) -> str:
    """Singular of a name by its last word: 'wine glasses' -> 'wine glass'; others as they are."""
    head, _, last = name.rpartition(" ")
    if last == "glasses" and head:  # "wine glasses", not those on a nose
        return f"{head} glass"
    return f"{head} {_singular(last)}".strip()


def _singular(word: str) -> str:
    if word in _BY_PLURAL:
        return _BY_PLURAL[word]
    if word in PLURAL_ONLY or word in MASS or len(word) < 3 or _SINGULAR.fullmatch(word):
        return word
    if word.endswith("men"):
        return f"{word[:-2]}an"
    if _IE.match(word):
        return word[:-1]
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    if re.search(r"(ss|x|zz|ch|sh|bus|gas|lens)es$", word):
        return word[:-2]
    return word[:-1] if word.endswith("s") else word


def article(name: str) -> str:
    """'a' or 'an', by sound: an apple, an hour, a unicorn."""
    if CONSONANT_SOUND.match(name):
        return "a"
    return "an" if name[0].lower() in "aeiou" or VOWEL_SOUND.match(name) else "a"


@cache
def noun(name: str) -> Noun:
    """The forms of an object name, lower case. Raises ValueError for an empty name."""
    name = " ".join(name.split())
    if not name:
        raise ValueError("an object needs a name, got an empty one")
    last = name.rpartition(" ")[2]
    if last in MASS:
        return Noun(name, name, f"any {name}", are="is")
    if last in PLURAL_ONLY:
        return Noun(name, name, f"any {name}", is_="are")
    return Noun(name, plural(name), f"{article(name)} {name}", human=name in HUMANS)


@cache
def mention(name: str) -> re.Pattern[str]:
    """A pattern that finds the object, its plural or a synonym in a caption."""
    words = {name, *SYNONYMS.get(name, "").split()}
    forms = words | {plural(word) for word in words}
    ordered = "|".join(sorted(map(re.escape, forms), key=len, reverse=True))
    return re.compile(rf"\b({ordered})(?:'s)?\b", re.IGNORECASE)
