"""mdlib: the thin library behind the MaskDistill notebooks.

Ten folders; each imports only from those above it (tests/test_hygiene.py checks this):

    core       files, masks, label maps, colours: what every folder needs; no model
    data       data sets, the roles their pictures play in a run, checks, downloads
    evaluate   judges: arrays in, numbers out; no model, no file
    models     frozen ViTs, backbones, and their weights
    training   the loop, several processes, pretraining
    method     the paper, one file a stage
    studies    priors, ablations, claims: comparisons beside the method
    run        one run: what it reads, writes and resumes; the runner, the report
    show       figures, explorers, galleries, slides, the site
    exercises  the tasks of the notebooks and what checks them

docs/architecture.md draws them.
"""

__version__ = "0.1.0"
