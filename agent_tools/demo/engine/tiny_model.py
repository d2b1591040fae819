"""A small Llama with random weights and its tokenizer, created on the spot. It produces nonsense and takes real time for it."""

import os
import string
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from agent_tools.errors import UnsupportedError

SYLLABLES = tuple(consonant + vowel for consonant, vowel in product("bdklmnprst", "aeiou"))
WORDS = tuple("".join(syllables) for syllables in product(SYLLABLES[:20], SYLLABLES[20:40], SYLLABLES[40:] + SYLLABLES[:10]))
"""The vocabulary: 8,000 words of three syllables. Each word is one token, so a text of n words has n tokens."""
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """The shape of the model. As in large models, each byte of KV takes much computation, so a cached prefix saves much time."""

    hidden: int = 2048
    intermediate: int = 10240
    layers: int = 4
    heads: int = 16
    kv_heads: int = 2

    @property
    def kv_bytes_per_token(self) -> int:
        """Return the bytes of one token's keys and values over all layers, at 2 bytes per number."""
        return 2 * self.layers * self.kv_heads * (self.hidden // self.heads) * 2


def write_model(folder: Path, shape: Shape = Shape()) -> Path:
    """Write model and tokenizer in the Hugging Face format, the same bytes each time. Return the folder.

    Raises:
        UnsupportedError: transformers or torch is not installed.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded
    try:
        import torch  # noqa: PLC0415  an extra
        from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415
    except ImportError as error:
        raise UnsupportedError(
            "the engine demo needs transformers and torch to create its model: `make demo-engine` installs both"
        ) from error
    tokens = _write_tokenizer(folder)
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=tokens,
        max_position_embeddings=16384,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def _write_tokenizer(folder: Path) -> int:
    """Write a WordPiece tokenizer and return its number of tokens. Each of `WORDS` is one token; other text is spelled."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415  an extra
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    letters = [letter for letter in string.printable if not letter.isspace()]
    entries = ["<unk>", "<s>", "</s>", *ROLES, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", max_input_chars_per_word=1000))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": list(ROLES)}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return len(entries)
