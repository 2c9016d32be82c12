"""mdlib: the thin library behind the MaskDistill notebooks.

Floors, each imports only from those below it (tests/test_hygiene.py checks this):
pipeline · report · stage · figures · pretrain · training · clusters, distill · encoder · masks, metrics · datasets ·
store · presets, progress.
"""

__version__ = "0.1.0"
