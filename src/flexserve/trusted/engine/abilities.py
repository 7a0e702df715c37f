"""What a model can do, as llama.cpp and its header tell before anything is computed."""

from __future__ import annotations

from flexserve.protocol.statuses import Abilities
from flexserve.trusted.engine.library import lib
from flexserve.trusted.engine.model import Model
from flexserve.trusted.requests.tasks import ENCODERS, NO_TEXTS, NO_VECTORS


def abilities_of(model: Model) -> Abilities:
    """Return what an opened model can do, as far as can be told without computing."""
    address, metadata, architecture = model.address, model.header.metadata, model.header.architecture
    encoder = bool(lib.llama_model_has_encoder(address))
    causal = metadata.get(f"{architecture}.attention.causal") is not False and architecture not in ENCODERS
    diffusion = bool(lib.llama_model_is_diffusion(address))
    usable = architecture not in NO_TEXTS
    ranks = metadata.get(f"{architecture}.pooling_type") == lib.LLAMA_POOLING_TYPE_RANK
    return Abilities(
        text=usable and causal and not encoder and not diffusion,
        vectors=usable and architecture not in NO_VECTORS and not ranks,
        encoder=encoder or architecture in ENCODERS,
        causal=causal and not diffusion,
        window=max(0, int(lib.llama_model_n_swa(address))),
        recurrent=bool(lib.llama_model_is_recurrent(address) or lib.llama_model_is_hybrid(address)),
        template=model.header.chat_template is not None,
        tools="none",  # who has read the template knows better
        ranks=usable and ranks,
    )
