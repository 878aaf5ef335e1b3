"""Every setting of the generation stage, declared once, with its unit and the reason for it.

Variants: `per_image` (the default), `frugal` (several questions in one call, for servers without a
prefix cache), `per_caption` (the published script's exact semantics), `random_objects` (its
ablation with random objects) and `quickstart` (short captions of a rendered world, no model).

    python -m data_gen run --config=configs/data_gen.py:frugal --config.verify.absent_at=0.9 ...
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = "per_image") -> ConfigDict:
    """The settings of a run; raises ValueError for an unknown variant."""
    if variant not in _VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; choose one of: {', '.join(_VARIANTS)}")
    config = base()
    _VARIANTS[variant](config)
    return config


def base() -> ConfigDict:
    """One proposal for all captions of an image, one question an object, one rewrite a caption."""
    config = ConfigDict()
    config.seed = 0  # choice of objects, captions and templates; and of the sampling, where served
    config.pipeline = "absence"  # "absence" (of objects) or "vqa" (questions answered "no")
    config.limit = placeholder(int)  # images, the first ones by id; None: all

    config.input = ConfigDict()
    # Required: COCO captions json; JSONL, Parquet, CSV or TSV with the columns `image`, `caption`;
    # or as for images `wds:PATTERN` (tars), `parquet:PATTERN` and `arrayrecord:PATTERN`.
    config.input.captions = placeholder(str)
    config.input.fields = placeholder(str)  # of these, e.g. "caption=title"; see data/fields.py
    config.input.images = placeholder(str)  # image folder; needed wherever a model looks at photos
    config.input.instances = placeholder(str)  # COCO instances json, where there is one
    config.input.questions = placeholder(str)  # "vqa": VQAv2 questions json; None: the LLM asks
    config.input.answers = placeholder(str)  # "vqa": VQAv2 annotations json to these questions
    config.input.objects = placeholder(str)  # propose.by="file": json of image id to object names

    # OpenAI-compatible servers. Several URLs of one model are separated by commas. The key is read
    # from the environment variable named here, so that it is in no file and no process list.
    config.llm = ConfigDict()
    config.llm.url = placeholder(str)  # e.g. http://HOST:8000/v1, "vllm" for one in this process
    config.llm.model = placeholder(str)  # None: the first that the server lists
    config.llm.key_variable = "LLM_API_KEY"
    # Images whose captions share a text request: one proposes for all, one writes for all, where a
    # whole image is the unit of either; photos are always asked about one by one. None: 4 where the
    # LLM was seen to answer for several, and in a run that goes on what it began with. Of the two
    # text requests an image 2 spare half, 4 three quarters, 8 seven eighths; but 8 have 40 captions
    # to lose count of and to ask for again, which no longer fit into 4,096 tokens with the answer.
    config.llm.images_per_request = placeholder(int)
    config.mllm = ConfigDict()
    config.mllm.url = placeholder(str)
    config.mllm.model = placeholder(str)
    config.mllm.key_variable = "MLLM_API_KEY"

    config.engine = ConfigDict()
    config.engine.concurrency = 256  # requests in flight to each server, at most
    config.engine.start_concurrency = 8  # doubled while the throughput grows
    config.engine.per_minute = 0.0  # requests to each server, 0: as many as it takes
    config.engine.timeout = 120.0  # seconds for one answer
    config.engine.tries = 5  # of one request, while others succeed
    config.engine.max_outage_seconds = 300.0  # seconds without any answer before the run stops
    config.engine.backoff = 0.5  # seconds; doubled with each try, times a random number
    config.engine.cache = "write"  # "write", "read" (add nothing) or "off"
    config.engine.window = 512  # images in work at once, at most
    # Fields that are added to the body of every request, as JSON or one by one, e.g.
    # --config.engine.extra_body.chat_template_kwargs.enable_thinking=false; null leaves one out.
    config.engine.extra_body = ""

    config.images = ConfigDict()
    config.images.long_side = 672  # pixels sent; LLaVA-NeXT cuts larger photos into more tokens
    # "data": photos are in the requests; "url": as images.url and their name; "file": as file:// of
    # a folder that the server sees too (vLLM: --allowed-local-media-path).
    config.images.by = "data"
    config.images.url = ""  # e.g. http://HOST/train2014/

    config.prompts = placeholder(str)  # folder with NAME.txt in place of those in data_gen/prompts
    config.max_errors = 0.05  # share of requests that may fail before the run stops
    config.max_rejects = 0.05  # share of captions that ingest may refuse
    config.shard_images = 500  # images a part of each table; what a lost worker costs

    _stages(config)
    return config


def _stages(config: ConfigDict) -> None:
    config.propose = ConfigDict()
    config.propose.by = "auto"  # "llm", "cooccurrence", "random", "file"; auto: llm if there is one
    # What one proposal is for: "image", with all its captions, or "caption": one object for each
    # caption, from that caption alone.
    config.propose.unit = "image"
    config.propose.number = 6  # objects (or questions) an image
    # Things that are there, an image, proposals counted: for the others a model is asked about
    # what one caption names and others leave unsaid. Where one request asks all, as many as are
    # proposed. What boxes tell of the photo is not asked.
    config.propose.present = 4
    # Objects an image that captions of other photos name, asked about in turns with the LLM's: what
    # is never there is truly absent without a look at the photo. 0: the LLM's alone.
    config.propose.others = 3
    config.propose.temperature = 0.7
    config.propose.top_p = 0.95
    # Share of draws by "cooccurrence" that are even over all absent objects: if only plausible ones
    # are denied, "no oven" is only ever said of kitchens and may be learned as a word for them.
    config.propose.random = 0.0
    config.propose.filter = True  # drop what a caption mentions, by any of its names, before asking

    config.verify = ConfigDict()
    config.verify.by = "auto"  # "mllm", "instances"; auto: mllm if there is one
    # "multi": all questions about an image in one call, with a probability for each answer where
    # the server tells them; what is unsure is asked alone. auto where the server was seen to answer
    # several. "logprobs", "choice", "text": one question a call, about four times the calls; auto:
    # the best that the server can. "substring": the published rule, by which every answer without
    # "yes" is an absence.
    config.verify.method = "auto"
    config.verify.absent_at = 0.8  # p_no / (p_yes + p_no) from which an object is absent
    config.verify.present_at = 0.5  # p_yes / (p_yes + p_no) from which it is present
    config.verify.min_answer_probability = 0.5  # p_yes + p_no below which it is no answer
    config.verify.questions_per_round = 2  # until enough objects are absent; 0: all in one round
    config.verify.max_tokens = 10  # where text is read
    config.verify.instances_first = True  # COCO's 80 classes cost no call where boxes are given
    config.verify.min_no_votes = 8  # "vqa": of the ten annotators of a VQAv2 question

    config.assign = ConfigDict()
    config.assign.captions_per_object = 3  # of one image; another object serves the others
    config.assign.skip_negated = True  # captions that already negate something

    config.rewrite = ConfigDict()
    config.rewrite.by = "auto"  # "llm" or "template"; auto: llm if there is one
    config.rewrite.unit = "image"  # all captions of an image in one call, or one "caption"
    config.rewrite.templates = 0.0  # share written by the grammar although there is an LLM
    config.rewrite.temperature = 0.7
    config.rewrite.top_p = 0.95
    config.rewrite.max_tokens = 120  # a caption
    config.rewrite.tries = 2  # a rejected rewrite is made once more
    config.rewrite.require_rules = True  # False: broken rules are recorded, and all is accepted

    # The writer "template" (and, for `style` and `hold_out`, the foils):
    config.rewrite.style = "natural"  # "plain": more words and orders, for "a red star and a moon"
    config.rewrite.before = 0.35  # share of negations before the caption; English has fewer of them
    config.rewrite.statements = 0.0  # share of captions replaced by "there is no dog" alone
    # Cue words and template names of language/data/templates.tsv never to be used, separated by
    # commas: to ask a model later about words that it was not trained on.
    config.rewrite.hold_out = ""
    # "edit": foils are the caption changed as little as possible; "template": the pair's template
    # said of an object that is there, so that no form of words tells truth from falsehood.
    config.rewrite.foils_by = "edit"
    config.rewrite.affirm = False  # True: the second foil says that the absent object is there

    config.check = ConfigDict()
    config.check.max_tokens = 77  # of CLIP, start and end included; what is behind them is not read
    config.check.tokenizer = placeholder(str)  # folder with CLIP's vocabulary; None: estimate

    config.foils = 2  # captions a pair that are false of the photo, at most

    config.export = ConfigDict()
    config.export.max_per_object = placeholder(int)  # pairs of one object; None: all

    # For `plan`, in your own currency a million tokens; nothing is built in.
    config.prices = ConfigDict()
    config.prices.llm_input = 0.0
    config.prices.llm_output = 0.0
    config.prices.mllm_input = 0.0
    config.prices.mllm_output = 0.0


def _frugal(config: ConfigDict) -> None:
    """The photo is sent once an image: for servers that compute it again for each question."""
    config.verify.method = "multi"


def _per_caption(config: ConfigDict) -> None:
    """The published script: one object a caption, no second try, nothing checked."""
    config.llm.images_per_request = 1
    config.propose.unit = "caption"
    config.propose.present = 0
    config.propose.others = 0
    config.propose.temperature = 0.6
    config.propose.top_p = 0.9
    config.propose.filter = False
    config.verify.method = "substring"
    config.verify.questions_per_round = 0
    config.verify.instances_first = False
    config.assign.skip_negated = False
    config.rewrite.unit = "caption"
    config.rewrite.temperature = 0.6
    config.rewrite.top_p = 0.9
    config.rewrite.max_tokens = 256
    config.rewrite.tries = 1
    config.rewrite.require_rules = False
    config.foils = 0


def _random_objects(config: ConfigDict) -> None:
    """The published ablation: objects that have nothing to do with the photo."""
    _per_caption(config)
    config.propose.by = "random"


def _quickstart(config: ConfigDict) -> None:
    """Short captions of a rendered world, no model: many words and orders, foils of the same words.

    Each caption gets an object of its own, as there are few in a scene to learn from.
    """
    config.propose.number = 3  # as many as a scene has captions: each object is used
    config.assign.captions_per_object = 1
    config.rewrite.style = "plain"
    config.rewrite.before = 0.3
    config.rewrite.foils_by = "template"
    config.rewrite.affirm = True  # else a caption with a negation is always the better choice


_VARIANTS = {
    "per_image": lambda config: None,
    "frugal": _frugal,
    "per_caption": _per_caption,
    "random_objects": _random_objects,
    "quickstart": _quickstart,
}
