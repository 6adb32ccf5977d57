"""Servers to compare with, each a process of its own that answers `POST /embeddings` with dense vectors.

    python benchmarks/serve_peers.py sentence-transformers MODEL PORT
    python benchmarks/serve_peers.py flagembedding MODEL PORT

Both put the library behind FastAPI as their users do: one `encode` per request, one request at a time, since neither
library packs requests together. infinity-emb is pinned to older libraries than ours, so it gets an environment of its
own under build/, which borrows only our PyTorch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock

ROOT = Path(__file__).parent.parent
INFINITY = ROOT / "build" / "infinity"
INFINITY_PACKAGES = ("infinity-emb[server,torch]==0.0.78", "huggingface-hub<1")
NAME = "bench"

Embed = Callable[[list[str]], list[list[float]]]


def sentence_transformers(model: str) -> Embed:
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(model, device="cpu")
    return lambda texts: loaded.encode(texts, show_progress_bar=False).tolist()


def flagembedding(model: str) -> Embed:
    from FlagEmbedding import BGEM3FlagModel

    loaded = BGEM3FlagModel(model, use_fp16=False, devices="cpu")
    return lambda texts: loaded.encode(texts, max_length=512)["dense_vecs"].tolist()


LIBRARIES: dict[str, Callable[[str], Embed]] = {
    "sentence-transformers": sentence_transformers,
    "flagembedding": flagembedding,
}


def serve(library: str, model: str, port: int) -> None:
    import uvicorn
    from fastapi import Body, FastAPI

    embed, one_at_a_time = LIBRARIES[library](model), Lock()
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/embeddings")
    def embeddings(input: list[str] = Body(embed=True)) -> dict[str, object]:  # noqa: B008
        with one_at_a_time:
            vectors = embed(input)
        return {"data": [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def command_of(system: str, model: Path, port: int) -> list[str]:
    """How this peer is started."""
    if system != "infinity":
        return [sys.executable, str(Path(__file__)), system, str(model), str(port)]
    options = {"model-id": str(model), "served-model-name": NAME, "host": "127.0.0.1", "port": str(port)}
    options |= {"engine": "torch", "device": "cpu", "dtype": "float32"}
    program = str(_infinity_environment() / "bin" / "infinity_emb")
    return [program, "v2", *(word for name, value in options.items() for word in (f"--{name}", value)),
            "--no-bettertransformer"]  # fmt: skip


def environment() -> dict[str, str]:
    """Offline, and nothing is told to anybody."""
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    return os.environ | quiet | {"TOKENIZERS_PARALLELISM": "false"}


def _infinity_environment() -> Path:
    """Made once: about a minute and 700 MB."""
    if not (INFINITY / "done").is_file():
        _run([sys.executable, "-m", "venv", "--clear", str(INFINITY)])
        theirs = next((INFINITY / "lib").glob("python*")) / "site-packages"
        for part in _torch_parts():
            (theirs / part.name).symlink_to(part)
        _run([str(INFINITY / "bin" / "python"), "-m", "pip", "install", "--quiet", *INFINITY_PACKAGES])
        (INFINITY / "done").touch()
    return INFINITY


def _torch_parts() -> list[Path]:
    import torch

    ours = Path(torch.__file__).parent.parent
    return [ours / name for name in ("torch", "torchgen", "functorch")] + list(ours.glob("torch-*.dist-info"))


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
