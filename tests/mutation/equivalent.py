"""Mutants that compute the same as the module, each with the reason: no test can notice them, and none is run against them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.mutation.mutants import Mutant


@dataclass(frozen=True)
class Equivalent:
    """Mutants of one line of a module, given by its text: all of its changes, or those listed as `before → after`."""

    line: str
    reason: str
    changes: tuple[str, ...] = ()

    def covers(self, change: str, text: str) -> bool:
        """Whether this change of a line with this text is one of them."""
        return text.strip() == self.line and (not self.changes or change in self.changes)


ROWS_AT_A_TIME = "sets how many rows are computed at a time, and so the memory, not the result"
NOT_ZERO = "any number but 0 is true"
TWO_AXES = "axis 1 is the last axis of an array with two"
SAME_DOUBLE = "one more is the same number in a double"
NO_HEAD_NORMS = "is the norm of queries and keys, which the architecture does not have"
TAKEN_BEFORE = "the targets that build on it have taken its value before a mutant can act; theirs are tried"
FOR_ANNOTATIONS = "what is imported is used in annotations alone, which are not computed"
EQUIVALENT: dict[str, tuple[Equivalent, ...]] = {
    "gguf_tools/rewrites/router.py": (
        Equivalent(
            "if not np.all(bias == bias[0]):",
            "whether all are equal can be asked of any one, and there are more experts than are selected",
            ("0 → 1",),
        ),
    ),
    "gguf_tools/rewrites/approximations.py": (
        Equivalent("p, q = capped.log_softmax(-1), plain.log_softmax(-1)", TWO_AXES, ("-1 → +1",)),
        Equivalent("agreement += float((capped.argmax(-1) == plain.argmax(-1)).sum())", TWO_AXES, ("-1 → +1",)),
    ),
    "gguf_tools/rewrites/heads.py": (
        Equivalent(
            "factors = np.sqrt(2.0) * np.concatenate([share, rest], axis=1).reshape(-1)",
            "numpy finds a size for any negative number",
            ("1 → 2",),
        ),
    ),
    "gguf_tools/rewrites/rope_pairs.py": (Equivalent("STILL = 1e30", SAME_DOUBLE),),
    "gguf_tools/targets/granite_swa.py": (Equivalent("NO_SINK = -1e30", SAME_DOUBLE),),
    **{
        f"gguf_tools/targets/{name}.py": (
            Equivalent("mixer, part = lifting.lift_attention(source, n, Norm(0.0))", NO_HEAD_NORMS, ("0.0 → 1.0",)),
        )
        for name in ("glm4", "gptneox", "nemotron", "phi3")
    },
    "gguf_tools/targets/granite_hybrid.py": (
        Equivalent(
            "if len({moe.shared is None for moe in moes(spec)}) > 1:",
            "a set of truth values has as many members as that of their opposites",
            ("moe.shared is None → moe.shared is not None",),
        ),
    ),
    "gguf_tools/targets/step35.py": (
        Equivalent(
            'values: Metadata = {"feed_forward_length": u32(dense or (moe.width if moe else 0))}',
            "a layer of this architecture has a dense feed-forward or experts",
            ("0 → 1",),
        ),
    ),
    "gguf_tools/targets/hybrid.py": (
        Equivalent(
            "EXPRESSES = DECODER | ATTENTION | PAIRS_HALF | PARTIAL_ROPE | ROPE_SCALING | QK_NORM | ATTENTION_GATE | "
            "LINEAR_ATTENTION",
            TAKEN_BEFORE,
        ),
    ),
    "gguf_tools/tokenizers/byte_level.py": (
        Equivalent(
            "printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}",
            "256 is no byte",
            ("256 → 257",),
        ),
        Equivalent(
            "others = iter(range(0x100, 0x200))",
            "68 bytes need another character, so that the end is not reached",
            ("512 → 513", "512 → 511"),
        ),
    ),
    "quant/recipes.py": (
        Equivalent(
            "return int(match[1]) if match else -1",
            "any negative number comes before the layers",
            ("1 → 2",),
        ),
        Equivalent(
            "return _Decision(rules.for_output(wanted.name, wanted.base, model.arch, tensor.shape[-1]))",
            "output matrix and embedding have two axes",
            ("-1 → +1",),
        ),
        Equivalent(
            "gqa = model.n_head // model.n_head_kv if model.n_head_kv else 0",
            "the rules ask whether it is 4 at least",
            ("0 → 1",),
        ),
    ),
    "gguf_tools/tokenizers/files.py": (Equivalent("LARGEST_SCORE = 1e30", "one more is the same number in a double"),),
    "gguf_tools/tokenizers/vocabulary.py": (
        Equivalent("if not isinstance(model.get(key, False), bool):", "either is a truth value", ("False → True",)),
        Equivalent(
            "return list(backend.encode(text, add_special_tokens=False).ids)",
            "a backend has no post-processor that would add any",
            ("False → True",),
        ),
    ),
    "gguf_tools/tokenizers/byte_level_bpe.py": (
        Equivalent(
            "if token.content in files.vocab or not byte_of.keys() >= set(token.content):",
            "a text with all 256 bytes is not one piece",
            ("byte_of.keys() >= set(token.content) → byte_of.keys() > set(token.content)",),
        ),
    ),
    "gguf_tools/tokenizers/added_tokens.py": (
        Equivalent(
            "for other in ordered[at : at + 3]:",
            "those that begin so follow each other, and two of them at most are passed over",
            ("3 → 4",),
        ),
        Equivalent(
            "if len(token) > 1 and token[0] in mixed_by_first:", "all characters of the token are the same", ("0 → 1",)
        ),
        Equivalent("return token, mixed_by_first[token[0]]", "all characters of the token are the same", ("0 → 1",)),
        Equivalent(
            "encoded = finder.encode(text, add_special_tokens=False)",
            "a finder has no post-processor that would add any",
        ),
        Equivalent(
            "found = finder.encode(text, add_special_tokens=False)",
            "a finder has no post-processor that would add any",
        ),
    ),
    "gguf_tools/tokenizers/probe.py": (Equivalent("if TYPE_CHECKING:", FOR_ANNOTATIONS),),
    "gguf_tools/tokenizers/model_name.py": (Equivalent("if TYPE_CHECKING:", FOR_ANNOTATIONS),),
    "gguf_tools/tokenizers/pretokenizers.py": (
        Equivalent(
            'return any(char > "\\u07ff" and char.isspace() for char in text)',
            "U+07FF is no space",
            ("char > '\u07ff' → char >= '\u07ff'",),
        ),
        Equivalent(
            'return any(char > "\\x7f" and char.isdecimal() for char in text)',
            "U+007F is no digit",
            ("char > '\\x7f' → char >= '\\x7f'",),
        ),
        Equivalent(
            "near = get_close_matches(shown, known, n=1, cutoff=0.0)", "the first of more is the same", ("1 → 2",)
        ),
    ),
    "gguf_tools/tokenizers/sentencepiece.py": (
        Equivalent("shortest, longer_later = 0, False", "both are set anew at the first merge"),
        Equivalent("place, until = -1, -1", "the first rank is 0, after any negative number", ("1 → 2",)),
        Equivalent("for cut in range(1, len(token)):", "an empty half is no character and no merged token", ("1 → 0",)),
    ),
    "gguf_tools/tokenizers/piece_model.py": (
        Equivalent("if at >= len(data) or shift > 63:", "shift is a multiple of seven", ("63 → 64",)),
        Equivalent("add_dummy_prefix=bool(whole(normalizer, 3, 1)),", NOT_ZERO, ("1 → 2",)),
        Equivalent("remove_extra_whitespaces=bool(whole(normalizer, 4, 1)),", NOT_ZERO, ("1 → 2",)),
        Equivalent("escape_whitespaces=bool(whole(normalizer, 5, 1)),", NOT_ZERO, ("1 → 2",)),
    ),
    "gguf_tools/tokenizers/rank_model.py": (
        Equivalent(
            'return LINE.fullmatch(data[:4096].split(b"\\n", 1)[0].rstrip(b"\\r")) is not None',
            "the first of the parts is the same",
            ("1 → 2",),
        ),
        Equivalent(
            "cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]", "no token is empty", ("1 → 0",)
        ),
        Equivalent("shown = shortened(repr(line[:60]))", "how much of a line an error shows", ("60 → 61", "60 → 59")),
        Equivalent("token = base64.b64decode(text, validate=True)", "LINE has base64's characters alone"),
        Equivalent(
            "if int(rank) != len(ranks) or token in ranks or not 0 < len(token) <= LONGEST:",
            "LINE has one character at least, which is a byte or not base64",
            ("0 < len(token) <= LONGEST → 0 <= len(token) <= LONGEST",),
        ),
    ),
    "gguf_tools/evaluation/metrics.py": (
        Equivalent("_BLOCK_BYTES = 16 << 20", ROWS_AT_A_TIME),
        Equivalent(
            "return max(1, _BLOCK_BYTES // (8 * max(n_vocab, 1)))",
            ROWS_AT_A_TIME,
            (
                "_BLOCK_BYTES // (8 * max(n_vocab, 1)) → _BLOCK_BYTES * (8 * max(n_vocab, 1))",
                "8 * max(n_vocab, 1) → 8 + max(n_vocab, 1)",
                "1 → 2",
                "8 → 9",
                "8 → 7",
            ),
        ),
        Equivalent("NO_TARGET = -1", "any negative number will do, since no token has it", ("1 → 2",)),
        Equivalent("result: Float = (np.exp(reference) * (reference - model)).sum(axis=-1)", TWO_AXES, ("-1 → +1",)),
        Equivalent(
            "self._agree += int((reference.argmax(axis=-1) == model.argmax(axis=-1)).sum())", TWO_AXES, ("-1 → +1",)
        ),
        Equivalent("self._noise.append(difference.std(axis=-1))", TWO_AXES, ("-1 → +1",)),
        Equivalent("self._spread.append(reference.std(axis=-1))", TWO_AXES, ("-1 → +1",)),
        Equivalent(
            "return math.exp(mean) if mean < 700 else math.inf  # exp overflows at 709",
            "any bound between the largest mean of a real model and 709 will do",
            ("mean < 700 → mean <= 700", "700 → 701", "700 → 699"),
        ),
        Equivalent(
            "for start in range(0, len(tokens) - 1, rows):",
            "what it adds is a block without rows at the end",
            ("1 → 0", "len(tokens) - 1 → len(tokens) + 1"),
        ),
    ),
    "gguf_tools/evaluation/card/statistics.py": (
        Equivalent("corrected = [0.0] * count", "every entry is set", ("0.0 → 1.0",)),
        Equivalent(
            "for _ in range(60):", "an interval of 1 is halved beyond what a double tells apart", ("60 → 61", "60 → 59")
        ),
        Equivalent(
            "low, high = (share, high) if probability < tail else (low, share)",
            "where both are equal, either end is the share looked for",
            ("probability < tail → probability <= tail",),
        ),
        Equivalent(
            "flips = 1", "no item and one item have a p of 1, which no significance exceeds", ("1 → 2", "1 → 0")
        ),
        Equivalent("_BLOCK_BYTES = 16 << 20", ROWS_AT_A_TIME),
        Equivalent("columns = [a.shape[-1] for a in first]", TWO_AXES, ("-1 → +1",)),
        Equivalent(
            "both = [np.concatenate([a, b], axis=-1) for a, b in zip(first, second, strict=True)]",
            TWO_AXES,
            ("-1 → +1",),
        ),
        Equivalent(
            "extreme = int((np.abs(exchanged) >= abs(found.estimate) * (1 - 1e-9) - 1e-12).sum())",
            "no difference lies exactly at the threshold, which is a little below the observed one to allow for rounding",
            (
                "np.abs(exchanged) >= abs(found.estimate) * (1 - 1e-09) - 1e- → "
                "np.abs(exchanged) > abs(found.estimate) * (1 - 1e-09) - 1e-1",
            ),
        ),
        Equivalent(
            "rows = max(1, _BLOCK_BYTES // (8 * len(a)))",
            ROWS_AT_A_TIME,
            (
                "1 → 2",
                "_BLOCK_BYTES // (8 * len(a)) → _BLOCK_BYTES * (8 * len(a))",
                "8 * len(a) → 8 + len(a)",
                "8 → 9",
                "8 → 7",
            ),
        ),
        Equivalent(
            "rows = max(1, _BLOCK_BYTES // (8 * len(sample)))",
            ROWS_AT_A_TIME,
            (
                "1 → 2",
                "_BLOCK_BYTES // (8 * len(sample)) → _BLOCK_BYTES * (8 * len(sample))",
                "8 * len(sample) → 8 + len(sample)",
                "8 → 9",
                "8 → 7",
            ),
        ),
    ),
}
"""The equivalent mutants by module."""


def reason(module: str, mutant: Mutant, lines: Sequence[str]) -> str | None:
    """Why the mutant of a module, whose source has these lines, is equivalent; None if it is not declared."""
    text = lines[mutant.line - 1]
    return next((known.reason for known in EQUIVALENT.get(module, ()) if known.covers(mutant.change, text)), None)
