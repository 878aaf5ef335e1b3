"""From settings to the parts of a run: who proposes, who verifies, who rewrites."""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from data_gen.engines.base import Capabilities, Engine
from data_gen.images import PhotoFolder
from data_gen.pipeline import ImagePipeline
from data_gen.prompts import Prompt
from data_gen.settings import Settings, require
from data_gen.stages import propose, verify, writers
from data_gen.stages.rewrite import Checker, RewriteStage
from negclip_jax.common.errors import InputError
from negclip_jax.language.grammar import Grammar
from negclip_jax.language.vocabulary import CATEGORIES


@dataclass(frozen=True)
class Roles:
    """Who does what in a run, after "auto" is resolved."""

    propose: str
    verify: str
    rewrite: str

    @property
    def needs_llm(self) -> bool:
        return "llm" in (self.propose, self.rewrite)

    @property
    def needs_mllm(self) -> bool:
        return self.verify == "mllm"


@dataclass(frozen=True)
class Models:
    """The engines of a run and what they were seen to do; None where a role needs none."""

    llm: Engine | None = None
    llm_can: Capabilities | None = None
    mllm: Engine | None = None
    mllm_can: Capabilities | None = None


@dataclass(frozen=True)
class Annotations:
    """Instance annotations in the forms that stages need; empty without a file.

    Attributes:
      verifier: a `data_gen.annotations.InstanceVerifier`.
      statistics: a `data_gen.cooccurrence.Cooccurrence`.
      present: everything annotated, by image id.
      visible: what is annotated and plain to see, not tiny and no mere crowd.
    """

    verifier: Any = None
    statistics: Any = None
    present: Mapping[str, frozenset[str]] = field(default_factory=dict)
    visible: Mapping[str, frozenset[str]] = field(default_factory=dict)


def resolve(config: Settings) -> Roles:
    """The roles that the settings ask for. Raises InputError for what they lack."""
    require(config, "input.captions")
    llm, mllm = config.llm.url, config.mllm.url
    annotated = config.input.instances is not None
    roles = Roles(
        _proposer(config),
        _auto(config.verify.by, "mllm" if mllm else "instances"),
        _auto(config.rewrite.by, "llm" if llm else "template"),
    )
    if config.pipeline == "vqa":
        files = (config.input.questions, config.input.answers)
        if files.count(None) == 1:
            raise InputError("--questions and --answers belong together: VQAv2's two files")
        if None not in files:
            roles = Roles("vqa", "votes", roles.rewrite)
        elif not (llm and mllm):
            raise InputError(
                "pipeline vqa needs VQAv2's files (--questions and --answers), or models that ask "
                "and answer (--llm-url and --mllm-url)"
            )
        else:
            roles = Roles("llm", "mllm", roles.rewrite)
    _check(config, roles, annotated)
    return roles


def _auto(wished: str, best: str) -> str:
    return best if wished == "auto" else wished


def _proposer(config: Settings) -> str:
    if config.input.objects is not None and config.propose.by == "auto":
        return "file"
    return _auto(config.propose.by, "llm" if config.llm.url else "cooccurrence")


def _check(config: Settings, roles: Roles, annotated: bool) -> None:
    if roles.needs_llm and not config.llm.url:
        raise InputError("an LLM is to propose or rewrite, but there is none; give --llm-url")
    if roles.needs_mllm and not config.mllm.url:
        raise InputError("a model is to look at the photos; give --mllm-url, or --instances")
    if roles.needs_mllm:
        require(config, "input.images")
    if not annotated and (roles.verify == "instances" or roles.propose == "cooccurrence"):
        raise InputError(
            "without models, objects and their absence come from annotations: give --instances, "
            "or --llm-url and --mllm-url"
        )
    if roles.propose == "file":
        require(config, "input.objects")
    grammar_of(config)


def build(
    config: Settings,
    prompts: Mapping[str, Prompt],
    models: Models,
    threads: Executor,
    run_id: str,
    source: str,
) -> ImagePipeline:
    """The pipeline of a run. Raises InputError for input files that cannot be used."""
    roles = resolve(config)
    annotations = load_annotations(config)
    for_llm, for_mllm = fitting(prompts, models.llm_can), fitting(prompts, models.mllm_can)
    return ImagePipeline(
        config,
        build_proposer(config, roles, for_llm, models, annotations),
        build_verifier(config, roles, for_mllm, models, annotations),
        RewriteStage(
            build_writer(config, roles, for_llm, models),
            Checker(token_counter(config), config.check.max_tokens, config.rewrite.require_rules),
            config.rewrite.tries,
            config.foils,
            config.seed,
            {"pipeline": config.pipeline, "run_id": run_id},
            grammar_of(config),
            config.rewrite.foils_by,
            config.rewrite.affirm,
        ),
        PhotoFolder(config.input.images, config.images.long_side) if config.input.images else None,
        annotations.visible,
        threads,
        source,
    )


def fitting(prompts: Mapping[str, Prompt], can: Capabilities | None) -> Mapping[str, Prompt]:
    """The prompts in the form that the model takes."""
    if can is None or can.system:
        return prompts
    return {name: prompt.without_system() for name, prompt in prompts.items()}


def build_proposer(
    config: Settings,
    roles: Roles,
    prompts: Mapping[str, Prompt],
    models: Models,
    annotations: Annotations,
) -> propose.Proposer:
    """Who names candidates."""
    settings, per_caption = config.propose, config.propose.unit == "caption"
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p}
    match roles.propose:
        case "vqa":
            return propose.VQAProposer()
        case "file":
            return propose.FileProposer(config.input.objects)
        case "random":
            return propose.RandomProposer(CATEGORIES, settings.number, config.seed, per_caption)
        case "cooccurrence":
            return propose.CooccurrenceProposer(
                annotations.statistics, annotations.present, settings.number, config.seed
            )
    model = models.llm_can.model
    if config.pipeline == "vqa":
        prompt = prompts["questions"]
    elif per_caption:
        return propose.CaptionProposer(models.llm, model, prompts["propose_caption"], **sampling)
    else:
        prompt = prompts["propose"]
    return propose.LLMProposer(models.llm, models.llm_can, prompt, settings.number, **sampling)


def build_verifier(
    config: Settings,
    roles: Roles,
    prompts: Mapping[str, Prompt],
    models: Models,
    annotations: Annotations,
) -> verify.Verifier:
    """Who tells absent from present."""
    if roles.verify == "votes":
        return verify.VoteVerifier(config.verify.min_no_votes)
    if roles.verify == "instances":
        return verify.AnnotationVerifier(annotations.verifier, None)
    settings, can = config.verify, models.mllm_can
    thresholds = verify.Thresholds(
        settings.absent_at, settings.present_at, settings.min_answer_probability
    )
    method = verify.method_for(settings.method, can)
    # What a joint answer leaves open is asked alone, by the best way that the server knows.
    alone = verify.single_method(can) if method == "multi" else method
    verifier = verify.ModelVerifier(
        models.mllm, can, prompts["verify"], thresholds, alone, settings.max_tokens
    )
    if method == "multi":
        many = prompts["verify_many"]
        verifier = verify.ManyVerifier(models.mllm, can, many, thresholds, verifier, config.seed)
    if annotations.verifier is not None and settings.instances_first:
        verifier = verify.AnnotationVerifier(annotations.verifier, verifier)
    if settings.questions_per_round and method != "multi":
        return verify.UntilEnough(
            verifier, settings.questions_per_round, config.assign.captions_per_object
        )
    return verifier


def build_writer(
    config: Settings, roles: Roles, prompts: Mapping[str, Prompt], models: Models
) -> writers.Writer:
    """Who rewrites."""
    template = writers.TemplateWriter(config.seed, grammar_of(config))
    if roles.rewrite == "template":
        return template
    settings = config.rewrite
    llm = writers.LLMWriter(
        models.llm,
        models.llm_can,
        prompts,
        many=settings.unit == "image",
        one="rewrite" if config.rewrite.require_rules else "rewrite_caption",
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=config.seed,
    )
    if settings.templates:
        return writers.MixedWriter(llm, template, settings.templates, config.seed)
    return llm


def grammar_of(config: Settings) -> Grammar:
    """What the writer "template" and the foils are written with. Raises InputError."""
    settings = config.rewrite
    names = tuple(name for name in settings.hold_out.split(",") if name)
    try:
        return Grammar(settings.style, names, settings.before, settings.statements)
    except ValueError as error:
        raise InputError(f"rewrite.hold_out: {error}") from None


def load_annotations(config: Settings) -> Annotations:
    """Instance annotations, if there are any."""
    if config.input.instances is None:
        return Annotations()
    from data_gen.annotations import InstanceVerifier
    from data_gen.cooccurrence import Cooccurrence

    verifier = InstanceVerifier(config.input.instances)
    visible = {
        image_id: frozenset(n for n in names if verifier.verdict(image_id, n)[0] == "present")
        for image_id, names in verifier.present.items()
    }
    return Annotations(
        verifier,
        Cooccurrence(verifier.present, random=config.propose.random),
        verifier.present,
        visible,
    )


def token_counter(config: Settings) -> Callable[[str], int]:
    """CLIP tokens of a text with start and end token: exact with a vocabulary, else not less."""
    if config.check.tokenizer is None:
        return estimated_tokens
    from negclip_jax.data.clip_tokens import TokenizerError
    from negclip_jax.data.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(config.check.tokenizer)
    except TokenizerError as error:
        raise InputError(f"check.tokenizer: {error}") from None
    return lambda text: len(tokenizer.encode(text)) + 2


def estimated_tokens(text: str) -> int:
    """An upper estimate without a vocabulary: a token for every four letters of a word, begun."""
    from negclip_jax.data.clip_tokens import split_words

    return 2 + sum(math.ceil(len(word.encode()) / 4) for word in split_words(text))
