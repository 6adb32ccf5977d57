"""A collection: documents in, hits out. One encoder and one store behind the calls that people make.

    papers = Collection("papers", encoder)
    papers.add_files("docs/")
    papers.search("how is the sparse head trained?", k=5)

Adding is incremental and may be interrupted anywhere: what is stored is always enough to go on from.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from threefold.config import Chunking, Filter, Manifest, MultiStorage, Settings
from threefold.errors import ConfigError, InputError, StoreError
from threefold.ingest import AddReport, Ingest, Progress, delete_missing_files
from threefold.retrieve.explain import explain
from threefold.retrieve.stages import (
    DEPTH,
    Diversify,
    Fuse,
    Fusion,
    Group,
    Mode,
    Ranked,
    Rerank,
    Retriever,
    preset,
    run,
)
from threefold.score.fuse import TRAINING, Weights
from threefold.store.check import stored
from threefold.store.folder import check_model, manifest_path, size_bytes
from threefold.store.protocol import Store
from threefold.text.decode import clean
from threefold.text.documents import Loading, Skipped, load_files
from threefold.text.protocol import TextEncoder
from threefold.types import Chunk, Document, Encoded, Hit, Representation
