"""From settings to the parts of a run: servers that were seen to work, and who does what."""

import asyncio
import collections
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_gen import labels
from data_gen.annotations import Cooccurrence, InstanceVerifier, Told, sayable, unsaid
from data_gen.engines.cache import Cache, CachedEngine, ErrorShare
from data_gen.engines.probe import Capabilities, Engine, probe
from data_gen.images import PhotoFolder
from data_gen.pipeline import ImagePipeline
from data_gen.prompts import Prompt
from data_gen.records import ImageItem
from data_gen.settings import IMAGES_PER_REQUEST, Settings, extra_body, require
from data_gen.stages import propose, rewrite, verify
from data_gen.statements import grammar_of
from negclip_jax.common import storage, strict_json
from negclip_jax.common.chat.client import ChatClient, ChatSettings
from negclip_jax.common.chat.messages import Adjusted
from negclip_jax.common.errors import InputError, as_message
from negclip_jax.common.records import identity
from negclip_jax.language.vocabulary import CATEGORIES, canonical

_log = logging.getLogger(__name__)
# Images that decide how often objects are proposed, and the objects that their captions name most.
_SAMPLE, _NAMES = 1000, 300


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


def resolve(config: Settings) -> Roles:
    """The roles that the settings ask for. Raises InputError for what they lack."""

    def auto(wished: str, best: str) -> str:
        return best if wished == "auto" else wished

    require(config, "input.captions")
    llm, mllm = config.llm.url, config.mllm.url
    listed = config.input.objects is not None
    proposer = "file" if listed else "llm" if llm else "cooccurrence"
    roles = Roles(
        auto(config.propose.by, proposer),
        auto(config.verify.by, "mllm" if mllm else "instances"),
        auto(config.rewrite.by, "llm" if llm else "template"),
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
    if roles.needs_llm and not llm:
        raise InputError("an LLM is to propose or rewrite, but there is none; give --llm-url")
    if roles.needs_mllm and not mllm:
        raise InputError("a model is to look at the photos; give --mllm-url, or --instances")
    if roles.needs_mllm:
        require(config, "input.images")
    by_boxes = roles.verify == "instances" or roles.propose == "cooccurrence"
    if config.input.instances is None and by_boxes:
        raise InputError(
            "without models, objects and their absence come from annotations: give --instances, "
            "or --llm-url and --mllm-url"
        )
    if roles.propose == "file":
        require(config, "input.objects")
    grammar_of(config)
    return roles


def images_together(config: Settings, roles: Roles, can: Capabilities | None) -> int:
    """Images whose captions share requests to the LLM, 1 where each request is about fewer.

    `can`: of the LLM, None while it is not known: then a good one is assumed.
    """
    proposes = roles.propose == "llm" and config.propose.unit == "image"
    rewrites = roles.rewrite == "llm" and config.rewrite.unit == "image"
    if config.pipeline == "vqa" or not (proposes or rewrites):
        return 1
    usual = IMAGES_PER_REQUEST if can is None or can.several else 1
    return config.llm.images_per_request or usual


def open_engine(config: Settings, role: str, out: Path) -> Engine:
    """The engine of "llm" or "mllm", not yet connected. Raises InputError for a bad address.

    An address is one or several URLs, "vllm" for a model in this process, or "batch" for files in
    `out` that a batch service answers.
    """
    section = config[role]
    if section.url == "batch":
        from data_gen.engines.batchfile import BatchEngine

        return BatchEngine(out / "batch", role, section.model)
    if section.url == "vllm":
        from data_gen.engines.vllm import VLLMEngine

        return VLLMEngine(section.model)
    urls = [url.strip() for url in section.url.split(",") if url.strip()]
    if not urls:
        raise InputError(f"--{role}-url is empty")
    given, names = config.engine, (entry.name for entry in fields(ChatSettings))
    settings = ChatSettings(**{name: given[name] for name in names if name in given})
    return ChatClient(urls, settings, section.key_variable)


@contextlib.asynccontextmanager
async def connected(
    config: Settings,
    roles: Roles,
    prompts: Mapping[str, Prompt],
    cache: Cache | None,
    out: Path,
) -> AsyncIterator[Models]:
    """The engines that the roles need, probed, and closed at the end.

    What was found is kept in `capabilities.json` of the run directory `out`: a resumed run with
    the same addresses does not probe again what could be used. Answers come from `cache` first, if
    there is one.

    Raises EndpointError for a server that cannot do what its role needs.
    """
    kept, extra = out / "capabilities.json", extra_body(config)
    needed = ["llm"] * roles.needs_llm + ["mllm"] * roles.needs_mllm
    found: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(OSError, ValueError, AttributeError):
        read = strict_json.load(kept).items()
        found = {role: entry for role, entry in read if isinstance(entry, dict)}
    errors = ErrorShare(config.max_errors)
    asked: dict[str, Engine] = {}
    can: dict[str, Capabilities] = {}
    groups: list[tuple[list[str], Engine, list]] = []

    async def look(together: list[str], engine: Engine, address: list) -> None:
        known = [found.get(role, {}) for role in together]
        # One that could not be used may have been repaired.
        if any(entry.get("address") != address or entry.get("problems") for entry in known):
            seen = await probe_engine(config, engine, together, prompts)
            found.update({role: {"address": address, **asdict(seen)} for role in together})

    async with contextlib.AsyncExitStack() as stack:
        for address, together in roles_by_address(config, needed).items():
            engine = open_engine(config, together[0], out)
            cached = CachedEngine(engine, cache, errors) if cache else engine
            stack.push_async_callback(cached.close)
            asked |= dict.fromkeys(together, cached)
            groups.append((together, engine, [*address, extra] if extra else [*address]))
        failed = await asyncio.gather(*(look(*group) for group in groups), return_exceptions=True)
        if needed:
            storage.write_json(kept, found, sort_keys=True)
        for error in failed:
            if error is not None:
                raise error
        for together, engine, _ in groups:
            adjusted: Adjusted = {}
            for role in together:
                entry = found[role]
                adjusted.update(entry.get("adjusted", {}))
                known = {f.name: entry[f.name] for f in fields(Capabilities) if f.name in entry}
                can[role] = Capabilities(**known | {"adjusted": adjusted})
            if isinstance(engine, ChatClient):  # it goes on as it was told to, and may learn more
                engine.adjusted = adjusted
            for doubt in can[together[0]].doubts:
                _log.warning("%s: %s", can[together[0]].model, as_message(doubt))
        try:
            yield Models(asked.get("llm"), can.get("llm"), asked.get("mllm"), can.get("mllm"))
        finally:
            if any(can[role].adjusted != found[role].get("adjusted", {}) for role in needed):
                for role in needed:
                    found[role]["adjusted"] = can[role].adjusted
                storage.write_json(kept, found, sort_keys=True)


def roles_by_address(config: Settings, roles: Sequence[str]) -> dict[tuple, list[str]]:
    """The roles of each (url, model): one server is one engine, with one limit, probed once."""
    groups: dict[tuple, list[str]] = {}
    for role in roles:
        groups.setdefault((config[role].url, config[role].model), []).append(role)
    return groups


async def probe_engine(
    config: Settings, engine: Engine, roles: Sequence[str], prompts: Mapping[str, Prompt]
) -> Capabilities:
    """What the engine can do in its roles: a server is asked, other engines know."""
    if not isinstance(engine, ChatClient):
        return replace(engine.capabilities(), extra_body=extra_body(config))
    return await probe(
        engine,
        config[roles[0]].model,
        prompts,
        looks="mllm" in roles,
        writes="llm" in roles,
        max_tokens=config.verify.max_tokens,
        extra_body=extra_body(config),
    )


def build(
    config: Settings,
    prompts: Mapping[str, Prompt],
    models: Models,
    threads: Executor,
    run_id: str,
    images: Sequence[ImageItem] = (),
) -> ImagePipeline:
    """The pipeline of a run. Raises InputError for input files that cannot be used.

    `images`: of the run: they may be annotated under other ids, and what their captions leave
    unsaid decides how often objects are proposed.
    """
    roles = resolve(config)
    instances = config.input.instances
    names = ((image.image_id, image.file_name) for image in images)
    boxes = InstanceVerifier(instances, names) if instances else None
    llm_prompts, mllm_prompts = (
        {name: can.fitting(prompt) for name, prompt in prompts.items()} if can else prompts
        for can in (models.llm_can, models.mllm_can)
    )
    writer: rewrite.Writer = rewrite.TemplateWriter(config.seed, grammar_of(config))
    if roles.rewrite == "llm":
        llm = rewrite.LLMWriter(
            engine=models.llm,
            can=models.llm_can,
            prompts=llm_prompts,
            many=config.rewrite.unit == "image",
            one="rewrite" if config.rewrite.require_rules else "rewrite_caption",
            max_tokens=config.rewrite.max_tokens,
            temperature=config.rewrite.temperature,
            top_p=config.rewrite.top_p,
            seed=config.seed,
        )
        share = config.rewrite.templates
        writer = rewrite.MixedWriter(llm, writer, share, config.seed) if share else llm
    named = config.propose.present if roles.needs_mllm else None
    if named and verify.method_for(config.verify.method, models.mllm_can) == "multi":
        named = max(named, config.propose.number)  # all proposals are answered, in one request
    return ImagePipeline(
        config,
        _proposer(config, roles, llm_prompts, models, boxes, images),
        _verifier(config, roles, mllm_prompts, models, boxes),
        rewrite.RewriteStage(
            writer,
            token_counter(config),
            config.check.max_tokens,
            config.rewrite.require_rules,
            config.rewrite.tries,
            config.foils,
            config.seed,
            {"pipeline": config.pipeline, "run_id": run_id},
            grammar_of(config),
            config.rewrite.foils_by,
            config.rewrite.affirm,
        ),
        PhotoFolder(config.input.images, **config.images) if config.input.images else None,
        boxes,
        named,
        threads,
    )


def _proposer(
    config: Settings,
    roles: Roles,
    prompts: Mapping[str, Prompt],
    models: Models,
    boxes: InstanceVerifier | None,
    images: Sequence[ImageItem],
) -> propose.Proposer:
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
            statistics = Cooccurrence(boxes.present, random=settings.random)
            statistics.fit(_told(images, boxes), config.seed)
            each = config.assign.captions_per_object
            about = (statistics, boxes, settings.number, each, config.seed)
            return propose.CooccurrenceProposer(*about)
    if per_caption and config.pipeline != "vqa":
        prompt = prompts["propose_caption"]
        return propose.CaptionProposer(models.llm, models.llm_can, prompt, **sampling)
    prompt = prompts["questions" if config.pipeline == "vqa" else "propose"]
    sampling["many"] = prompts.get("propose_many") if config.pipeline == "absence" else None
    llm = propose.LLMProposer(models.llm, models.llm_can, prompt, settings.number, **sampling)
    if config.pipeline == "vqa" or not settings.others:
        return llm
    sample = images[:: max(1, len(images) // _SAMPLE)]
    named = [frozenset(map(canonical, labels.named_in(image.texts))) for image in sample]
    often = collections.Counter(name for names in named for name in sorted(names))
    statistics = Cooccurrence(named, [name for name, _ in often.most_common(_NAMES)])

    def told() -> Iterator[Told]:
        """What each caption leaves unsaid, COCO's categories and others."""
        for there, image in zip(named, sample, strict=True):
            asked, left = labels.unsaid_by_others(image, settings.present, config.seed), []
            for text in image.texts:
                found, is_all = unsaid(asked, text)
                for is_other in (False, True):
                    of_kind = [n for n in found if (n not in CATEGORIES) == is_other]
                    left.append(([] if is_all else of_kind, is_other))
            yield there, image.texts, left

    statistics.fit(told(), config.seed)
    return propose.OthersProposer(llm, statistics, settings.others, config.seed)


def _told(images: Sequence[ImageItem], boxes: InstanceVerifier) -> Iterator[Told]:
    """What `Cooccurrence.fit` reads of the images of a run, of some evenly among all."""
    is_known = (identity(image.image_id) in boxes.present for image in images)
    known = np.flatnonzero(np.fromiter(is_known, bool, len(images)))
    for image in map(images.__getitem__, known[:: max(1, len(known) // _SAMPLE)].tolist()):
        image_id = identity(image.image_id)
        there = boxes.certain(image)
        yield boxes.present[image_id], image.texts, [sayable(there, text) for text in image.texts]


def _verifier(
    config: Settings,
    roles: Roles,
    prompts: Mapping[str, Prompt],
    models: Models,
    boxes: InstanceVerifier | None,
) -> verify.Verifier:
    if roles.verify == "votes":
        return verify.VoteVerifier(config.verify.min_no_votes)
    if roles.verify == "instances":
        return verify.AnnotationVerifier(boxes, None)
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
    if boxes is not None and settings.instances_first:
        verifier = verify.AnnotationVerifier(boxes, verifier)
    if settings.questions_per_round and method != "multi":
        each = config.assign.captions_per_object
        return verify.UntilEnough(verifier, settings.questions_per_round, each)
    return verifier


def token_counter(config: Settings) -> Callable[[str], int]:
    """CLIP tokens of a text with start and end token: exact with a vocabulary, else not less."""
    if config.check.tokenizer is None:
        return estimated_tokens
    from negclip_jax.data.tokenizer import TokenizerError, load_tokenizer

    try:
        tokenizer = load_tokenizer(config.check.tokenizer)
    except TokenizerError as error:
        raise InputError(f"check.tokenizer: {error}") from None
    return lambda text: len(tokenizer.encode(text)) + 2


def estimated_tokens(text: str) -> int:
    """An upper estimate without a vocabulary: a token for every four letters of a word, begun."""
    from negclip_jax.data.tokenizer import split_words

    return 2 + sum(math.ceil(len(word.encode()) / 4) for word in split_words(text))
