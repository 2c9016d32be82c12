"""mdlib: the thin library behind the MaskDistill notebooks.

Floors, each imports only from those below it (tests/test_hygiene.py checks this):
pipeline · figures · training, pretrain · clusters · encoder · masks, metrics · datasets · store · presets.
"""

__version__ = "0.1.0"
