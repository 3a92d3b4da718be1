"""The tokenizer: byte-level BPE, trained on the recipe's own text.

Any UTF-8 text encodes, since all 256 bytes are tokens. Two rules make copying easy for a small network: every digit is a
token of its own, and a word is the same token wherever it stands, because the space before it is a token of its own. Only
the commonest function words carry their space with them, which keeps sentences short.
"""
# ruff: noqa: SIM905 (a list of words reads best as a text)

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 2048
CONTEXT = 2048
PAD, BOS, END, SYSTEM, USER, ASSISTANT = "<|pad|> <|bos|> <|end|> <|system|> <|user|> <|assistant|>".split()
SPECIAL = [PAD, BOS, END, SYSTEM, USER, ASSISTANT]

# Rendering is append-only: the text of the first n messages is a prefix of the text of the first n + 1.
CHAT_TEMPLATE = (
    "{{- '<|bos|>' -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('unknown role: ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

_GLUED = (
    "the a an is my your you me i to of and in it what what's how do does was for with on that have has not from "
    "who tell can will name list process this about story called named by at one then they but are up down no be "
    "or out so all favourite favorite number word remember know where said told yet minutes please nice value day "
    "time he she small live assistant there add lived wanted colour color copy count reverse came last had very "
    "lists stories home help best too code upon end again facts work as these like long plus numbers find happy "
    "thanked way smiled years kind much next more backwards only night heard could wise once showed say friend "
    "calculate fine see little agent were back pages remind tool learn lives system old when high went never "
    "forgot morning inside shell commands come here first log half anything lost some two used any into its"
).split()
_PATTERN = rf" (?:{'|'.join(_GLUED)})(?!\p{{L}})|\p{{L}}+|[0-9]|[^\s\p{{L}}0-9]+(?: [\"{{]+)?|\s"


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of `VOCABULARY` entries, the special tokens first, fitted to `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
    )
