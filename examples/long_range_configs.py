"""Named configurations of train_long_range.py.

Those of the Long Range Graph Benchmark are the published ones of DRew (Gutteridge et al. 2023) for 500 000 parameters:
layers, delay, optimizer and schedule; the width follows from the budget and differs from the published one by 4 at
most. That of QM9 has no matrices per bond type. The baselines gcn, gin and gatedgcn are the same layers with one hop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["CONFIGS", "MODELS", "LongRangeConfig"]

MODELS = ("gcn", "gin", "gatedgcn", "spn", "drew_gcn", "drew_gin", "drew_gatedgcn")
NEVER = "inf"  # as JSON has no infinity


@dataclass(frozen=True)
class LongRangeConfig:
    """One experiment.

    Attributes:
        dataset: name of the data set.
        model: one of MODELS.
        layers: depth; 0 for half the ring in RingTransfer.
        delay: nu of DRew; "inf" for none.
        max_hops: last hop that any layer reads; None for as many as layers (10 for spn).
        share_weights, learn_hop_weights: as for the DRew layers.
        recompute: as for DRew.
        dropout: of gin and gatedgcn layers.
        positional: number of Laplacian eigenvectors beside the features; 0 for none.
        width: of the states; None solves for the budget.
        budget: number of parameters.
        optimizer, lr, weight_decay: torch's optimizer.
        schedule: "plateau" halves the rate where the validation metric stands still, "cosine" lets it sink to 0.
        patience: epochs without a better validation metric before the rate is halved.
        min_lr: where halving ends.
        epochs, batch_size: batch_size graphs in all, over all workers.
        size: nodes of a ring of RingTransfer.
        target: column of QM9.
    """

    dataset: str
    model: str
    layers: int = 8
    delay: float | str = 1
    max_hops: int | None = None
    share_weights: bool = False
    learn_hop_weights: bool = False
    recompute: bool = False
    dropout: float = 0.0
    positional: int = 0
    width: int | None = None
    budget: int = 500_000
    optimizer: str = "AdamW"
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: str = "plateau"
    patience: int = 20
    min_lr: float = 1e-5
    epochs: int = 300
    batch_size: int = 128
    size: int = 10
    target: int = 0


RING = LongRangeConfig(
    "ring-transfer", "drew_gcn", layers=0, optimizer="Adam", lr=1e-2, weight_decay=5e-4, schedule="cosine", epochs=50,
    batch_size=32,
)  # fmt: skip
TU = LongRangeConfig("proteins", "drew_gcn", layers=6, budget=100_000, epochs=100, batch_size=32)
FUNC = LongRangeConfig("peptides-func", "drew_gcn", layers=7, delay=NEVER, positional=10)
STRUCT = LongRangeConfig("peptides-struct", "drew_gcn", layers=5, delay=NEVER, positional=10)
SUPERPIXELS = LongRangeConfig(
    "pascalvoc-sp", "drew_gatedgcn", share_weights=True, positional=10, optimizer="Adam", lr=5e-4, patience=10,
    batch_size=32,
)  # fmt: skip
CONTACT = LongRangeConfig("pcqm-contact", "drew_gcn", layers=20, delay=NEVER, patience=10, epochs=80, batch_size=256)
QM9 = LongRangeConfig("qm9", "drew_gin", learn_hop_weights=True, budget=800_000)

CONFIGS: dict[str, LongRangeConfig] = {
    "drew_gcn_ring_transfer": RING,
    "gcn_ring_transfer": replace(RING, model="gcn"),
    "spn_ring_transfer": replace(RING, model="spn"),
    "drew_gcn_peptides_func": FUNC,
    "drew_gcn_peptides_func_deep": replace(FUNC, layers=23, delay=1, positional=0),
    "drew_gatedgcn_peptides_func": replace(FUNC, model="drew_gatedgcn", layers=5, share_weights=True),
    "gcn_peptides_func": replace(FUNC, model="gcn", layers=5, positional=0),
    "drew_gcn_peptides_struct": STRUCT,
    "drew_gatedgcn_peptides_struct": replace(STRUCT, model="drew_gatedgcn", share_weights=True),
    "gcn_peptides_struct": replace(STRUCT, model="gcn", positional=0),
    "drew_gatedgcn_pascalvoc_sp": SUPERPIXELS,
    "gatedgcn_pascalvoc_sp": replace(SUPERPIXELS, model="gatedgcn", positional=0),
    "drew_gcn_pcqm_contact": CONTACT,
    "drew_gcn_pcqm_contact_laplacian": replace(CONTACT, layers=10, positional=10),
    "drew_gatedgcn_pcqm_contact": replace(
        CONTACT, model="drew_gatedgcn", layers=10, share_weights=True, positional=10, epochs=90
    ),
    "gcn_pcqm_contact": replace(CONTACT, model="gcn", layers=5, epochs=200),
    "drew_gin_qm9": QM9,
    "drew_gin_qm9_nodelay": replace(QM9, delay=NEVER),
    "gin_qm9": replace(QM9, model="gin", learn_hop_weights=False),
    "spn_qm9": replace(QM9, model="spn", learn_hop_weights=False),
    **{
        f"{model}_{dataset}": replace(TU, model=model, dataset=dataset)
        for dataset in ("enzymes", "mutag", "nci1", "proteins")
        for model in ("drew_gcn", "drew_gin", "gcn", "gin", "spn")
    },
}
