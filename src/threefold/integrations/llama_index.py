"""A collection as a retriever of LlamaIndex, an encoder as its embedding model (extra `llama-index`).

RetrieverQueryEngine.from_args(retriever(papers, k=5), llm=llm).query("how is the sparse head trained?")
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import TYPE_CHECKING, Any

from threefold.errors import MissingExtraError
from threefold.integrations.hits import KEY, Searchable, check_dense, dense_rows, found, found_async, metadata_of
from threefold.text.protocol import TextEncoder
from threefold.text.tokenizer import Truncate
from threefold.types import Hit

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle


def retriever(collection: Searchable, **search: Any) -> BaseRetriever:
    """A `BaseRetriever` over a collection, of this process or of a server; what its nodes say: `metadata_of`.

    The chat model is shown the metadata of the document, its source, title and language, and nothing of `threefold`.

    search  how passages are searched, as for `Collection.search`
    """
    made: BaseRetriever = _retriever()(collection, search)
    return made


def embeddings(encoder: TextEncoder, *, truncate: Truncate = "end") -> BaseEmbedding:
    """A `BaseEmbedding` by the dense vectors of an encoder, with its prompts for queries and documents.

    truncate  "none": a text that is longer than the model reads is an error
    """
    check_dense(encoder)
    made: BaseEmbedding = _embedding()(encoder, truncate)
    return made


@cache
def _retriever() -> Any:
    try:
        from llama_index.core.retrievers import BaseRetriever
    except ImportError as error:
        raise MissingExtraError("llama-index-core", "llama-index", "a retriever of LlamaIndex") from error

    class ThreefoldRetriever(BaseRetriever):
        """The chunks of a collection as nodes."""

        def __init__(self, collection: Any, search: dict[str, Any]) -> None:
            super().__init__()
            self._collection, self._search = collection, search

        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            return [_node(hit) for hit in found(self._collection, query_bundle.query_str, self._search)]

        async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            return [_node(hit) for hit in await found_async(self._collection, query_bundle.query_str, self._search)]

    return ThreefoldRetriever


def _node(hit: Hit) -> NodeWithScore:
    from llama_index.core.schema import NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode

    node = TextNode(
        id_=hit.id,
        text=hit.text,
        start_char_idx=hit.chunk.start,
        end_char_idx=hit.chunk.end,
        metadata=metadata_of(hit),
        excluded_llm_metadata_keys=[KEY],
        excluded_embed_metadata_keys=[KEY],
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=hit.chunk.document_id)},
    )
    return NodeWithScore(node=node, score=hit.score)


@cache
def _embedding() -> Any:
    try:
        from llama_index.core.base.embeddings.base import BaseEmbedding
    except ImportError as error:
        raise MissingExtraError("llama-index-core", "llama-index", "embeddings of LlamaIndex") from error

    class ThreefoldEmbedding(BaseEmbedding):
        """LlamaIndex itself runs those of texts in a thread where they are awaited."""

        def __init__(self, encoder: TextEncoder, truncate: Truncate) -> None:
            super().__init__(model_name=encoder.card.name)
            self._encoder, self._truncate = encoder, truncate

        def _get_query_embedding(self, query: str) -> list[float]:
            return dense_rows(self._encoder.encode_queries, [query], self._truncate)[0]

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return await asyncio.to_thread(self._get_query_embedding, query)

        def _get_text_embedding(self, text: str) -> list[float]:
            return self._get_text_embeddings([text])[0]

        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return dense_rows(self._encoder.encode_documents, texts, self._truncate)

    return ThreefoldEmbedding
