"""A model as a folder of sentence-transformers: its dense vectors, by stock modules, without remote code."""

from __future__ import annotations

from pathlib import Path

from threefold.export import card
from threefold.export.hugging_face import (
    is_bert,
    network_settings,
    network_tensors,
    unread_pooler,
    write_json,
    write_network,
    write_tokenizer,
)
from threefold.export.opened import Opened

#: Our word for a pooling -> theirs.
_MODES = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}
_ALL_MODES = (
    "cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken",
)  # fmt: skip
LAYOUT = "sentence-transformers"


def write(opened: Opened, folder: Path, precision: str = "float32") -> tuple[str, ...]:
    """Write the files into `folder`; returns what a reader must know."""
    config = opened.config
    tensors = network_tensors(opened.model.network, precision) | unread_pooler(config.network.hidden, precision)
    kind = "BertModel" if is_bert(config.network) else "XLMRobertaModel"
    settings = network_settings(config.network, opened.tokenizer, precision)
    write_network(folder, {"architectures": [kind], **settings}, tensors)
    write_tokenizer(folder, opened.tokenizer, config.max_tokens)
    write_modules(folder, opened)
    notes = _notes(opened)
    card.write(folder, opened, LAYOUT, notes)
    return notes


def write_modules(folder: Path, opened: Opened) -> None:
    """`modules.json` and what it names."""
    config = opened.config
    chain = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if config.heads.normalize:
        chain.append(("2_Normalize", "Normalize"))
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(chain)
        ],
    )
    for path, _ in chain[1:]:
        (folder / path).mkdir()
    chosen = _MODES[config.heads.pooling]
    modes = {f"pooling_mode_{mode}": mode == chosen for mode in _ALL_MODES}
    pooling = {"word_embedding_dimension": config.network.hidden, **modes, "include_prompt": True}
    write_json(folder / "1_Pooling/config.json", pooling)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": config.max_tokens, "do_lower_case": False})
    prompts = {"query": config.query_prompt, "document": config.document_prompt}
    similarity = "cosine" if config.heads.normalize else "dot"
    about = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": similarity}
    write_json(folder / "config_sentence_transformers.json", about)


def _notes(opened: Opened) -> tuple[str, ...]:
    config = opened.config
    notes = []
    lost = [name for name, there in (("sparse", config.heads.sparse), ("multi", config.heads.multi_dim)) if there]
    if lost:
        heads = " and the ".join(lost)
        notes.append(f"sentence-transformers has the dense vectors only; the {heads} head stay with the original.")
    if shorter := [dim for dim in config.matryoshka if dim < config.network.hidden]:
        dims = ", ".join(map(str, shorter))
        notes.append(f"Dense vectors may be cut: SentenceTransformer(folder, truncate_dim=...) with {dims}.")
    return tuple(notes)
