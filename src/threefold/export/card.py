"""`README.md` of an exported folder: what it is, where it comes from, how it is used there."""

from __future__ import annotations

from pathlib import Path

import threefold
from threefold.export.opened import Opened

#: Layout -> library of the model card, and how the folder is used there.
_USE = {
    "sentence-transformers": (
        "sentence-transformers",
        """from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/of/this/folder")
query = model.encode_query("a question")
documents = model.encode_document(["a text", "another"])
scores = model.similarity(query, documents)""",
    ),
    "flagembedding": (
        "FlagEmbedding",
        """from FlagEmbedding import BGEM3FlagModel

model = BGEM3FlagModel("path/of/this/folder"{arguments})
three = model.encode(["a text"], return_dense=True, return_sparse=True, return_colbert_vecs=True)""",
    ),
    "onnx": (
        "onnx",
        """import numpy as np, onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")
session = onnxruntime.InferenceSession("path/of/this/folder/model.onnx")
batch = tokenizer(["a text"], padding=True, truncation=True, return_tensors="np")
feed = {{name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}}
{outputs} = session.run(None, feed)""",
    ),
}


def write(
    folder: Path, opened: Opened, layout: str, notes: tuple[str, ...], arguments: dict[str, str | int] | None = None
) -> None:
    """The card. `arguments` are put into the call that opens the folder."""
    config = opened.config
    library, use = _USE[layout]
    told = "".join(f", {name}={value!r}" for name, value in (arguments or {}).items())
    outputs = ["dense", *(["sparse"] if config.heads.sparse else []), *(["multi"] if config.heads.multi_dim else [])]
    head = ["---", f"library_name: {library}", "pipeline_tag: sentence-similarity", "tags:", "- feature-extraction"]
    head += [f"- {library}", "- threefold", "---"]
    facts = [
        f"# {Path(opened.name).name}",
        f"Exported by threefold {threefold.__version__} from `{Path(opened.name).name}`, fingerprint `{opened.hash}`.",
        "| | |\n|---|---|\n"
        f"| dense | {config.network.hidden} dimensions, pooling {config.heads.pooling} |\n"
        f"| longest text | {config.max_tokens:,} tokens |\n"
        f"| layers | {config.network.layers} |\n"
        f"| vocabulary | {config.network.vocab:,} |",
        f"```python\n{use.format(arguments=told, outputs=', '.join(outputs))}\n```",
    ]
    if prompts := _prompts(opened):
        facts.append(prompts)
    facts += list(notes)
    (folder / "README.md").write_text("\n".join(head) + "\n\n" + "\n\n".join(facts) + "\n", encoding="utf-8")


def _prompts(opened: Opened) -> str:
    both = (("query", opened.config.query_prompt), ("document", opened.config.document_prompt))
    said = [f"`{prompt}` goes before every {side}" for side, prompt in both if prompt]
    return "; ".join(said) + "." if said else ""
