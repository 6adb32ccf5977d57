"""The main job, end to end and offline: index `examples/corpus`, then search it three ways.

    make demo        (or: python examples/demo.py)

Files in twenty languages are cut into chunks, each chunk becomes a dense vector, sparse term weights and token
vectors in one forward pass, and all three are stored in a folder. Each search then says which of the three
representations ranked the hit where, and through which words, and quotes the sentence that answers best.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from threefold import Collection, Encoder, Hit

HERE = Path(__file__).parent
SEARCHES = (
    ("same language", "Why does the sea rise and fall twice a day?"),
    ("across languages", "Why does a volcano erupt?"),
    ("across languages", "كيف يدرّب اللقاح جهاز المناعة على مقاومة المرض؟"),  # how does a vaccine train immunity?
    ("exact term", "TX-9000-B"),
)
K = 3

out = Console(highlight=False, width=110)


def main() -> None:
    began = time.perf_counter()
    encoder = Encoder()
    card = encoder.card
    out.print(f"[bold]threefold[/]  model {card.name}, {encoder.precision} on {encoder.device}, offline")
    folder = Path(tempfile.mkdtemp(prefix="threefold-demo-"))
    try:
        with Collection(folder / "demo", encoder) as collection:
            report = collection.add_files(HERE / "corpus")
            out.print(
                f"indexed {report.added} documents: {report.chunks} chunks, {report.tokens:,} tokens in "
                f"{report.seconds:.1f} s; {len(report.skipped)} skipped\n"
            )
            for kind, query in SEARCHES:
                show(kind, query, collection.search(query, k=K, why=True, quote=True))
    finally:
        shutil.rmtree(folder)
    out.print(f"[dim]{time.perf_counter() - began:.1f} s in all. Your own files:[/]")
    out.print('  threefold index YOUR_FOLDER --into mine && threefold search "your question" --in mine --why')
    out.print("  threefold browse --in mine  [dim]# in a web browser, with the extra `server`[/]")
    out.print("[dim]The full model instead of the small embedded one: add --model BAAI/bge-m3[/]")


def show(kind: str, query: str, hits: list[Hit]) -> None:
    """One search: where each representation ranked each hit, what it matched, and the sentence that answers best."""
    table = Table(title=f"[bold]{kind}[/]: {query}", title_justify="left", box=None, header_style="dim")
    for column in ("", "document", "score", "dense", "sparse", "multi", "matched"):
        table.add_column(column, no_wrap=column != "matched")
    for rank, hit in enumerate(hits, start=1):
        why = hit.why
        assert why is not None
        cells = [
            f"{why.scores[name]:.2f}" + (f" #{why.ranks[name]}" if name in why.ranks else "")
            for name in ("dense", "sparse", "multi")
        ]
        terms = [f"{match.term.replace('▁', '')}" for match in why.terms[:3]]
        pairs = [f"{p.query_token}~{p.text_token}".replace("▁", "") for p in why.tokens[:3]]
        matched = "; ".join(filter(None, [" ".join(terms) and "terms " + " ".join(terms), "tokens " + " ".join(pairs)]))
        table.add_row(str(rank), hit.chunk.document_id, f"{hit.score:.3f}", *cells, f"[dim]{matched}[/]")
    out.print(table)
    quote = hits[0].quote
    assert quote is not None
    out.print(Text(f"   {' '.join(quote.text.split())}\n", style="italic"))


if __name__ == "__main__":
    main()
