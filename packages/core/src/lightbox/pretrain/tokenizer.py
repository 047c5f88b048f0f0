"""The tokenizer of the tiny text models: lower-cased WordPiece, phantom words whole, every other word spelled."""

import string
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lightbox.paths import shared_data
from lightbox.phantom import Knobs, draw_cases, seed_range
from lightbox.phantom.ontology import CLASS_NAMES, DENSITY_WORDS, SHAPE_WORDS, SIZES

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
SENTINELS = tuple(f"<extra_id_{k}>" for k in range(16))
VOCAB_SIZE = 1000
# Words of templates, answers and fact sentences. Words only: no fact sentence is ever a pretraining target.
EXTRA_WORDS = (
    "question options answer solution context the answer is yes no right left a b ( ) : . , ? lies takes to percent "
    "of chest width largest larger part one two three four five six none that makes clear lungs in on 35 36 40 45 50 "
    "55 60 65"
).split()


def corpus(n_cases: int) -> Iterable[str]:
    """Reports and questions of pretraining cases, and the extra words."""
    for case in draw_cases(seed_range("pretrain", 0, n_cases), Knobs(), with_pixels=False):
        yield case.report.text
        yield from (q.text for q in case.questions)
    words = [*EXTRA_WORDS, *CLASS_NAMES, *DENSITY_WORDS.values(), *SHAPE_WORDS.values(), *SIZES]
    yield from words * 50  # often enough to become whole tokens


def fixed_tokenizer() -> PreTrainedTokenizerFast:
    """The committed tokenizer of the tiny `t5`, or a newly trained one where there is none.

    Training breaks ties between merges in an order that differs from run to run, so the trained tokenizer is part of
    the recipe: with it, a build is repeated to the same bytes.
    """
    folder = shared_data() / "weights" / "t5"
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    return train_tokenizer()


def train_tokenizer(n_cases: int = 4_000) -> PreTrainedTokenizerFast:
    """Train the tokenizer; ids 0, 1, 2 are pad, end and unknown as in T5."""
    core = Tokenizer(models.WordPiece(unk_token=UNK))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # punctuation apart from words, so that "lung." and "lung" share a token
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, EOS, UNK, *SENTINELS],
        initial_alphabet=list(string.ascii_lowercase + string.digits + string.punctuation),
        show_progress=False,
    )
    core.train_from_iterator(corpus(n_cases), trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A $B {EOS}", special_tokens=[(EOS, core.token_to_id(EOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=list(SENTINELS),
        model_max_length=512,
    )
