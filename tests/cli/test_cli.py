"""The `llmcore` command as a user meets it: good calls on a real run, bad calls in one line."""

from __future__ import annotations

import gzip
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

from llmcore.artifacts.manifest import manifests
from llmcore.artifacts.store import blob_name, open_store, suffix_of
from llmcore.evaluation.verdict import verdict
from llmcore.planning.chain import build
from llmcore.planning.config import load
from llmcore.release.facts import CONTENDERS
from tasks.terminal import ERASE
from tests.prefect_server import free_port
from tests.small import small_config

pytestmark = pytest.mark.slow
COPY_OF, NEAR_COPY_OF = "003.txt", "005.txt"


ROOT = Path(__file__).parents[2]


def call(*words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llmcore.cli", *words], env=env, capture_output=True, text=True, timeout=400
    )


def good(*words: str, env: dict[str, str]) -> str:
    done = call(*words, env=env)
    assert done.returncode == 0, f"llmcore {' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def table(*words: str, env: dict[str, str]) -> Any:
    return json.loads(good(*words, "--json", env=env))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, prefect_server: dict[str, str]) -> tuple[Path, dict[str, str]]:
    """One finished run of the small configuration, with an exact and a near copy among the texts."""
    folder = tmp_path_factory.mktemp("cli")
    config = small_config(folder)
    texts = folder / "texts"
    (texts / "900.txt").write_text((texts / COPY_OF).read_text())
    (texts / "901.txt").write_text((texts / NEAR_COPY_OF).read_text() + " And so it was resolved on that day.")
    env = prefect_server | {"LLMCORE_STORE": f"file://{folder}/store"}
    done = call("run", str(config), env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    (folder / "stderr.txt").write_text(done.stderr)
    return config, env


def test_a_run_says_a_line_a_stage_and_nothing_of_prefect(run: tuple[Path, dict[str, str]]) -> None:
    config, env = run
    said = (config.parent / "stderr.txt").read_text()
    head, *lines = [line for line in said.splitlines() if not line.startswith("warning: ")]
    assert head.split() == ["stage", "read", "kept", "dropped", "seconds"]
    steps = list(build(load(config)).steps)
    assert [step for line in lines for step in steps if line.startswith(f"{step} ")] == steps
    assert len(lines) == len(steps)
    told = {step: line.removeprefix(step).split() for step, line in zip(steps, lines, strict=True)}
    assert told["dedup"][:3] == ["42", "40", "2"]
    assert float(told["dedup"][3]) >= 0
    assert told["train"][:2] == ["60", "steps,"]
    for word in ("refect", "INFO", "Flow run", "Task run", "Completed", "\x1b"):
        assert word not in said
    again = call("run", str(config), env=env)
    assert not again.returncode
    _, *lines = [line for line in again.stderr.splitlines() if not line.startswith("warning: ")]
    assert all(line.endswith(" cached") for line in lines)
    assert " dropped " not in again.stderr.partition("seconds")[2], "nothing is warned of again"


def test_on_a_terminal_a_line_is_drawn_anew_and_prefect_has_no_notice(
    run: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    config, env = run
    (tmp_path / "prefect").mkdir()
    fresh = env | {"TERM": "xterm", "PREFECT_HOME": str(tmp_path / "prefect"), "CI": ""}
    fresh.pop("DO_NOT_TRACK", None)
    command = [sys.executable, "-m", "llmcore.cli", "run", str(config), "--until", "extract"]
    master, slave = pty.openpty()
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=fresh) as process:
        os.close(slave)
        said = b""
        with suppress(OSError):  # which is how a terminal without a writer ends
            while part := os.read(master, 65536):
                said += part
    os.close(master)
    assert process.returncode == 0, said
    text = said.decode()
    assert f"{ERASE}extract  …{ERASE}extract " in text
    assert "usage data" not in text and "refect" not in text
    assert "stopped after extract" in text.splitlines()[-1]


def test_a_run_ends_in_samples_measures_a_verdict_and_the_model(run: tuple[Path, dict[str, str]]) -> None:
    config, env = run
    said = (config.parent / "stdout.txt").read_text()
    (evaluation,) = manifests(open_store(env["LLMCORE_STORE"]), "evaluate")
    samples, measures = re.split(r"\n\n(?=bits per byte)", said)
    assert re.findall(r"^sample (\d)   \S", samples, re.M) == ["1", "2", "3"]
    assert "\n\n" not in samples.strip(), "no blank lines in what the model wrote"
    scores, others = measures.split("also measured\n")
    (first, *rows) = scores.splitlines()
    assert first.split()[-2:] == ["test", "validation"]
    assert {re.split(r"\s{2,}", row.strip())[0] for row in rows} <= set(CONTENDERS.values())
    ours = next(row for row in rows if "this model" in row).split()
    assert float(ours[-2]) == pytest.approx(evaluation.metrics["test_bits_per_byte"], abs=1e-4)
    assert "test perplexity" in others
    assert f"\nverdict    {verdict(evaluation.metrics)}\n" in said
    *_, documents, _, _, report, last = said.splitlines()
    assert documents.startswith("documents  ") and " of 42 stand; " in documents and "dedup took 2" in documents
    assert report.startswith("report ") and last.startswith("model ")


def test_the_funnel_adds_up_and_names_rules(run: tuple[Path, dict[str, str]]) -> None:
    _, env = run
    rows = table("funnel", "small", env=env)
    assert all(row["read"] == row["kept"] + row["dropped"] for row in rows)
    assert all(row["dropped"] == sum(row["reasons"].values()) for row in rows)
    by_stage = {row["stage"]: row for row in rows}
    assert by_stage["dedup"]["reasons"] == {"exact_duplicate": 1, "near_duplicate": 1}
    assert by_stage["dedup"]["source"] == "notes" and by_stage["dedup"]["bytes_kept"] is None
    (measured,) = table("funnel", "small", "--stage", "dedup", "--bytes", env=env)
    assert measured["bytes_kept"] < measured["bytes_read"]
    printed = good("funnel", "small", "--stage", "dedup", env=env).splitlines()
    assert printed[0].split() == ["stage", "source", "read", "kept", "dropped", "share", "by"]
    assert printed[1].split()[:7] == ["dedup", "notes", "42", "40", "2", "4.8", "%"]
    assert "exact_duplicate 1, near_duplicate 1" in printed[1]
    one_line(call("funnel", "small", "--stage", "tea", env=env), "no stage behind small", code=1)


def test_what_was_dropped_is_shown_with_its_text(run: tuple[Path, dict[str, str]]) -> None:
    config, env = run
    (row,) = table("dropped", "small", "--rule", "exact_duplicate", env=env)
    assert row["stage"] == "dedup" and row["source"] == "notes" and row["url"].endswith("900.txt")
    before = (config.parent / "texts" / COPY_OF).read_text()
    assert row["text"].split()[:100] == before.split()[:100]
    rows = table("dropped", "small", "--stage", "dedup", env=env)
    assert {row["rule"] for row in rows} == {"exact_duplicate", "near_duplicate"}
    assert len(table("dropped", "small", "--stage", "dedup", "--n", "1", env=env)) == 1
    printed = good("dropped", "small", "--rule", "near_duplicate", "--letters", "80", env=env)
    assert printed.startswith("dedup: near_duplicate   notes ")
    assert "    | " in printed and "letters)" in printed and printed.endswith("1 documents\n")
    one_line(call("dropped", "small", "--rule", "tea", env=env), "llmcore funnel small", code=1)


def test_a_model_writes_on_from_a_prompt_the_same_each_time(run: tuple[Path, dict[str, str]]) -> None:
    _, env = run
    (first,) = table("generate", "small", "We must", "--tokens", "20", env=env)
    assert first["prompt"] == "We must" and first["text"].strip()
    assert good("generate", "small", "We must", "--tokens", "20", env=env) == f"We must{first['text']}\n"
    (other,) = table("generate", "small", "We must", "--tokens", "20", "--seed", "2", env=env)
    assert other["text"] != first["text"]
    (model,) = manifests(open_store(env["LLMCORE_STORE"]), "train")
    assert table("generate", f"train/{model.key[:8]}", "We must", "--tokens", "20", env=env) == [first]
    (plan,) = manifests(open_store(env["LLMCORE_STORE"]), "pack")
    one_line(call("generate", plan.key[:12], "We must", env=env), "holds no model")
    one_line(call("generate", "small", "We must", "--device", "abacus", env=env), "abacus", "cuda")


def test_a_stage_that_takes_much_is_warned_of_with_the_command_that_shows_it(
    run: tuple[Path, dict[str, str]],
) -> None:
    config, env = run
    strict = config.with_name("strict.yaml")
    strict.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"quality": {"gopher_min_words": 1000}}))
    done = call("run", str(strict), "--until", "quality", env=env)
    assert done.returncode == 0, done.stderr
    (warned,) = [line for line in done.stderr.splitlines() if line.startswith("warning: quality ")]
    assert re.match(
        r"warning: quality dropped (\d+) of \1 documents of notes \(100 %\), most by gopher_min_words; ", warned
    )
    command = shlex.split(warned.partition("to read some: ")[2])
    assert command[:2] == ["llmcore", "dropped"]
    rows = table(*command[1:], "--rule", "gopher_min_words", env=env)
    assert len(rows) == 10 and all(json.loads(row["detail"])["threshold"] == 1000 for row in rows)


def test_keys_may_be_shortened_as_long_as_they_name_one(run: tuple[Path, dict[str, str]]) -> None:
    _, env = run
    keys = {row["key"]: row["digest"] for row in table("ls", env=env)}
    every = [*keys, *keys.values()]
    key = min(keys)
    fits = [n for n in range(1, 13) if sum(other.startswith(key[:n]) for other in every) == 1]
    assert table("show", key[: fits[0]], env=env)["key"].startswith(key)
    letter = max("0123456789abcdef", key=lambda letter: sum(other.startswith(letter) for other in keys))
    one_line(call("show", letter, env=env), "give more digits")
    (row,) = table("ls", "train", env=env)
    assert table("show", f"train/{row['key'][0]}", env=env)["key"].startswith(row["key"])


def page_commands() -> list[str]:
    """What docs/commands.md shows of commands that look; the others are test_making's and test_init's."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/commands.md").read_text(), re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    making = tuple(f"llmcore {name} " for name in ("init", "run", "dataset", "refresh", "pretrain", "release"))
    return [line for line in lines if line.startswith("llmcore ") and not line.startswith(making)]


@pytest.mark.parametrize("command", page_commands())
def test_the_commands_of_the_page_do_what_it_says(
    command: str, run: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    config, env = run
    line = command.replace("mine.yaml", str(config)).replace("mine", "small")
    line = line.replace("llmcore", f"{shlex.quote(sys.executable)} -m llmcore.cli", 1)
    done = subprocess.run(["bash", "-c", f"{line}\nexit $?"], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() or any(path.stat().st_size for path in tmp_path.iterdir())


def test_tables_and_json(run: tuple[Path, dict[str, str]]) -> None:
    config, env = run
    assert {row["stage"] for row in table("ls", env=env)} >= {"collect", "clean", "train", "publish"}
    assert [row["stage"] for row in table("ls", "train", env=env)] == ["train"]
    assert table("show", "small", env=env)["identity"]["stage"] == "publish"
    steps = [node["step"] for node in table("lineage", "small", env=env)]
    assert steps[0] == "collect notes" and steps[-1] == "publish"
    assert table("verify", "small", env=env)["wrong"] == []
    assert all(row["state"] == "cached" for row in table("plan", str(config), env=env)["steps"])
    assert {row["what"] for row in table("doctor", env=env)} >= {"GPU", "store", "Prefect server"}
    assert "vocab_size" in good("schema", env=env)
    assert yaml.safe_load(good("config", env=env))["name"] == "quickstart"


def test_trace_of_a_trained_document_names_its_steps(run: tuple[Path, dict[str, str]]) -> None:
    config, env = run
    words = (config.parent / "texts/020.txt").read_text()[200:260]
    rows = table("trace", "--text", words, env=env)
    outcomes = {row["step"]: row for row in rows}
    assert outcomes["clean"]["outcome"] == "kept"
    if outcomes["tokenise"]["outcome"] == "train":
        assert outcomes["train"]["detail"].startswith("at steps ")
    assert outcomes["small"]["outcome"] == "named"
    assert table("trace", "--doc", rows[0]["document"], env=env) == rows


def test_trace_of_duplicates_names_what_they_duplicate(run: tuple[Path, dict[str, str]]) -> None:
    _, env = run
    for copy, original, reason in (("900", COPY_OF, "exact_duplicate"), ("901", NEAR_COPY_OF, "near_duplicate")):
        rows = {row["step"]: row for row in table("trace", "--url", f"{copy}.txt", env=env)}
        first = table("trace", "--url", original, env=env)[0]["document"]
        assert rows["dedup"]["outcome"] == f"dropped: {reason}"
        facts = json.loads(rows["dedup"]["detail"])
        assert facts["duplicate_of"] == first and facts["duplicate_of_url"] == original


def test_the_exported_folder_loads_in_transformers_with_equal_logits(
    run: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmcore.model.huggingface import load

    _, env = run
    good("export", "small", str(tmp_path / "model"), env=env)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(tmp_path / "model")("We must", return_tensors="pt").input_ids
    with torch.no_grad():
        gap = (theirs(tokens).logits - load(tmp_path / "model")(tokens)).abs().max()
    assert gap < 1e-4
    files = {"README.md", "LICENSE", "lineage.json", "report.html", "model-f16.gguf"}
    assert files <= set(os.listdir(tmp_path / "model"))
    again = call("export", "small", str(tmp_path / "model"), env=env)
    assert again.returncode == 2 and "exists already" in again.stderr


def test_a_changed_parameter_is_named_and_reruns_exactly_what_lies_behind_it(run: tuple[Path, dict[str, str]]) -> None:
    config, env = run
    changed = config.with_name("changed.yaml")
    changed.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"dedup": {"threshold": 0.9}}))
    steps = {row["step"]: row for row in table("plan", str(changed), env=env)["steps"]}
    assert "params.threshold 0.7 → 0.9" in steps["resolve"]["why"]
    documents = ["collect notes", "ingest notes", "extract", "clean", "site_lines", "trim", "language", "pii"]
    before = [*documents, "signatures"]
    assert [step for step, row in steps.items() if row["state"] == "cached"] == before
    store = open_store(env["LLMCORE_STORE"])
    known = {m.key for m in manifests(store)}
    good("run", str(changed), "--until", "dedup", env=env)
    assert {m.step for m in manifests(store) if m.key not in known} <= {"resolve", "dedup"}


def test_a_forced_run_that_fails_leaves_the_model_as_it_was(run: tuple[Path, dict[str, str]]) -> None:
    config, env = run
    store = open_store(env["LLMCORE_STORE"])
    (model,) = list(manifests(store, "train"))
    output = model.outputs["model.safetensors"]
    path = store.backend.local(blob_name(output.blob, suffix_of("model.safetensors")))
    assert path is not None
    whole = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        one_line(call("run", str(config), "--force", "evaluate", env=env), output.blob, code=1)
    finally:
        path.write_bytes(whole)
        path.chmod(0o444)
    assert all(row["state"] == "cached" for row in table("plan", str(config), env=env)["steps"])
    one_line(call("run", str(config), "--force", "tea", env=env), "no stage 'tea'")
    one_line(call("run", str(config), "--force", "collect", env=env), "'collect' is a snapshot", "llmcore refresh")


def one_line(done: subprocess.CompletedProcess[str], *words: str, code: int = 2) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("llmcore: ")]
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sorces": []}, ["sorces", "unknown key"]),
        ({"dedup": {"band": 3}}, ["dedup.band", "unknown key"]),
        ({"train": {"layer": 3}}, ["train", "layer"]),
        ({"train": {"layers": 0}}, ["train.layers", "greater than or equal to 1"]),
        ({"pack": {"window": "wide"}}, ["pack.window"]),
        ({"sources": [{"kind": "text", "name": "a", "path": "nowhere"}]}, ["nowhere", "does not exist"]),
        ({"sources": [{"kind": "tape", "name": "a", "path": "x"}]}, ["sources", "kind"]),
        ({"store": "ftp://x/y"}, ["store", "ftp"]),
    ],
)
def test_a_wrong_configuration_is_one_line(
    changes: dict[str, Any], words: list[str], tmp_path: Path, prefect_server: dict[str, str]
) -> None:
    one_line(call("run", str(small_config(tmp_path, **changes)), env=prefect_server), *words)
    assert not (tmp_path / "store").exists()


def test_calls_that_name_nothing(run: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    config, env = run
    one_line(call("run", str(tmp_path / "none.yaml"), env=env), "none.yaml", "no such file")
    (tmp_path / "bad.yaml").write_text("a: [")
    one_line(call("run", str(tmp_path / "bad.yaml"), env=env), "bad.yaml", "not YAML")
    one_line(call("run", str(config), "--until", "tea", env=env), "no stage 'tea'")
    for command in ("show", "lineage", "verify"):
        one_line(call(command, "nothing", env=env), "nothing", "llmcore ls")
    one_line(call("trace", "--url", "http://nowhere.example/", env=env), "no document", code=1)
    one_line(call("trace", env=env), "exactly one")


@pytest.mark.parametrize("kind", ["warc", "parquet", "empty", "blank"])
def test_damaged_or_empty_input_is_one_line(kind: str, tmp_path: Path, prefect_server: dict[str, str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    if kind == "warc":
        record = b"WARC/1.1\r\nWARC-Type: response\r\nContent-Length: 99\r\n"
        (data / "a.warc.gz").write_bytes(gzip.compress(record)[:-9])
    elif kind == "parquet":
        pl.DataFrame({"text": ["x" * 500]}).write_parquet(data / "a.parquet")
        whole = (data / "a.parquet").read_bytes()
        (data / "a.parquet").write_bytes(whole[: len(whole) // 2])
    elif kind == "blank":
        (data / "a.txt").write_text(" \n")
    source = {"kind": {"empty": "text", "blank": "text"}.get(kind, kind), "name": "a", "path": "data"}
    done = call("run", str(small_config(tmp_path, sources=[source])), env=prefect_server)
    assert done.returncode == (2 if kind == "empty" else 1)
    words = {"warc": "a.warc.gz", "parquet": "a.parquet", "empty": "holds no text file", "blank": "empty corpus"}
    one_line(done, words[kind], code=done.returncode)
    store = open_store(f"file://{tmp_path}/store")
    assert list(manifests(store, "ingest")) == []


def test_an_unreachable_s3_is_one_line(tmp_path: Path, prefect_server: dict[str, str]) -> None:
    env = prefect_server | {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
    }
    one_line(call("run", str(small_config(tmp_path, store="s3://nowhere/x")), env=env), "s3://nowhere", "AWS_")


def test_garbage_goes_and_what_is_named_stays(run: tuple[Path, dict[str, str]]) -> None:
    _, env = run
    assert table("gc", env=env)["objects"] == [], "what is young may belong to a run under way"
    found = table("gc", "--older-than", "0", env=env)
    assert any(row["name"].startswith("artifacts/resolve/") for row in found["objects"])
    assert found["deleted"] is False
    good("gc", "--older-than", "0", "--yes", env=env)
    assert table("gc", "--older-than", "0", env=env)["objects"] == []
    assert table("verify", "small", env=env)["wrong"] == []
