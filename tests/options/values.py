"""Odd and hostile values, of numbers, texts and paths; and usual ones of options that are not told by their type."""

from __future__ import annotations

NUMBERS = (
    "-1", "0", "-0.0", "1e308", "-1e308", "1e-320", "nan", "inf", "-inf", "0x10", "0b1", "１２", "1_000", "1,5",
    "+1", " 1 ", "1e3", "١", "0.5", "2", "2147483648", "9223372036854775808", "1" + "0" * 30, "9" * 5000,
)  # fmt: skip
TEXTS = (
    "", " ", "\t", "line\nbreak", "\x1b[31mred\x1b[0m", "\x07", "\u202egnp.exe", "a\u2028b", "\udcff\udcfe",
    "\udcc3(", "é", "e\u0301", "🦙", "=", ":", ",", ";", "@", "#", "%", "*", "?", "[", "(", "\\", "'", '"', "`",
    "$HOME", "$(id)", "a=b", "a=", "=b", "==", "a==b", ",,", "a,,b", "f32,", ",f32", "f32,f32", "::", "a:b", "a:",
    ":b", "..", "1..", "..1", "1..0", "0..0", "1:", ":1", "0:0", "1:1:1", "@file", "x@", "x@y", "x@nan", "x@inf",
    "{", "{}", "{0}", "%s", "[]", "null", "true", "None", "auto", "none", "all", "-", "--", "---", "-x", "--x",
    "--help", "--json", "a" * 300, "a" * 100_000,
)  # fmt: skip
PATHS = (
    ".", "./", "..", "/", "//", "~", "~root", "*.gguf", "/dev/null", "/dev/zero", "/dev/stdin", "/dev/stdout",
    "/dev/fd/0", "/proc/self/mem", "/proc/self/fd/0", "/proc/self/environ", "{in}", "{in}/", "{out}", "{out}/",
    "{in}/f32.gguf/x", "{in}/f32.gguf/", "{in}/./f32.gguf", "{in}/loop", "{in}/dangling", "{in}/fifo",
    "{in}/empty", "{in}/folder", "{out}/missing/x", "{out}/" + "n" * 255, "{out}/" + "n" * 256,
    "{out}/" + "n/" * 3000, "https://example.org/model", "file:///etc/passwd", "hf://org/name", "org/name",
    "org/name@main", "org/name/x", "a/b/c", "{out}/a b", "{out}/\udcff", "{out}/line\nbreak", "{out}/\x1b[31m",
    "C:\\model.gguf", "sqlite:///", "{out}/.hidden", "{out}/-",
)  # fmt: skip
VALUES = tuple(dict.fromkeys((*NUMBERS, *TEXTS, *PATHS)))

USUAL = {
    "--type": "q4_0",
    "--tensor-type": "attn_q=q6_k",
    "--output-type": "q6_k",
    "--embedding-type": "q6_k",
    "--imatrix": "{in}/matrix.gguf",
    "--target-bpw": "6.5",
    "--target-size": "100K",
    "--split-max-size": "60K",
    "--max-size": "60K",
    "--as": "llama",
    "--target": "qwen3",
    "--oracle": "none",
    "--json": "{out}/other.json",
    "--csv": "-",
    "--markdown": "-",
    "--html": "{out}/other.html",
    "--png": "{out}/other.png",
    "--answers": "-",
    "--out": "{out}/other",
    "--save-recipe": "{out}/other.toml",
    "--set": "general.name=x",
    "--unset": "general.name",
    "--rename-tensor": "output_norm.weight=norm.weight",
    "--from": "{in}/header.toml",
    "--server": "http://127.0.0.1:9",
    "--command": "true {tokens}",
    "--weight": "facts=50",
    "--questions": "bundled",
    "--held-out": "rest",
    "--types": "q8_0",
    "--to": "org/name",
    "--base-model": "org/name",
    "--family": "olmoe",
    "--layers": "0..1",
    "--size": "1..2",
    "--alpha": "0.3",
    "--factor": "0.8",
    "--allow": "delete",
    "--forbid": "swap",
    "--rival": "q8_0",
    "--objective": "perplexity",
    "--storage": "{out}/other.db",
    "--study": "found",
    "--device": "cpu",
}
"""Values of options whose type does not tell what they take."""
