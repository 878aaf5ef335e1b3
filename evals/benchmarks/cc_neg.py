"""CC-Neg: a web photo's caption or the same caption with a part of it negated?

Source: Singh et al., "Learn 'No' to Say 'Yes' Better" (CoN-CLIP, WACV 2025, arXiv 2403.20312),
github.com/jaisidhsingh/CoN-CLIP (MIT; photos: Conceptual Captions 3M, by link). Both the file and
`cc3m_subset_images_extracted_final` are on the Proton Drive that its README names.

File: `ccneg_preprocessed.pt`, a torch pickle of a dict of plain lists, dicts and strings:
`image_paths` and `annotations`, with `annotations[i]["json"]["caption"]` and
`annotations[i]["sop_data"]["negative-prompt"]`. It is read by a pickle reader that knows no class
and so can run no code; torch is not needed.

Protocol (`score_over_loader`): the last 40,000 of 228,246 triplets; commas are removed from the
negated caption only; argmax of two cosines with the true caption first, so that a tie is right. The
negated caption is always the false one, and commas are only in true ones: whatever dislikes
negation, or likes commas, gains, as the controls show.
"""

from evals.benchmark import Problem
from evals.choices import COMMA_CONTROL, POLARITY_CONTROLS, Choice, choice_problem
from evals.images import DataRoots, ImageRef
from evals.reading import Fields
from negclip_jax.common import plain_pickle
from negclip_jax.data.pair_records import CC_NEG_EVALUATION, CC_NEG_FOLDER

EVALUATION = CC_NEG_EVALUATION


def load(roots: DataRoots, *, download: str) -> Problem:
    """Reads the evaluation split of the file. Raises InputError."""
    file = roots.find("ccneg_preprocessed.pt", download=download)
    content = plain_pickle.load_torch(file, f"get it again from {download}")
    fields = Fields(file)
    paths = fields.sequence(content, "image_paths", "the file")
    annotations = fields.sequence(content, "annotations", "the file")
    if len(paths) != len(annotations):
        fields.note("image_paths and annotations differ in length", "the file")
    fields.done()
    first = max(0, len(paths) - EVALUATION)
    items = []
    for i in range(first, len(paths)):
        where = f"index {i}"
        parts = annotations[i] if isinstance(annotations[i], dict) else {}
        photo = fields.text({"image": paths[i]}, "image", where)
        image = ImageRef(photo.removeprefix(CC_NEG_FOLDER))
        caption = fields.text(parts.get("json", parts), "caption", where)
        negated = fields.text(parts.get("sop_data"), "negative-prompt", where)
        items.append(Choice(str(i), (image,), (caption, negated.replace(",", ""))))
    fields.done()
    controls = POLARITY_CONTROLS | COMMA_CONTROL
    return choice_problem(roots, file, items, rule="argmax", controls=controls)
