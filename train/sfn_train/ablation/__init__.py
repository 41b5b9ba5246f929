"""The tables of ablations: every row of REFERENCE.md section 7 as a configuration.

tables.yaml   the rows: what each changes, and the published figure
rows.py       a row to its configuration, and to what it adds or removes
footage.py    everything the rows share, made once: frames, scenes, sentence embeddings
trial.py      one row, one seed: trained, calibrated on normal footage, measured on test videos
results.py    trials on disk, so that an interrupted table goes on where it stopped
report.py     trials to tables: mean, spread, and whether a difference is one
runner.py     the whole command
"""
