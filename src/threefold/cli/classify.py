"""`threefold classify`: labels for the texts of a file, from examples, from a saved classifier, or from names alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from threefold.cli import idle, options
from threefold.cli.encode import file_rows, require_file, require_table
from threefold.cli.show import complain, err, note, note_cut, out, print_json, print_table, shorten
from threefold.errors import InputError
from threefold.text.rows import ROW_SUFFIXES, BadRow, read_rows
from threefold.types import Representation

if TYPE_CHECKING:
    from threefold.analyze import Classifier, CrossValidation, Prediction
    from threefold.encoder.encoder import Encoder

#: Mistakes that are shown, and characters of a text.
MISTAKES, WIDTH = 5, 80


def classify(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(help="Texts to label: .txt (one per line), .jsonl, .json, .csv, .tsv; -: standard input."),
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(parser=options.path_of, help="Table of texts with labels to learn from.")
    ] = None,
    saved: Annotated[
        Path | None, typer.Option("--classifier", parser=options.path_of, help="Folder of a saved classifier.")
    ] = None,
    labels: Annotated[str, typer.Option(help="Names of labels, with commas: no examples are needed.")] = "",
    save: Annotated[Path | None, typer.Option(parser=options.target_of, help="New folder for the classifier.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier classifier in that folder.")] = False,
    outputs: Annotated[str, typer.Option(help="What it reads: dense,sparse or one of them. Default: both.")] = "",
    text_field: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    label_field: Annotated[str, typer.Option(help="Column of the examples that holds the label.")] = "label",
    id_field: Annotated[str, typer.Option(help="Column that holds the id; the row number where it is absent.")] = "id",
    model: options.Model = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    as_json: options.Json = False,
) -> None:
    """Label texts. With examples and no file: how good a classifier that learns from them is."""
    if sum(map(bool, (examples, saved, labels))) != 1:
        raise InputError("give one of --examples FILE, --classifier FOLDER and --labels NAMES: what to label by")
    if file is None and not examples:
        raise InputError("which texts? Name a file of them, or give --examples to see how good a classifier would be")
    idle.needs(context, "--examples", examples, "save", "outputs", "label_field")
    idle.needs(context, "--save", save, "force")
    idle.needs(context, "a file of texts", file, "id_field")
    if file is not None:
        require_file(file)  # refused before anything is learned
        require_table(context, file, *(() if examples else ("text_field",)), "id_field")
    if save is not None:
        _require_place(save, force)
    encoder = options.open_encoder(model, revision, device, precision)
    bad: list[str] = []
    classifier, judged = None, None
    if examples is not None:
        texts, known = _examples(examples, text_field, label_field, bad)
        wanted = options.outputs_in(outputs, "dense, sparse or both")
        classifier, judged = _learned(encoder, texts, known, wanted, judge=file is None, keep=save)
    said = {"texts": []} if file is None else _said(file, encoder, classifier, saved, labels, text_field, id_field, bad)
    cut = judged.truncated if judged else classifier.truncated if classifier else 0
    if as_json:
        learned = {"cross_validation": judged and asdict(judged), "saved": save and str(save)}
        print_json({**said, **learned, "examples_truncated": cut, "skipped": bad})
    else:
        if judged is not None:
            _show_judged(judged, texts)
        _show(said["texts"], cut, save, bad)
    if file is not None and not said["texts"]:
        complain(f"{file} has no texts")
        raise typer.Exit(1)


def _require_place(folder: Path, force: bool) -> None:
    """Nothing of others is in the folder, and an earlier classifier only if it may be replaced."""
    from threefold.analyze.classify import FILE

    options.require_no_file(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / FILE).is_file():
        raise InputError(f"{folder} is not empty and holds no classifier; name another folder")
    if not force:
        raise InputError(f"{folder} holds a classifier already. Name another folder, or say --force to replace it")


def _show(texts: Sequence[dict[str, Any]], cut: int, save: Path | None, bad: Sequence[str]) -> None:
    rows = [(one["label"], f"{one['probability']:.2f}", one["id"], shorten(one["text"], WIDTH)) for one in texts]
    if rows:
        print_table(("label", "", "id", "text"), rows, left=4, words=3)
    note_cut(cut, "example")
    note_cut(sum(one["truncated"] for one in texts), "text")
    if save is not None:
        err.print(f"saved in {save}")
    for reason in bad:
        note(f"skipped: {reason}")


def _examples(path: Path, text_field: str, label_field: str, bad: list[str]) -> tuple[list[str], list[str]]:
    """Texts and labels of a table; rows without one of them are added to `bad`."""
    if not path.is_file() or path.suffix.lower() not in ROW_SUFFIXES:
        raise InputError(f"--examples {path}: expected a table ({', '.join(ROW_SUFFIXES)}) with texts and labels")
    texts, labels = [], []
    for number, row in read_rows(path, text_field):
        if isinstance(row, BadRow):
            bad.append(f"{path.name}, row {number}: {row.reason}")
            continue
        text, label = row.get(text_field), _label(row.get(label_field))
        if not isinstance(text, str) or not label:
            bad.append(f"{path.name}, row {number}: no text in {text_field!r}, or no label in {label_field!r}")
            continue
        texts.append(text)
        labels.append(label)
    if not texts:
        raise InputError(f"--examples {path} has no row with {text_field!r} and {label_field!r}; name their columns")
    return texts, labels


def _label(value: Any) -> str:
    """A text, a number, or true and false as JSON has them; "" for what is no label. Spaces around it are no part."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).strip() if isinstance(value, str | int | float) else ""


def _learned(
    encoder: Encoder,
    texts: Sequence[str],
    labels: Sequence[str],
    outputs: Sequence[Representation] | None,
    *,
    judge: bool,
    keep: Path | None,
) -> tuple[Classifier | None, CrossValidation | None]:
    from threefold.analyze import Classifier, cross_validate

    if judge and keep is None:
        return None, cross_validate(encoder, texts, labels, outputs=outputs)
    classifier = Classifier.fit(encoder, texts, labels, outputs=outputs, judge=judge)
    if keep is not None:
        classifier.save(keep)
    return classifier, classifier.judged


def _said(
    file: Path,
    encoder: Encoder,
    classifier: Classifier | None,
    saved: Path | None,
    labels: str,
    text_field: str,
    id_field: str,
    bad: list[str],
) -> dict[str, Any]:
    """The labels that a classifier can give, and those of all texts."""
    from threefold.analyze import Classifier, zero_shot

    rows = list(file_rows(file, text_field, id_field, bad))
    texts = [text for _, text in rows]
    if saved is not None:
        classifier = Classifier.load(saved, encoder)
    names = options.names_in(labels) if classifier is None else classifier.labels
    found = zero_shot(encoder, texts, names) if classifier is None else classifier.predict(texts)
    return {"labels": names, "texts": [_row(id, text, one) for (id, text), one in zip(rows, found, strict=True)]}


def _row(id: str, text: str, one: Prediction) -> dict[str, Any]:
    return {"id": id, "label": one.label, "probability": one.probability, "text": text, "truncated": one.truncated}


def _show_judged(judged: CrossValidation, texts: Sequence[str]) -> None:
    rows = [
        (name, f"{row['precision']:.2f}", f"{row['recall']:.2f}", f"{row['f1']:.2f}", f"{row['examples']:,.0f}")
        for name, row in judged.labels.items()
    ]
    print_table(("label", "precision", "recall", "f1", "examples"), rows)
    out.print(f"accuracy {100 * judged.accuracy:.1f} %, macro F1 {100 * judged.macro_f1:.1f} %")
    for i, label, given in judged.wrong[:MISTAKES]:
        note(f"{label!r} taken for {given!r}: {shorten(texts[i], WIDTH)}")
    note(f"each text judged by a classifier that had not seen it ({judged.folds} folds)")
