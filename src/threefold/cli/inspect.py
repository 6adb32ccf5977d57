"""`threefold compare` and `threefold info`: what the model says, and what is here."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer
from rich.text import Text

from threefold import __version__
from threefold.cli import options
from threefold.cli.show import named, note, out, print_json, print_table
from threefold.types import TermMatch, TokenMatch


def compare(
    a: Annotated[str, typer.Argument(metavar="TEXT", help="Taken as the query.")],
    b: Annotated[str, typer.Argument(metavar="TEXT", help="Taken as the document.")],
    weights: Annotated[str, typer.Option(help="Weights of the fused score: dense,sparse,multi.")] = "",
    model: options.Model = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    as_json: options.Json = False,
) -> None:
    """Score two texts against each other by every representation, and say why."""
    from threefold.retrieve.pairs import compare_texts

    encoder = options.open_encoder(model, revision, device, precision)
    found = compare_texts(encoder, a, b, weights=options.parse_weights(weights))
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    rows = [(name, f"{score:.4f}", f"{found.weights[name]:g}") for name, score in found.scores.items()]
    print_table(("score", "value", "weight"), [*rows, ("fused", f"{found.fused:.4f}", "")])
    show_reasons(found.terms, found.pairs)
    if found.truncated:
        note(f"a text was longer than {encoder.card.max_tokens:,} tokens and was cut")


def show_reasons(terms: tuple[TermMatch, ...], pairs: tuple[TokenMatch, ...], indent: str = "") -> None:
    """Shared terms and best token pairs, a line each."""
    if terms:
        said = ", ".join(f"{t.term.replace('▁', '')} {t.query_weight:.2f}x{t.text_weight:.2f}" for t in terms)
        out.print(named("shared terms", said, indent))
    if pairs:
        clean = [(p.query_token.replace("▁", ""), p.text_token.replace("▁", ""), p.similarity) for p in pairs]
        said = ", ".join(f"{q}~{t} {s:.2f}" for q, t, s in clean)
        out.print(named("best tokens", said, indent))


def info(
    model: options.Model = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    as_json: options.Json = False,
) -> None:
    """Say what the model is, how it runs on this machine, and where collections are kept."""
    from threefold.opening import home

    encoder = options.open_encoder(model, revision, device, precision)
    facts: dict[str, Any] = {"threefold": __version__, **dataclasses.asdict(encoder.card)}
    facts |= {"device": str(encoder.device), "kernels": encoder.kernels, "token_budget": encoder.budget}
    facts["home"] = str(home())
    if as_json:
        print_json(facts)
        return
    print_table(
        (),
        [
            (Text(name, style="bold"), f"{value:,}" if isinstance(value, int) else str(value))
            for name, value in facts.items()
        ],
    )
    if model is None:
        note("threefold-mini is small and honest, not bge-m3; the full model: --model BAAI/bge-m3")
