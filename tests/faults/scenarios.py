"""The command lines that the matrix runs. A new command has a line here before its tests pass."""

from __future__ import annotations

from tests.faults.scenario import Scenario

SMALL_DEMO = """
import gguf_tools
from gguf_tools.commands import demo

whole = gguf_tools.evaluate
brief = {"oracle": "none", "speed": False, "tokens": 2, "answer_tokens": 2, "think_tokens": 2}
gguf_tools.evaluate = lambda *files, **options: whole(*files, **{**options, **brief})
demo.TYPES, demo.STORY_TOKENS = ("f32", "q8_0"), 4
"""
"""Two types instead of five, and a few tokens of each answer and story."""
SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        command="convert",
        line="convert {in}/checkpoint {out}/model.gguf --type q8_0 --json {out}/report.json",
        llama="run",
    ),
    Scenario(
        command="surgery",
        variant="GGUF",
        line="surgery {in}/f32.gguf {out}/model.gguf --recipe {in}/recipe.toml --save-recipe {out}/saved.toml "
        "--no-prove --json {out}/report.json",
    ),
    Scenario(
        command="surgery",
        variant="folder",
        line="surgery {in}/checkpoint {out}/folder --swap 0:1 --save-recipe {out}/saved.toml --json {out}/report.json",
    ),
    Scenario(
        command="surgery",
        variant="in place",
        line="surgery {in}/f32.gguf --in-place --swap 0:2 --prove --json {out}/report.json",
        llama="run",
        changes=("f32.gguf",),
        recovery=("surgery {in}/f32.gguf --in-place", "inspect {in}/f32.gguf --json {out}/report.json --force"),
    ),
    Scenario(
        command="surgery",
        variant="undo",
        line="surgery {in}/changed.gguf --undo --json {out}/report.json",
        changes=("changed.gguf",),
        recovery=("surgery {in}/changed.gguf --in-place", "inspect {in}/changed.gguf --json {out}/report.json --force"),
    ),
    Scenario(
        command="quantize",
        line="quantize {in}/f32.gguf {out}/model.gguf q4_k_m --imatrix {in}/matrix.gguf --json {out}/report.json",
        llama="encode",
    ),
    Scenario(
        command="quantize",
        variant="split",
        line="quantize {in}/f32.gguf {out}/model.gguf q8_0 --split-max-size 60K --json {out}/report.json",
        llama="encode",
    ),
    Scenario(
        command="edit",
        line="edit {in}/f32.gguf {out}/model.gguf --from {in}/header.toml --no-prove --json {out}/report.json",
    ),
    Scenario(
        command="edit",
        variant="in place",
        line="edit {in}/f32.gguf --in-place --set qwen3.context_length=64 --prove --json {out}/report.json",
        llama="prove",
        changes=("f32.gguf",),
        recovery=("edit {in}/f32.gguf --in-place", "inspect {in}/f32.gguf --json {out}/report.json --force"),
    ),
    Scenario(
        command="edit",
        variant="rewritten",
        line="edit {in}/small.gguf --in-place --set tokenizer.chat_template=@{in}/template.jinja --no-prove "
        "--json {out}/report.json",
        changes=("small.gguf",),
        recovery=("edit {in}/small.gguf --in-place", "inspect {in}/small.gguf --json {out}/report.json --force"),
    ),
    Scenario(
        command="edit",
        variant="undo",
        line="edit {in}/changed.gguf --undo --json {out}/report.json",
        changes=("changed.gguf",),
        recovery=("edit {in}/changed.gguf --in-place", "inspect {in}/changed.gguf --json {out}/report.json --force"),
    ),
    Scenario(command="split", line="split {in}/f32.gguf {out}/model.gguf --max-size 60K --json {out}/report.json"),
    Scenario(command="merge", line="merge {in}/part-00001-of-00002.gguf {out}/model.gguf --json {out}/report.json"),
    Scenario(
        command="describe",
        line="describe {in}/checkpoint -o {out}/model.toml --json {out}/report.json",
    ),
    Scenario(
        command="imatrix",
        line="imatrix {in}/f32.gguf {in}/text.txt -o {out}/matrix.gguf --json {out}/report.json",
        llama="run",
    ),
    Scenario(
        command="imatrix",
        variant="merge",
        line="imatrix --merge {in}/matrix.gguf -o {out}/matrix.gguf --json {out}/report.json",
    ),
    Scenario(
        command="eval",
        line="eval {in}/small.gguf --reference {in}/checkpoint --oracle none --no-speed --prompts {in}/prompts.txt --tokens 2 "
        "--json {out}/report.json --csv {out}/table.csv --markdown {out}/table.md",
        llama="run",
        cost="slow",
    ),
    Scenario(
        command="lm-eval",
        line="lm-eval {in}/f32.gguf --tasks {in}/task.yaml --output_path {out}/results --log_samples",
        llama="run",
        containers=("results",),
        takes_force=False,
        varies=("results", "stdout"),
        cost="long",
    ),
    Scenario(command="compare", line="compare {in}/samples_one.jsonl {in}/samples_two.jsonl --json {out}/report.json"),
    Scenario(
        command="eval",
        variant="answers",
        line="eval {in}/small.gguf --suite card --questions bundled --tokens 2 --answer-tokens 2 --think-tokens 2 "
        "--answers {out}/answers.jsonl",
        llama="run",
        cost="slow",
    ),
    Scenario(
        command="verify",
        line="verify {in}/small.gguf --source {in}/checkpoint --json {out}/report.json",
        llama="encode",
    ),
    Scenario(
        command="trace",
        line="trace {in}/f32.gguf --reference {in}/checkpoint --tokens 6 --json {out}/report.json --html {out}/page.html "
        "--png {out}/picture.png",
        llama="run",
        cost="slow",
    ),
    Scenario(
        command="golden",
        line="golden {in}/checkpoint {out}/golden --tokens 2 --json {out}/report.json",
        cost="slow",
    ),
    Scenario(
        command="golden",
        variant="suite",
        line="golden --all {out}/suite --family olmoe --json {out}/report.json",
        cost="slow",
    ),
    Scenario(
        command="check",
        line="check {in}/golden --gguf {in}/f32.gguf --json {out}/report.json",
        llama="run",
        cost="slow",
    ),
    Scenario(command="diff", line="diff {in}/checkpoint {in}/f32.gguf --json {out}/report.json"),
    Scenario(
        command="card",
        line="card {in}/checkpoint {in}/small.gguf --suite none --out {out}/README.md --modelfile --json {out}/report.json",
        llama="run",
        cost="slow",
    ),
    Scenario(
        command="publish",
        line="publish {in}/checkpoint --types f16,q8_0 --out {out}/published --suite none --json {out}/report.json",
        llama="run",
        cost="slow",
    ),
    Scenario(
        command="ask",
        line="ask {in}/small.gguf Hello --tokens 4 --json {out}/report.json",
        llama="run",
        cost="slow",
    ),
    Scenario(command="chat", line="chat {in}/small.gguf --json {out}/report.json", llama="run", cost="slow"),
    Scenario(
        command="search run",
        line="search run {in}/f32.gguf --objective perplexity --strategy blocks --allow delete --text {in}/passages.txt "
        "--storage {in}/study.db --study found --threads 1 --html {out}/page.html --json {out}/report.json",
        changes=("study.db",),
        llama="run",
        cost="slow",
    ),
    Scenario(
        command="search report",
        line="search report {in}/study.db --html {out}/page.html --png {out}/pictures --json {out}/report.json",
        containers=("pictures",),
        varies=("pictures",),
        cost="slow",
    ),
    Scenario(
        command="search export",
        line="search export {in}/study.db {out}/model.gguf --source {in}/f32.gguf --json {out}/report.json",
        proves=True,
        cost="slow",
    ),
    Scenario(
        command="search profile",
        line="search profile {in}/f32.gguf --text {in}/passages.txt --png {out}/picture.png --json {out}/report.json",
        varies=("picture.png",),
        llama="run",
        cost="slow",
    ),
    Scenario(command="inspect", variant="folder", line="inspect {in}/checkpoint --json {out}/report.json", tells=True),
    Scenario(command="inspect", variant="GGUF", line="inspect {in}/f32.gguf --json {out}/report.json", tells=True),
    Scenario(
        command="demo",
        setup=SMALL_DEMO,
        line="demo --model dense --out {out}/files --json {out}/report.json",
        llama="run",
        containers=("files",),
        progress=("converting ", "evaluating"),
        varies=("report.json", "stdout"),
        cost="long",
    ),
)
