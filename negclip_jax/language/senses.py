"""Which words name the same thing, and how surely: a small thesaurus of what photos show.

`nouns.SYNONYMS` lists every word by which a caption may mention one of COCO's 80 categories.
Here they are told apart, because rules need different answers:

- *same*: "sofa" and "couch". "No sofa" says "no couch", and the other way round.
- *kind*: "kitten" of "cat". A kitten is a cat, but "no kitten" does not say "no cat".
- *wider*: "computer" for "laptop". Mentioning it hints at the laptop and proves nothing.

Other things of everyday scenes are grouped by sameness alone in `SCENE`.
"""

from functools import cache

from negclip_jax.language.nouns import SYNONYMS, singular

# Words of SYNONYMS that mean the category itself; all others not in WIDER are kinds of it.
SAME = {
    "person": "human someone somebody anyone anybody individual",
    "bicycle": "bike cycle",
    "car": "automobile",
    "motorcycle": "motorbike motorcyle",
    "airplane": "plane aeroplane aircraft",
    "truck": "lorry",
    "traffic light": "traffic-light stoplight",
    "fire hydrant": "hydrant",
    "dog": "canine",
    "cat": "feline",
    "cow": "cattle",
    "backpack": "rucksack knapsack",
    "handbag": "purse",
    "tie": "necktie",
    "suitcase": "luggage",
    "wine glass": "wineglass",
    "cup": "mug",
    "hot dog": "hotdog frankfurter",
    "donut": "doughnut",
    "couch": "sofa settee",
    "potted plant": "houseplant",
    "tv": "television",
    "cell phone": "cellphone smartphone phone mobile",
    "refrigerator": "fridge",
    "sink": "basin washbasin",
    "baseball glove": "mitt",
    "hair drier": "hairdryer blow-dryer",
    "tennis racket": "racket racquet",
    "scissors": "shears",
    "oven": "stove",
    "skis": "ski",
    "toilet": "commode",
}

# Words that are said of other things too, or that only go with the category.
WIDER = {
    "person": "player worker officer cook pilot driver pitcher batter",
    "bicycle": "bmx",
    "car": "vehicle van suv cab taxi minivan",
    "motorcycle": "bike scooter moped",
    "bus": "coach trolley",
    "train": "subway tram",
    "truck": "van vehicle trailer semi pickup",
    "boat": "vessel raft",
    "traffic light": "signal",
    "parking meter": "meter",
    "bench": "seat pew",
    "bird": "chicken crane",
    "cow": "livestock steer",
    "bear": "cub",
    "backpack": "bag",
    "umbrella": "parasol",
    "handbag": "bag tote",
    "suitcase": "baggage bag briefcase trunk",
    "frisbee": "disc disk",
    "snowboard": "board",
    "sports ball": "ball baseball basketball football volleyball soccer tennis",
    "baseball bat": "bat",
    "baseball glove": "glove",
    "skateboard": "board",
    "surfboard": "board",
    "bottle": "flask",
    "wine glass": "glass glassware",
    "cup": "glass beverage coffee tea drink",
    "knife": "cutlery silverware utensil blade",
    "fork": "cutlery silverware utensil",
    "spoon": "cutlery silverware utensil ladle spatula",
    "bowl": "dish container",
    "apple": "fruit",
    "banana": "fruit plantain",
    "orange": "fruit citrus",
    "sandwich": "wrap",
    "broccoli": "vegetable veggie",
    "carrot": "vegetable veggie",
    "hot dog": "sausage frank",
    "donut": "pastry",
    "cake": "dessert pastry",
    "chair": "seat stool recliner",
    "couch": "futon loveseat",
    "potted plant": "plant flower",
    "bed": "mattress bunk bedroom",
    "dining table": "table desk counter",
    "toilet": "urinal bathroom restroom",
    "tv": "monitor screen set",
    "laptop": "computer notebook",
    "mouse": "computer",
    "remote": "controller wii wiimote",
    "keyboard": "computer",
    "cell phone": "telephone",
    "microwave": "appliance",
    "oven": "appliance range",
    "toaster": "appliance",
    "refrigerator": "freezer appliance",
    "book": "magazine bookshelf bookcase",
    "clock": "watch",
    "vase": "pot",
    "teddy bear": "teddy stuffed bear plush toy",
    "hair drier": "dryer",
    "toothbrush": "brush",
}

# Things outside COCO's categories; words of one line mean the same for a caption.
SCENE = """
street, road, roadway, avenue
sidewalk, pavement, walkway, footpath
path, trail
highway, freeway, motorway
beach, shore, shoreline, seashore
ocean, sea
river, stream, creek
lake, pond
mountain, peak
hill, hillside, slope
forest, wood, woodland, jungle
field, meadow, pasture, grassland
yard, lawn, backyard
garden
park
zoo
farm
barn, stable
fence, railing
gate
wall
building, skyscraper
house, home, cottage
tower
bridge, overpass
church, cathedral, chapel
store, shop
restaurant, cafe, diner, bistro
office
kitchen
bathroom, restroom, washroom
bedroom
hotel
school, classroom
hospital
airport
station
stadium, arena
court
playground
pool
tree
palm
bush, shrub
flower, blossom
leaf
branch, twig
rock, boulder, stone
sign, signpost, signboard
lamp, lantern
streetlight, lamppost, streetlamp
pole, pillar
statue, sculpture
fountain
flag, banner
tent, canopy, marquee
kite
balloon
candle
mirror
window
door, doorway
curtain, drape
rug, carpet, mat
pillow, cushion
blanket, quilt, comforter
towel
shelf, bookshelf, bookcase
cabinet, cupboard
drawer, dresser
closet, wardrobe
fireplace
ladder
stair, staircase, step
roof, rooftop
chimney
balcony, porch, patio, deck
plate
tray, platter
basket
box, carton, crate
jar
pan, skillet
kettle, teapot
blender, mixer
napkin, tissue
tablecloth
straw
pizza
burger, hamburger, cheeseburger
fries
salad
soup
bread, loaf, toast, bun
cheese
egg
rice
pasta, noodle, spaghetti
meat, steak, beef, pork
fish
tomato
potato
onion
lettuce
pepper
mushroom
strawberry
grape
lemon, lime
cookie, biscuit
pie
ice cream
chocolate
food, meal
toy
candy
wine
beer
juice
milk
hat, cap
helmet
glasses, eyeglasses, spectacles
sunglasses, shades
goggles
scarf
glove, mitten
coat, jacket
shirt, t-shirt, blouse
dress, gown
skirt
pants, trousers, jeans
shorts
shoe, sneaker, boot, sandal
sock
belt
collar
leash
buckle
strap
watch, wristwatch
ring
necklace
camera
microphone
guitar
piano
speaker, loudspeaker
headphones, earphones
printer
computer
desk
monitor, screen
fan
heater, radiator
bathtub, tub
shower
faucet, tap
soap
toothpaste
newspaper
magazine
paper
pen, pencil
map
poster
painting
portrait
stroller, pram
wheelchair
cart, wagon
carriage
tractor
helicopter
rocket
ambulance
trailer
tire, tyre, wheel
engine
trash can, garbage can, bin, dustbin
mailbox, postbox
bus stop
crosswalk
parking lot
rail, track
tunnel
cone
squirrel
rabbit, bunny
fox
wolf
deer
lion
tiger
monkey
goat
pig
duck
chicken, hen, rooster
penguin
seagull, gull
butterfly
bee
spider
snake
turtle
frog
shark
whale
dolphin
crab
elephant
giraffe
zebra
"""

_EQUAL: dict[str, frozenset[str]] = {}
for _name, _words in SAME.items():
    _EQUAL[_name] = frozenset((_name, *_words.split()))
for _line in SCENE.strip().splitlines():
    _group = frozenset(_line.split(", "))
    _EQUAL |= {word: _group for word in _group if word not in _EQUAL}
_CANONICAL = {word: name for name, words in SAME.items() for word in words.split()}
_CANONICAL |= {
    word: line.split(", ")[0]
    for line in SCENE.strip().splitlines()
    for word in line.split(", ")[1:]
    if word not in SYNONYMS
}


@cache
def same(name: str) -> frozenset[str]:
    """The words, singular, that mean exactly this thing; the name is one of them."""
    return frozenset((name,)) | _EQUAL.get(name, frozenset())


@cache
def kinds(name: str) -> frozenset[str]:
    """Words, singular, that prove the thing is there: the same, and kinds of it."""
    return same(name) | (frozenset(SYNONYMS.get(name, "").split()) - wider(name))


@cache
def wider(name: str) -> frozenset[str]:
    """Words, singular, that may stand for the thing and may stand for another."""
    return frozenset(WIDER.get(name, "").split())


def canonical(name: str) -> str:
    """One name for all that mean the same: "sofa" -> "couch", "road" -> "street"."""
    return _CANONICAL.get(name, name)


@cache
def things() -> dict[str, frozenset[str]]:
    """Every known word, singular, with the names of the things it may stand for."""
    table: dict[str, set[str]] = {}
    for name in {*SYNONYMS, *SAME}:
        for word in kinds(name) | wider(name):
            table.setdefault(word, set()).add(name)
    for line in SCENE.strip().splitlines():
        for word in line.split(", "):
            table.setdefault(word, set()).add(line.split(", ")[0])
    return {word: frozenset(names) for word, names in table.items()}


def concepts(word: str) -> frozenset[str]:
    """The things that a word, singular or plural, may stand for; empty if none is known."""
    table = things()
    return table.get(word) or table.get(singular(word)) or frozenset()
