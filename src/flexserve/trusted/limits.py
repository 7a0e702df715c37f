"""What models may have: as the server is configured, and as a person set it for single ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from flexserve.errors import CallerError
from flexserve.protocol.launch import SecureOptions
from flexserve.protocol.model_options import MAX_CONTEXT, KvType, ModelOptions
from flexserve.protocol.statuses import Description
from flexserve.trusted.store.manifest import Manifest

_DEFAULT_CONTEXT = 4096  # tokens
# Architectures of which llama.cpp writes the states of several sequences to the places of others, or behind
# all of them; and then it ends the process.
_ALONE = frozenset({"plamo2"})


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What one model may have."""

    context: int  # tokens of a sequence; what a model was trained for bounds it, too
    sequences: int  # generated at once, by a model that can do that
    sealed_kv: int  # bytes on disk
    kv: KvType = "f16"  # in which its KV is kept
    shift: bool = False  # an answer goes on when the context is full, without the older tokens

    @classmethod
    def usual(cls, options: SecureOptions) -> Limits:
        """Return the limits of models for which nothing is set."""
        context = options.context or _DEFAULT_CONTEXT
        return cls(context, options.parallel, options.kv_disk, options.kv_type)

    def changed(self, options: ModelOptions) -> Limits:
        """Return them with what `options` say."""
        context = MAX_CONTEXT if options.context == "model" else options.context
        return dataclasses.replace(
            self,
            context=self.context if context is None else context,
            kv=self.kv if options.kv is None else options.kv,
            shift=self.shift if options.shift is None else options.shift,
        )

    def context_of(self, trained: int) -> int:
        """Return the context of a model that was trained for `trained` tokens (0: it does not say)."""
        return min(self.context, trained) if trained else self.context

    def sequences_of(self, architecture: str) -> int:
        """Return how many sequences a model of an architecture generates at once."""
        return 1 if architecture in _ALONE else self.sequences


def no_kv(kv: KvType) -> CallerError:
    """Return the error for a model whose KV llama.cpp cannot keep as `kv`."""
    return CallerError(
        f"llama.cpp cannot keep this model's KV as {kv}.",
        hint="Have it kept as it is: flexserve set MODEL kv f16.",
        code="kv_type_unsupported",
    )


class ModelLimits:
    """The limits of each model. Any thread."""

    def __init__(self, usual: Limits) -> None:
        """`usual`: those of a model for which nothing is set."""
        self._usual = usual
        self._options: Mapping[str, ModelOptions] = {}

    def configure(self, options: Mapping[str, ModelOptions]) -> None:
        """Let `options` hold, by model, and no others. What is open keeps what it was opened with."""
        self._options = dict(options)

    def of(self, model: str) -> Limits:
        """Return the limits with which `model` is to be opened."""
        return self._usual.changed(self._options.get(model, ModelOptions()))

    def draft_of(self, model: str) -> str:
        """Return the smaller model that guesses the next tokens of `model`; "": none does."""
        return self._options.get(model, ModelOptions()).draft or ""


def described(manifest: Manifest, limits: Limits, draft: str) -> Description:
    """Return what clients may know of a model that is or is not open; `draft` guesses its next tokens."""
    trained = manifest.context_length
    return Description(
        digest=manifest.digest,
        size=manifest.size,
        created=manifest.created,
        architecture=manifest.architecture,
        parameters=manifest.parameters,
        quantization=manifest.quantization,
        trained_context=trained,
        context=limits.context_of(trained),
        sequences=limits.sequences_of(manifest.architecture),
        adapter_of=manifest.adapts.name if manifest.adapts is not None else "",
        kv=limits.kv,
        shift=limits.shift,
        draft=draft,
    )
