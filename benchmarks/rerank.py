"""One query, 100 passages: our cross-encoder and FlagEmbedding's, on the same random checkpoint and the same texts.

    python benchmarks/rerank.py [--size full] [--rounds 5] [--passages 100] [--output results/rerank.json]

The checkpoint has the layout and the sizes of bge-reranker-v2-m3 (`full`: 568M parameters), random weights and a
small tokenizer trained on examples/corpus; it is written once to build/. Passages are cut from that corpus to lengths
of about 120 tokens (lognormal, at most 500), the query has about 12. Every contender lives in a process of its own and
they take turns, round by round; a round is one call with all texts, tokenization included.
Random weights hardly tell texts apart, and the head multiplies what rounding adds: the largest difference shows that
float32 contenders compute the same; for 16 bits it is no measure of quality.
Bar: ours, in the precision that `auto` takes, at least 6 times as fast as FlagEmbedding's best setting.
Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from threefold.encoder.memory import peak_bytes
from threefold.text.tokenizer import NEVER, Tokenizer

ROOT = Path(__file__).parent.parent
BAR = 6.0
QUERY = "how do the moon and the sun move the water of the sea?"

#: hidden, layers, heads, feed-forward, vocabulary
SIZES = {
    "tiny": (64, 2, 4, 128, 8_192),
    "base": (768, 12, 12, 3072, 250_002),
    "full": (1024, 24, 16, 4096, 250_002),
}
MEAN_TOKENS, SPREAD, LONGEST = 120, 0.6, 500
SPECIAL = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}

Score = Callable[[tuple[str, list[str]]], tuple[float, float, list[float]]]


# ---- checkpoint and texts ----------------------------------------------------------------------------------


def checkpoint(size: str) -> Path:
    """The folder of the random model, written if it is not there."""
    folder = ROOT / "build" / f"random-reranker-{size}"
    if not (folder / "model.safetensors").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_tokenizer(folder)
        write_model(folder, *SIZES[size])
    return folder


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    from threefold.text.tokenizer import finish_backend

    backend = Backend(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=8_000, special_tokens=specials, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(corpus(), trainer)
    settings = json.loads(finish_backend(backend).to_str())
    for piece in settings["model"]["vocab"][: len(specials)]:
        piece[1] = NEVER
    (folder / "tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")
    names = {f"{role}_token": token for role, token in SPECIAL.items()}
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def write_model(folder: Path, hidden: int, layers: int, heads: int, ffn: int, vocab: int) -> None:
    from safetensors.torch import save_file

    from threefold.encoder.cross_model import CrossConfig, CrossModel
    from threefold.encoder.foreign import hugging_face_names
    from threefold.encoder.network import NetworkConfig, initialise

    network = NetworkConfig(vocab, hidden, layers, heads, ffn, positions=8194)
    model = CrossModel(CrossConfig(network, max_tokens=8192))
    initialise(model)
    initialise(model.head, std=0.2)  # scores that differ, so that "largest difference" says something
    state: dict[str, Any] = {}
    for ours, theirs in hugging_face_names(network).items():
        parts = model.network.state_dict()[ours].chunk(len(theirs))
        state |= {f"roberta.{name}": part.contiguous() for name, part in zip(theirs, parts, strict=True)}
    for ours, name in (("dense", "classifier.dense"), ("out", "classifier.out_proj")):
        state |= {f"{name}.{part}": model.head.state_dict()[f"{ours}.{part}"] for part in ("weight", "bias")}
    config = {
        "architectures": ["XLMRobertaForSequenceClassification"], "model_type": "xlm-roberta", "vocab_size": vocab,
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": ffn,
        "max_position_embeddings": 8194, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "hidden_act": "gelu",
        "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0}, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    part = folder / "model.safetensors.part"
    save_file(state, part, metadata={"format": "pt"})
    part.replace(folder / "model.safetensors")


def corpus() -> list[str]:
    files = sorted(path for path in (ROOT / "examples" / "corpus").rglob("*") if path.suffix in (".md", ".txt"))
    return [path.read_text(encoding="utf-8") for path in files]


def passages(folder: Path, n: int) -> list[str]:
    """Runs of words of the corpus with about lognormal token counts."""
    tokenizer, rng = Tokenizer.load(folder), np.random.default_rng(0)
    words = " ".join(corpus()).split()
    wanted = np.minimum(rng.lognormal(np.log(MEAN_TOKENS) - SPREAD**2 / 2, SPREAD, n), LONGEST).astype(int)
    texts = []
    for length in wanted.tolist():
        start = int(rng.integers(0, len(words) - LONGEST))
        text = " ".join(words[start : start + length])
        texts.append(tokenizer.decode(tokenizer.encode([text], max_tokens=max(length, 3))[0].tolist()))
    return texts


# ---- contenders: each in its own process -------------------------------------------------------------------


def make(setting: tuple[str, str]) -> Score:
    """(contender, folder) -> a function that scores and says (seconds, peak MiB of the process, scores)."""
    name, folder = setting
    score = ours(name, folder) if name.startswith("threefold") else theirs(name, folder)

    def timed(task: tuple[str, list[str]]) -> tuple[float, float, list[float]]:
        start = time.perf_counter()
        scores = score(*task)
        seconds = time.perf_counter() - start
        return seconds, peak_bytes() / 2**20, scores

    return timed


def ours(name: str, folder: str) -> Callable[[str, list[str]], list[float]]:
    from threefold.encoder.cross import CrossEncoder

    cross = CrossEncoder(folder, device="cpu", precision=name.removeprefix("threefold "))  # type: ignore[arg-type]
    return lambda query, texts: cross.score(query, texts, max_tokens=512).tolist()


def theirs(name: str, folder: str) -> Callable[[str, list[str]], list[float]]:
    from FlagEmbedding import FlagReranker

    batch = int(name.split()[-1])
    reference = FlagReranker(folder, devices="cpu", use_fp16=False, batch_size=batch, max_length=512)
    return lambda query, texts: list(reference.compute_score([(query, text) for text in texts]))


def run(folder: Path, names: list[str], texts: list[str], rounds: int) -> dict[str, list[Any]]:
    """Rounds of every contender in turn; the first round warms up and is not counted."""
    from threefold.encoder.workers import Workers

    found: dict[str, list[Any]] = {name: [] for name in names}
    with ExitStack() as stack:
        processes = {name: stack.enter_context(closing(Workers(make, [(name, str(folder))], [name]))) for name in names}
        for i in range(rounds + 1):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                answer = processes[name].submit((QUERY, texts)).result()
                if i:
                    found[name].append(answer)
    return found


# ---- report ------------------------------------------------------------------------------------------------


def summary(found: dict[str, list[Any]], tokens: int, flops: float) -> list[dict[str, Any]]:
    exact = np.array(found["threefold float32"][0][2])
    rows = []
    for name, answers in found.items():
        seconds = [answer[0] for answer in answers]
        median = statistics.median(seconds)
        rows.append(
            {
                "contender": name,
                "median_s": round(median, 4),
                "fastest_s": round(min(seconds), 4),
                "slowest_s": round(max(seconds), 4),
                "tokens_per_s": round(tokens / median),
                "useful_gflops": round(flops / median / 1e9, 1),
                "peak_mib": round(max(answer[1] for answer in answers)),
                "std_of_scores": float(f"{np.std(answers[0][2]):.2e}"),
                "largest_difference": float(f"{np.abs(np.array(answers[0][2]) - exact).max():.2e}"),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passages", type=int, default=100)
    parser.add_argument("--batch", type=int, action="append", help="of FlagEmbedding; 128 (its default) and 16")
    parser.add_argument("--precision", action="append", help="of ours; float32 and bfloat16")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "rerank.json")
    options = parser.parse_args()
    from threefold.encoder.network import NetworkConfig
    from threefold.encoder.precision import choose_device, choose_precision

    folder = checkpoint(options.size)
    texts = passages(folder, options.passages)
    pairs = Tokenizer.load(folder).encode_pairs([QUERY] * len(texts), texts, max_tokens=512)
    hidden, layers, _, ffn, _ = SIZES[options.size]
    lengths = pairs.lengths.astype(float)
    flops = 2 * layers * ((4 * hidden**2 + 2 * hidden * ffn) * lengths.sum() + 2 * hidden * (lengths**2).sum())
    names = [f"threefold {precision}" for precision in dict.fromkeys(["float32", *(options.precision or ["bfloat16"])])]
    names += [f"FlagReranker, batch {batch}" for batch in options.batch or [128, 16]]
    report = machine() | {"size": options.size, "passages": len(texts), "tokens": int(lengths.sum())}
    rows = summary(run(folder, names, texts, options.rounds), int(lengths.sum()), float(flops))
    auto = f"threefold {choose_precision('auto', choose_device('cpu'), NetworkConfig())}"
    mine = next((row for row in rows if row["contender"] == auto), rows[0])
    best = min(row["median_s"] for row in rows if row["contender"].startswith("FlagReranker"))
    for row in rows:
        row["times_as_fast_as_the_best_flag_reranker"] = round(best / row["median_s"], 2)
    ratio = best / mine["median_s"]
    report |= {"rounds": options.rounds, "results": rows, "ours": mine["contender"], "ratio": round(ratio, 2)}
    report |= {"bar": BAR, "bar_met": ratio >= BAR, "load_after": [round(one, 2) for one in os.getloadavg()]}
    show(report)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


def show(report: dict[str, Any]) -> None:
    print(
        f"{report['passages']} passages, {report['tokens']:,} tokens, {report['size']} model, {report['rounds']} rounds"
    )
    print(
        f"{'':26}{'median s':>10}{'spread s':>18}{'tokens/s':>10}{'GFLOP/s':>9}{'MiB':>7}{'ratio':>7}{'max diff':>10}"
    )
    for row in report["results"]:
        spread = f"{row['fastest_s']:.3f} - {row['slowest_s']:.3f}"
        print(
            f"{row['contender']:26}{row['median_s']:>10.3f}{spread:>18}{row['tokens_per_s']:>10,}"
            f"{row['useful_gflops']:>9,.0f}{row['peak_mib']:>7,}"
            f"{row['times_as_fast_as_the_best_flag_reranker']:>7.2f}{row['largest_difference']:>10.1e}"
        )
    verdict = "met" if report["bar_met"] else "not met"
    print(f"bar {report['bar']} times FlagEmbedding's best: {report['ours']} has {report['ratio']}, {verdict}")


if __name__ == "__main__":
    main()
