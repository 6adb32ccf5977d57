"""A collection as a retriever of LangChain, an encoder as its embeddings (extra `langchain`).

    retriever(papers, k=5, mode="hybrid").invoke("how is the sparse head trained?")

Options of a call take the place of those of the retriever: `invoke(question, k=3)`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from threefold.errors import MissingExtraError
from threefold.integrations.hits import Searchable, check_dense, dense_rows, found, found_async, metadata_of
from threefold.text.protocol import TextEncoder
from threefold.text.tokenizer import Truncate

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever


def retriever(collection: Searchable, **search: Any) -> BaseRetriever:
    """A `BaseRetriever` over a collection, of this process or of a server; what its documents say: `metadata_of`.

    search  how passages are searched, as for `Collection.search`
    """
    made: BaseRetriever = _retriever()(collection=collection, search_kwargs=search)
    return made


def embeddings(encoder: TextEncoder, *, truncate: Truncate = "end") -> Embeddings:
    """`Embeddings` by the dense vectors of an encoder, with its prompts for queries and documents.

    truncate  "none": a text that is longer than the model reads is an error
    """
    check_dense(encoder)
    made: Embeddings = _embeddings()(encoder, truncate)
    return made


@cache
def _retriever() -> Any:
    try:
        from langchain_core.documents import Document
        from langchain_core.retrievers import BaseRetriever
    except ImportError as error:
        raise MissingExtraError("langchain-core", "langchain", "a retriever of LangChain") from error

    class ThreefoldRetriever(BaseRetriever):
        """The chunks of a collection. `search_kwargs` is named as in LangChain's own retrievers."""

        collection: Any
        search_kwargs: dict[str, Any]

        def _get_relevant_documents(self, query: str, *, run_manager: Any, **search: Any) -> list[Document]:
            hits = found(self.collection, query, self.search_kwargs | search)
            return [Document(hit.text, id=hit.id, metadata=metadata_of(hit)) for hit in hits]

        async def _aget_relevant_documents(self, query: str, *, run_manager: Any, **search: Any) -> list[Document]:
            hits = await found_async(self.collection, query, self.search_kwargs | search)
            return [Document(hit.text, id=hit.id, metadata=metadata_of(hit)) for hit in hits]

    return ThreefoldRetriever


@cache
def _embeddings() -> Any:
    try:
        from langchain_core.embeddings import Embeddings
    except ImportError as error:
        raise MissingExtraError("langchain-core", "langchain", "embeddings of LangChain") from error

    class ThreefoldEmbeddings(Embeddings):
        """LangChain runs them in a thread where they are awaited."""

        def __init__(self, encoder: TextEncoder, truncate: Truncate) -> None:
            self.encoder, self.truncate = encoder, truncate

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return dense_rows(self.encoder.encode_documents, texts, self.truncate)

        def embed_query(self, text: str) -> list[float]:
            return dense_rows(self.encoder.encode_queries, [text], self.truncate)[0]

    return ThreefoldEmbeddings
