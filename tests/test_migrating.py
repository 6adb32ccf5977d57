"""docs/migrating.md: both sides of its pairs run, and say the same; its commands, settings and claims hold.

Models are small random checkpoints in the layouts of those that the page names.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.encoder.checkpoints import bge_m3, sentence_transformer
from tests.encoder.cross_checkpoints import bge_reranker, minilm_reranker
from tests.serve.fakes import serving
from tests.test_docs import COMMANDS, options
from typer.testing import CliRunner

import threefold
from threefold import Collection, CrossEncoder, Encoder
from threefold.cli.main import app
from threefold.errors import InputError, StoreError
from threefold.score import PUBLISHED, rrf
from threefold.serve.server import Server
from threefold.serve.settings import ServeConfig
from threefold.train.recipe import read_recipe, read_toml
from threefold.types import Floats, Ragged, Sparse

PAGE = (Path(__file__).parents[1] / "docs" / "migrating.md").read_text(encoding="utf-8")
INTRODUCTION, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
EXACT = 1e-5
peers = pytest.mark.peers
quiet = pytest.mark.filterwarnings("ignore")  # their imports warn


def section(heading: str) -> str:
    return next(one for one in SECTIONS if one.startswith(heading))


def blocks(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def spans(text: str) -> list[str]:
    """What stands between backquotes outside blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def dense(encoder: Encoder, texts: list[str]) -> Floats:
    found = encoder.encode(texts, outputs=["dense"]).dense
    assert found is not None
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The folders that stand for the models of the page."""
    root = tmp_path_factory.mktemp("models")
    made = {
        "BAAI/bge-m3": bge_m3(root / "m3"),
        "BAAI/bge-base-en-v1.5": sentence_transformer(root / "base", pooling="cls_token", max_seq_length=64),
        "BAAI/bge-reranker-v2-m3": bge_reranker(root / "reranker"),
        "mixedbread-ai/mxbai-embed-large-v1": sentence_transformer(root / "mxbai", max_seq_length=64),
        "cross-encoder/ms-marco-MiniLM-L6-v2": minilm_reranker(root / "minilm"),
    }
    (root / "base" / "config_sentence_transformers.json").unlink()  # the published folder declares no prompts
    return {name: str(folder) for name, folder in made.items()}


def named(text: str, folders: Mapping[str, str]) -> str:
    for name, folder in folders.items():
        text = re.sub(rf"{re.escape(name)}(?![\w.-])", folder.replace("\\", "/"), text)
    return text


def run(heading: str, folders: Mapping[str, str], address: str = "") -> dict[str, Any]:
    """What the blocks of a section leave behind."""
    scope: dict[str, Any] = {}
    for block in [*blocks(INTRODUCTION), *blocks(section(heading))]:
        source = named(block, folders).replace("http://127.0.0.1:8000", address)
        exec(compile(source, "docs/migrating.md", "exec"), scope)
    return scope


# ---- FlagEmbedding -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flag(folders: dict[str, str]) -> dict[str, Any]:
    pytest.importorskip("FlagEmbedding")
    return run("FlagEmbedding", folders)


@peers
@quiet
def test_vectors_and_weights_of_flagembedding(flag: dict[str, Any]) -> None:
    three, theirs = flag["three"], flag["theirs"]
    np.testing.assert_allclose(three.dense, theirs["dense_vecs"], atol=EXACT)
    for i in range(3):
        np.testing.assert_allclose(three.multi[i], theirs["colbert_vecs"][i], atol=EXACT)
        weights = {int(id): float(weight) for id, weight in theirs["lexical_weights"][i].items()}
        assert three.sparse.row(i) == pytest.approx(weights, abs=EXACT)
        json.dumps(three.sparse.row(i))
    with pytest.raises(TypeError):
        json.dumps(theirs["lexical_weights"])
    assert three.dense.dtype == three.multi.rows.dtype == np.float32


@peers
@quiet
def test_their_default_rounds_the_weights_on_a_cpu_too(flag: dict[str, Any], folders: dict[str, str]) -> None:
    rounded = type(flag["model"])(folders["BAAI/bge-m3"]).encode(flag["texts"])["dense_vecs"]
    assert rounded.dtype == np.float32
    assert 1e-4 < np.abs(rounded - flag["theirs"]["dense_vecs"]).max() < 1e-2


@peers
@quiet
def test_what_is_kept_of_flagembedding_is_read(flag: dict[str, Any]) -> None:
    theirs, encoder = flag["theirs"], flag["encoder"]
    sparse, multi = Sparse.of(theirs["lexical_weights"], encoder.card.vocab), Ragged.of(theirs["colbert_vecs"])
    np.testing.assert_array_equal(sparse.indices, flag["three"].sparse.indices)
    np.testing.assert_allclose(sparse.values, flag["three"].sparse.values, atol=EXACT)
    np.testing.assert_allclose(multi.rows, flag["three"].multi.rows, atol=EXACT)


@peers
@quiet
def test_words_of_flagembedding_lose_weights(flag: dict[str, Any]) -> None:
    for words, terms in zip(flag["words"], flag["terms"], strict=True):
        plain = [term.removeprefix("▁") for term in terms]
        assert set(words) == set(plain)
        for term, spelling in zip(terms, plain, strict=True):
            if plain.count(spelling) == 1:
                assert terms[term] == pytest.approx(float(words[spelling]), abs=EXACT)
    lazy = ["the lazy dog sleeps"]  # two pieces that read "l"
    words = flag["model"].convert_id_to_token(flag["model"].encode(lazy, return_sparse=True)["lexical_weights"])
    assert len(words) < len(flag["encoder"].encode(lazy).sparse.row(0))


@peers
@quiet
def test_scores_of_flagembedding(flag: dict[str, Any]) -> None:
    assert flag["lexical_here"][1] == pytest.approx(float(flag["lexical"]), rel=EXACT)
    assert flag["late_here"][1] == pytest.approx(float(flag["late"]), rel=EXACT)
    scores, pairs = flag["scores"], flag["pairs"]
    for ours, theirs in (("dense", "dense"), ("sparse", "sparse"), ("multi", "colbert")):
        np.testing.assert_allclose(pairs[ours], scores[theirs], atol=EXACT)
    np.testing.assert_allclose(flag["fused"], scores["colbert+sparse+dense"], atol=EXACT)
    by_default = flag["model"].compute_score([(flag["query"], text) for text in flag["texts"]])
    equal = flag["weighted_sum"](pairs, PUBLISHED["default"])
    np.testing.assert_allclose(equal, by_default["colbert+sparse+dense"], atol=EXACT)


@peers
@quiet
def test_they_cut_at_512_and_read_special_tokens(flag: dict[str, Any]) -> None:
    model, encoder = flag["model"], flag["encoder"]
    long = ["The quick brown fox jumps over the lazy dog. " * 40]
    by_default, here = model.encode(long)["dense_vecs"], encoder.encode(long, outputs=["dense"])
    assert here.tokens[0] > 512
    assert not here.truncated[0]
    assert np.abs(here.dense - by_default).max() > 1e-3
    cut = encoder.encode(long, max_tokens=512)
    assert cut.truncated[0]
    np.testing.assert_allclose(cut.dense, by_default, atol=EXACT)
    with pytest.raises(InputError, match="the limit is 512"):
        encoder.encode(long, max_tokens=512, truncate="none")
    special = model.encode(["a <s> b"], return_colbert_vecs=True)["colbert_vecs"][0]
    assert len(special) < len(encoder.encode(["a <s> b"]).multi[0])
    assert model.encode("a fox")["dense_vecs"].ndim == 1
    with pytest.raises(InputError, match="one text"):
        encoder.encode("a fox")


@peers
@quiet
def test_instructions_of_flagembedding(flag: dict[str, Any]) -> None:
    np.testing.assert_allclose(flag["asked_here"], flag["asked"], atol=EXACT)
    np.testing.assert_allclose(flag["said_here"], flag["said"], atol=EXACT)
    plain = flag["english"].encode(flag["queries"]).dense
    assert np.abs(plain - flag["asked_here"]).max() > 1e-2


@peers
@quiet
def test_the_reranker_of_flagembedding(flag: dict[str, Any]) -> None:
    np.testing.assert_allclose(flag["judged_here"], flag["judged"], atol=EXACT)
    long = [("where do foxes live " * 30, "Foxes live in dens. " * 30), ("a dog", "the lazy dog " * 90)]
    theirs = flag["reranker"].compute_score(long, max_length=64)
    ours = flag["cross"].judge(long, max_tokens=64)
    np.testing.assert_allclose(ours.scores, theirs, atol=1e-4)
    assert ours.truncated.all()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """What the commands of the page read: training pairs and judged questions, as FlagEmbedding has them."""
    rng = np.random.default_rng(0)
    words = ["quick", "brown", "fox", "jumps", "over", "lazy", "dog", "five", "dozen", "liquor", "jugs", "box"]
    texts = [" ".join(rng.choice(words, 9)) for _ in range(40)]
    kinds = ["normal", "symmetric_sts", "only_1neg"]
    pairs = [
        {"query": text[:20], "pos": [text], "neg": [texts[i - 5]], "prompt": "ask: ", "type": kinds[i % 3], "id": i}
        for i, text in enumerate(texts)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "my-data").mkdir()
    rows: dict[str, list[dict[str, Any]]] = {
        "corpus": [{"id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)],
        "test_queries": [{"id": f"q{i}", "text": text[:20]} for i, text in enumerate(texts)],
        "test_qrels": [{"qid": f"q{i}", "docid": f"d{i}", "relevance": 1} for i in range(40)],
    }
    for name, lines in rows.items():
        (tmp_path / "my-data" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_its_training_files_folders_and_recipe(
    data: Path, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    monkeypatch.setenv("THREEFOLD_MODEL", folders["BAAI/bge-m3"])
    (recipe,) = blocks(section("FlagEmbedding"), "toml")
    Path("recipe.toml").write_text(named(recipe, folders))
    assert read_recipe(read_toml(Path("recipe.toml"))).train.sub_tokens == 4096
    (script,) = blocks(section("FlagEmbedding"), "bash")
    lines = [shlex.split(named(line, folders), comments=True) for line in script.splitlines()]
    assert [line[1] for line in lines] == ["mine", "distil", "train", "evaluate", "evaluate"]
    for line in lines[:4]:  # the last one would download
        done = CliRunner().invoke(app, line[1:])
        assert done.exit_code == 0, f"{line}\n{done.output}"
    mined = [json.loads(line) for line in Path("scored.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in mined] == ["ask: "] * 40
    assert all(len(row["neg"]) == len(row["neg_scores"]) > 1 for row in mined)
    assert Encoder("tuned", device="cpu").card.representations == ("dense", "sparse", "multi")


# ---- sentence-transformers ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentences(folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("sentence_transformers")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("exported"))
        return run("sentence-transformers", folders)


@peers
@quiet
def test_vectors_and_search_of_sentence_transformers(sentences: dict[str, Any]) -> None:
    np.testing.assert_allclose(sentences["asked_here"], sentences["asked"], atol=EXACT)
    np.testing.assert_allclose(sentences["said_here"], sentences["said"], atol=EXACT)
    scores = sentences["asked_here"] @ sentences["said_here"].T
    for i, (hits, best) in enumerate(zip(sentences["found"], sentences["best"], strict=True)):
        assert [hit["corpus_id"] for hit in hits] == best.tolist()
        np.testing.assert_allclose([hit["score"] for hit in hits], scores[i][best], atol=EXACT)


@peers
@quiet
def test_a_passage_prompt_is_used_here_alone(sentences: dict[str, Any]) -> None:
    model, encoder, texts = sentences["model"], sentences["encoder"], sentences["texts"]
    assert encoder.prompts == {"query": "query: ", "document": "passage: "}
    np.testing.assert_allclose(model.encode_document(texts), model.encode(texts), atol=EXACT)
    said = model.encode(texts, prompt_name="passage")
    np.testing.assert_allclose(encoder.encode_documents(texts).dense, said, atol=EXACT)
    assert np.abs(said - model.encode(texts)).max() > 1e-2


@peers
@quiet
def test_cross_encoders_of_sentence_transformers(sentences: dict[str, Any]) -> None:
    query, texts, judge, cross = (sentences[name] for name in ("query", "texts", "judge", "cross"))
    np.testing.assert_allclose(sentences["judged_here"], sentences["judged"], atol=EXACT)
    assert [one["corpus_id"] for one in sentences["ranked"]] == sentences["order"].tolist()
    silent = judge.predict([(query, text) for text in texts])  # the folder says nothing of a sigmoid
    np.testing.assert_allclose(silent, sentences["judged_here"], atol=EXACT)
    fair, long = ("a dog", "the lazy dog " * 90), ("where do foxes live " * 30, "Foxes live in dens. " * 30)
    theirs, ours = judge.predict([fair, long]), cross.judge([fair, long], normalize=True)
    assert ours.truncated.all()
    assert ours.scores[0] == pytest.approx(theirs[0], abs=EXACT)
    assert abs(ours.scores[1] - theirs[1]) > 1e-3


@peers
@quiet
def test_what_goes_back_to_sentence_transformers(sentences: dict[str, Any], folders: dict[str, str]) -> None:
    encoder = Encoder(folders["BAAI/bge-m3"], device="cpu", precision="float32")
    np.testing.assert_allclose(sentences["back"], dense(encoder, sentences["texts"]), atol=EXACT)


@peers
@quiet
def test_they_draw_random_heads_for_bge_m3(folders: dict[str, str]) -> None:
    from sentence_transformers import MultiVectorEncoder, SparseEncoder

    for kind in (SparseEncoder, MultiVectorEncoder):
        one, other = (dict(kind(folders["BAAI/bge-m3"], device="cpu").named_parameters()) for _ in range(2))
        assert any((one[name] != other[name]).any() for name in one)


# ---- servers -----------------------------------------------------------------------------------------------


@peers
@quiet
def test_clients_change_an_address(folders: dict[str, str]) -> None:
    from openai import OpenAI

    encoder = Encoder(folders["BAAI/bge-m3"], device="cpu", precision="float32")
    config = ServeConfig(served_names=("BAAI/bge-m3",))
    without_names = {name: folder for name, folder in folders.items() if name != "BAAI/bge-m3"}
    with serving(Server(config, lambda: encoder, None)) as url:
        scope = run("Servers", without_names, url)
        expected = dense(encoder, scope["texts"])
        np.testing.assert_allclose([one.embedding for one in scope["vectors"]], expected, atol=EXACT)
        np.testing.assert_allclose(scope["tei"], expected, atol=EXACT)
        with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            again = client.embeddings.create(model="BAAI/bge-m3", input=scope["texts"]).data
        assert [one.embedding for one in again] == [one.embedding for one in scope["vectors"]]
        scope["client"].close()


def test_the_settings_of_the_page_are_settings() -> None:
    lines = [span for span in spans(section("Servers")) if span.startswith(("threefold serve ", "--"))]
    ours = {f"--{name}" for name in ("host", "set", "batch-tokens", "queued-tokens", "keys-file", "precision", "cors")}
    ours |= {"--log-format"}
    lines = [line for line in lines if line.startswith("threefold") or (line.split()[0] in ours and " " in line)]
    assert len(lines) >= 16
    for line in lines:
        words = [word for word in shlex.split(line) if word not in ("threefold", "serve")]
        done = CliRunner().invoke(app, ["serve", *words, "--show-config"])
        assert done.exit_code == 0, f"{line}\n{done.output}"
        for word in words:
            name, equals, value = word.partition("=")
            if equals and name in (settings := json.loads(done.output)):
                assert str(settings[name]).lower().strip("[]'") == value.lower()


# ---- Milvus, Qdrant ----------------------------------------------------------------------------------------


@peers
@quiet
def test_milvus(folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("milvus_lite")
    from pymilvus import RRFRanker, WeightedRanker

    monkeypatch.chdir(tmp_path)
    scope = run("Milvus", folders)
    found, hits = scope["found"], scope["hits"]
    assert [hit.id for hit in hits] == [f"{one['id']}#0" for one in found]
    assert [hit.text for hit in hits] == [one["entity"]["text"] for one in found]
    assert [hit.score for hit in hits] == pytest.approx([one["distance"] for one in found], abs=1e-7)
    assert [(hit.id, hit.text) for hit in scope["again"]] == [(hit.id, hit.text) for hit in hits]
    assert (scope["had"].found, scope["had"].encoded) == (3, 0)
    client, wanted = scope["client"], scope["wanted"]
    bent = client.hybrid_search("papers", wanted, ranker=WeightedRanker(1.0, 0.3), limit=3)[0]
    alone = {field: scope[field][-1:] for field in ("dense", "sparse")}
    raw = {
        field: {one["id"]: one["distance"] for one in client.search("papers", rows, anns_field=field, limit=9)[0]}
        for field, rows in alone.items()
    }
    for one in bent:
        parts = [0.5 + math.atan(raw[field][one["id"]]) / math.pi if one["id"] in raw[field] else 0.0 for field in raw]
        assert one["distance"] == pytest.approx(parts[0] + 0.3 * parts[1], abs=1e-3)
    assert RRFRanker(60).dict()["params"] == {"k": 60}
    client.close()
    with pytest.raises(StoreError, match="has no manifest: another program made it"):
        Collection("papers", scope["encoder"], url="milvus:theirs.db")


def test_a_collection_of_qdrant_that_is_not_ours_is_refused() -> None:
    models = pytest.importorskip("qdrant_client.models", reason="extra `cluster` is not installed")
    from qdrant_client import QdrantClient

    from threefold.store.qdrant import QdrantStore

    client = QdrantClient(":memory:")
    client.create_collection("papers", vectors_config={"dense": models.VectorParams(size=2, distance="Dot")})
    with pytest.raises(StoreError, match="another program made it"):
        QdrantStore.open(client, "papers")
    client.close()


def test_the_fusion_of_qdrant_has_another_constant() -> None:
    models = pytest.importorskip("qdrant_client.models", reason="extra `cluster` is not installed")
    from qdrant_client import QdrantClient

    client = QdrantClient(":memory:")
    vectors = {"a": models.VectorParams(size=2, distance="Dot"), "b": models.VectorParams(size=2, distance="Dot")}
    client.create_collection("papers", vectors_config=vectors)
    rows = [models.PointStruct(id=i, vector={"a": [3.0 - i, 0], "b": [3.0 - i, 0]}) for i in range(2)]
    client.upsert("papers", rows)
    lists = [models.Prefetch(query=[1.0, 0.0], using=name, limit=5) for name in ("a", "b")]
    found = client.query_points("papers", prefetch=lists, query=models.FusionQuery(fusion=models.Fusion.RRF)).points
    client.close()
    assert [one.score for one in found] == pytest.approx([2 / 2, 2 / 3])  # 1 / (k + rank), k = 2, from rank 0
    assert [score for _, score in rrf([["0", "1"], ["0", "1"]])] == pytest.approx([2 / 61, 2 / 62])


# ---- the page ----------------------------------------------------------------------------------------------


def test_every_command_and_name_in_the_text_exists() -> None:
    for span in spans(PAGE):
        if call := re.fullmatch(r"threefold (\w+)(.*)", span):
            assert call[1] in COMMANDS, span
            used = set(re.findall(r"(?:^| )(--?[a-z][a-z-]*)(?=[ =]|$)", re.sub(r'"[^"]*"', "TEXT", call[2])))
            assert used <= options(call[1]), span
        for name in re.findall(r"threefold\.([A-Z]\w+)", span):
            assert name in threefold.__all__, span


def test_cross_encoders_are_read_as_pairs_too(folders: dict[str, str]) -> None:
    cross = CrossEncoder(folders["BAAI/bge-reranker-v2-m3"], device="cpu", precision="float32")
    pairs = [("a fox", "the fox"), ("a fox", "a dog")]
    np.testing.assert_array_equal(cross.score(pairs), cross.score("a fox", ["the fox", "a dog"]))


def test_no_line_is_long() -> None:
    assert [line for line in PAGE.splitlines() if len(line) > 128] == []
