"""Captions of a data set by a vision-language model, made once and kept: `sfn_train captions`.

video -> units of clips -> one process, or workers on a Ray cluster -> journal -> NAME.json
(units)                    (vlm, cluster)                              (cache)
"""
