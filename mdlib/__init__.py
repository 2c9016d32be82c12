"""mdlib: the thin library behind the MaskDistill notebooks.

Floors, each imports only from those below it (tests/test_hygiene.py checks this): pipeline ·
report, predict · stage · figures · detector, segmenter · pretrain · training · distill, clusters,
pseudo, crf · backbones · encoder · encoder_hub · objects, priors · masks, metrics · cuts · datasets
· checkpoints · store · presets, progress.
"""

__version__ = "0.1.0"
