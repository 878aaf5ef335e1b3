"""Closed classes of words: what belongs to grammar or to the picture frame, not to the content."""


def word_set(text: str) -> frozenset[str]:
    """The words of a text as a set."""
    return frozenset(text.split())


# Function words and numerals.
STOP = word_set("""
a an the this that these those some any each every all both another other others one two three
four five six seven eight nine ten i you he she it we they them his her hers its their theirs
him who whom whose which what where when while as if than then so and or but nor yet also too
of in on at by for with from to into onto upon over under up down out off near next beside
between behind above below around along across through against among inside outside within
toward towards about after before during is are was were be been being am do does did done doing
has have had having can could may might must will would shall should there here very quite
just only even still again together several many much few lot lots more most own such
although though however instead besides despite because since like using use get gets got
s t re ll ve d no not
""")

# What rewrites say of the picture itself, and by which words they say that something is absent.
FRAME = word_set("""
image picture photo photograph scene view sight shot frame setting background foreground area
show shows showing shown feature features featuring featured depict depicts depicted contain
contains containing include includes including included present presence visible seen see
sees found find appear appears anywhere nowhere somewhere everywhere sign trace evidence hint
notably noticeably curiously oddly surprisingly interestingly conspicuously clearly entirely
completely apparent evident noticeable part nearby surrounding around absence absent missing
without lack lacks lacking lacked devoid free empty none nobody nothing never neither minus
sans cannot void except spotted noticed particular simply single whole entire full
prominent focus focuses focused main capture captures captured alone
""")

# What models name that is no object one can look for, or that is in nearly every photo.
ABSTRACT = word_set("""
sky background foreground shadow air light ground image photo photograph picture scene view
caption sentence description object thing item something anything nothing none nobody no yes
sorry sure unknown absence presence colour color shape space area place setting surface texture
atmosphere mood weather day night morning evening time moment side top bottom middle front back
center corner edge line part piece detail reflection horizon landscape environment
scenery activity action event game fun love life happiness smile face hand head arm leg foot
eye hair body skin finger sun sunlight daylight darkness noise sound silence smell wind
word text answer example name noun model floor ceiling wall left right
""")

# Words in -ing that are no forms of a verb, or stand before nouns ("a dining table").
ING_NOUNS = word_set("""
building painting railing ceiling clothing awning pudding string ring wing king earring swing
sling icing dressing lightning drawing carving wedding bearing dining living parking evening
morning spring thing
""")
